"""Exports: the library for which each form is made loads it and gives the network's outputs."""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path
from zipfile import ZipFile

import pytest
import timm
import torch
import torchvision
from torch import nn

from engine.nets.backbones import build_backbone
from engine.nets.classifier import Classifier, save_classifier
from engine.nets.description import Origin
from engine.nets.exported import WRITERS, load_exported
from engine.nets.starts import find_start
from engine.train.distributed import seed_everything
from loaders.common.errors import UserError
from loaders.packs import Pack
from loaders.views.evaluation import EvaluationView
from tests.in_process import run_script
from tests.next_line import read_next_line
from tools.export import Config, export, load, views_to_compare

VIEW = EvaluationView(32, 0.9, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), "bicubic")
CLASSES = ("ant", "bee", "cat")


def needs(*names: str) -> pytest.MarkDecorator:
    absent = [name for name in names if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(absent), reason=f"not installed: {', '.join(absent)}")


def saved(folder: Path, name: str, view: EvaluationView = VIEW) -> Path:
    seed_everything(0)
    origin = Origin("timm:something", "apache-2.0")
    network = Classifier(build_backbone(name, view.resolution), name, view, CLASSES, origin)
    folder.mkdir()
    save_classifier(folder, network, "raw")
    return folder


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("runs") / "resnet", "test_resnet")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("runs") / "tiny", "tiny_resnet")


def exported(run: Path, form: str, out: Path, **options: object) -> tuple[Path, torch.Tensor, torch.Tensor]:
    """Export a run's network; return the path, views, and the network's outputs for the views."""
    config = Config(run=run, form=form, out=out, **options)  # type: ignore[arg-type]
    path, network = export(config), load(config)
    x = torch.randn(5, 3, network.resolution, network.resolution)
    with torch.no_grad():
        return path, x, network(x)


def assert_same(network: nn.Module, x: torch.Tensor, expected: torch.Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(x), expected, atol=1e-4, rtol=1e-4)


def assert_comes_back(path: Path, view: EvaluationView, x: torch.Tensor, expected: torch.Tensor) -> None:
    found = load_exported(path)
    assert (found.view, found.classes) == (view, CLASSES)
    assert_same(found, x, expected)


def test_timm_loads_the_file_and_the_folder(resnet: Path, tmp_path: Path) -> None:
    path, x, expected = exported(resnet, "timm", tmp_path / "w.safetensors")
    network = timm.create_model("test_resnet", num_classes=3, checkpoint_path=str(path))
    assert_same(network, x, expected)
    folder, x, expected = exported(resnet, "hf", tmp_path / "hub")
    network = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert_same(network, x, expected)
    shown = timm.data.resolve_model_data_config(network)
    assert shown["input_size"] == (3, 32, 32)
    assert (*shown["mean"], shown["crop_pct"], shown["interpolation"]) == (0.4, 0.5, 0.6, 0.9, "bicubic")
    assert tuple(network.pretrained_cfg["label_names"]) == CLASSES
    assert network.pretrained_cfg["license"] == "apache-2.0"


def test_a_vit_of_another_size_keeps_it(tmp_path: Path) -> None:
    run = saved(tmp_path / "run", "test_vit", replace(VIEW, resolution=48))
    folder, x, expected = exported(run, "hf", tmp_path / "hub")
    assert_same(timm.create_model(f"local-dir:{folder}", pretrained=True), x, expected)


def test_torchvision_loads_the_state_dict(tmp_path: Path) -> None:
    run = saved(tmp_path / "run", "resnet18")
    path, x, expected = exported(run, "torchvision", tmp_path / "w.pth")
    network = torchvision.models.resnet18(num_classes=3)
    network.load_state_dict(torch.load(path, weights_only=True))
    assert_same(network, x, expected)
    described = json.loads(path.with_suffix(".json").read_text())
    assert described["classes"] == list(CLASSES)
    assert described["origin"]["licence"] == "apache-2.0"


@needs("transformers")
@pytest.mark.filterwarnings("ignore")
def test_transformers_load_the_folder(resnet: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForImageClassification

    folder, x, expected = exported(resnet, "hf", tmp_path / "hub")
    network = AutoModelForImageClassification.from_pretrained(folder)
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(x).logits, expected, atol=1e-4, rtol=1e-4)
    assert network.config.id2label[1] == "bee"


@needs("onnx", "onnxruntime", "onnxscript")
@pytest.mark.parametrize("run", ["tiny", pytest.param("resnet", marks=pytest.mark.slow)])
def test_onnxruntime_runs_the_graph_for_any_batch(
    run: str, tmp_path: Path, digits_pack: Pack, request: pytest.FixtureRequest
) -> None:
    import onnxruntime

    folder = request.getfixturevalue(run)
    options = {"pack": digits_pack.path, "split": "test"}
    path, x, expected = exported(folder, "onnx", tmp_path / "w.onnx", **options)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for size in (1, 5):
        (logits,) = session.run(None, {"views": x[:size].numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), expected[:size], atol=1e-4, rtol=1e-4)
    text = json.loads(session.get_modelmeta().custom_metadata_map["sluice"])
    assert text["classes"] == list(CLASSES)
    assert EvaluationView.parse(text["view"]) == VIEW
    assert_comes_back(path, VIEW, x, expected)


def test_a_program_of_torch_export_takes_any_batch(tiny: Path, tmp_path: Path) -> None:
    path, x, expected = exported(tiny, "torch_export", tmp_path / "w.pt2")
    program = torch.export.load(path).module()
    for size in (1, 5):
        torch.testing.assert_close(program(x[:size]), expected[:size], atol=1e-4, rtol=1e-4)
    assert_comes_back(path, VIEW, x, expected)


@pytest.mark.parametrize("place", ["data/sample_inputs/model.pt", "models/model.json"])
def test_nothing_in_a_program_is_run(place: str, tiny: Path, tmp_path: Path) -> None:
    path, x, expected = exported(tiny, "torch_export", tmp_path / "w.pt2")
    made = tmp_path / "made by the file"
    with ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in members if name.endswith(place))
    if name.endswith(".pt"):
        members[name] = b"cos\nmkdir\n(V%b\ntR." % str(made).encode()  # a pickle that calls os.mkdir
    else:  # a symbolic size, which torch would evaluate
        found = re.sub(
            rb"Symbol\(.*?integer=True\)", b"__import__('os').mkdir('%b')" % str(made).encode(), members[name]
        )
        assert found != members[name]
        members[name] = found
    with ZipFile(path, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    assert_comes_back(path, VIEW, x, expected)
    assert not made.exists()


def test_a_damaged_program_is_one_line(tiny: Path, tmp_path: Path) -> None:
    path, _, _ = exported(tiny, "torch_export", tmp_path / "w.pt2")
    with ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    config = next(name for name in members if name.endswith("weights_config.json"))
    weight = next(name for name in members if name.endswith("weight_0"))
    for name, content in [(config, b"[]"), (config, b'{"config": {}}'), (weight, b"1234"), (weight, b"123")]:
        with ZipFile(path, "w") as archive:
            for member, kept in members.items():
                archive.writestr(member, content if member == name else kept)
        with pytest.raises(UserError, match=r"is not an exported program, or is cut short \("):
            load_exported(path)


def test_a_refused_program_leaves_nothing(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.nets.exported.TOLERANCE", -1.0)
    with pytest.raises(UserError, match="the form does not fit this network"):
        exported(tiny, "torch_export", tmp_path / "w.pt2")
    assert not list(tmp_path.iterdir())


def view_of(form: str) -> EvaluationView:
    """Return the view expected after loading; files in timm's form get timm's own way to crop."""
    return replace(VIEW, whole_pixels=form in ("timm", "hf"))


FILES = {"timm": "w.safetensors", "hf": "w", "torchvision": "w.pth", "safetensors": "w.safetensors"}


@pytest.mark.parametrize("form", FILES)
def test_every_file_of_weights_comes_back_with_its_view_and_classes(
    form: str, resnet: Path, tmp_path: Path
) -> None:
    run = saved(tmp_path / "run", "resnet18") if form == "torchvision" else resnet
    path, x, expected = exported(run, form, tmp_path / FILES[form])
    assert_comes_back(path, view_of(form), x, expected)


@pytest.mark.parametrize("form", ["timm", "hf", "safetensors"])
def test_a_backbone_leaves_alone_and_is_a_start_again(form: str, resnet: Path, tmp_path: Path) -> None:
    name = "w" if form == "hf" else "w.safetensors"
    path, x, expected = exported(resnet, form, tmp_path / name, backbone_only=True)
    assert expected.shape == (5, 96)
    start = find_start(path)
    assert start.view == view_of(form)
    assert_same(start.load(), x, expected)


@pytest.mark.parametrize("form", ["timm", "hf", "torchvision"])
def test_our_own_networks_are_refused_by_name(
    form: str, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / FILES.get(form, "w")
    with pytest.raises(UserError, match="tiny_resnet, which is this project's own"):
        export(Config(run=tiny, form=form, out=out))  # type: ignore[arg-type]
    assert not out.exists()
    assert "writing" not in capsys.readouterr().err  # refused before the progress line


@needs("onnx", "onnxruntime", "onnxscript")
def test_what_onnx_cannot_express_is_one_line(tmp_path: Path) -> None:
    class Strange(nn.Module):
        num_features = 4

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.eigvals(x[:, 0, :4, :4]).real + float(x.sum()) * 0

    network = Classifier(Strange(), "strange", VIEW, CLASSES).eval()
    with pytest.raises(UserError, match="ONNX cannot express strange") as caught:
        WRITERS["onnx"](network, torch.randn(2, 3, 32, 32), tmp_path / "w.onnx")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_is_kept_and_a_failure_leaves_nothing(
    resnet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = saved(tmp_path / "run", "resnet18")
    beside = tmp_path / "out" / "config.json"
    beside.parent.mkdir()
    beside.write_text("another's")
    with pytest.raises(UserError, match=r"expected nothing at .*config\.json, where the description of"):
        export(Config(run=run, form="torchvision", out=beside.with_suffix(".pth")))
    assert [path.read_text() for path in beside.parent.iterdir()] == ["another's"]

    def cut(path: Path, *_: object) -> None:
        path.write_bytes(b"half")
        raise OSError("no space")

    monkeypatch.setattr("engine.nets.exported.write_tensors", cut)
    for form in ("timm", "safetensors"):
        with pytest.raises(OSError, match="no space"):
            export(Config(run=resnet, form=form, out=tmp_path / "cut" / "w.safetensors"))  # type: ignore[arg-type]
    assert list((tmp_path / "cut").iterdir()) == []


@pytest.mark.parametrize("alone", [False, True], ids=["classifier", "backbone"])
def test_the_next_command_takes_the_export(alone: bool, tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "w.safetensors"
    options = ("--backbone-only",) if alone else ()
    done = run_script("tools/export.py", "--run", tiny, "--form", "safetensors", "--out", out, *options)
    script, config = read_next_line(done.stdout)
    if alone:
        assert (script, config.init) == ("recipes/transfer.py", out)
        assert find_start(config.init).backbone == "tiny_resnet"
    else:
        assert (script, config.network) == ("tools/predict.py", out)


def test_a_run_without_a_classifier_has_features_to_export(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "backbone.safetensors").touch()
    config = Config(run=tmp_path / "run", form="onnx", out=tmp_path / "w.onnx")
    with pytest.raises(UserError, match=r"found none; .*, or export its features by --backbone-only$"):
        config.check_places()


def test_mistakes_are_named(tiny: Path, tmp_path: Path, digits_pack: Pack) -> None:
    (tmp_path / "w.onnx").touch()
    with pytest.raises(UserError, match="expected nothing at"):
        Config(run=tiny, form="onnx", out=tmp_path / "w.onnx")
    for name, match in (
        ("w.onnx", "not an ONNX graph"),
        ("x.pt2", "found none"),
        ("w.pt2", "not an exported program"),
    ):
        (tmp_path / "w.pt2").write_bytes(b"nothing")
        with pytest.raises(UserError, match=match):
            load_exported(tmp_path / name)
    config = Config(run=tiny, form="onnx", out=tmp_path / "y.onnx", pack=digits_pack.path)
    assert views_to_compare(config, VIEW).shape == (16, 3, 32, 32)


@pytest.mark.parametrize(
    ("form", "suffix"), [("onnx", ".onnx"), ("torch_export", ".pt2"), ("timm", ".safetensors")]
)
def test_a_file_is_named_as_other_commands_know_it(form: str, suffix: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"expected a name that ends in {suffix} .* give .*w{suffix}"):
        Config(run=tmp_path, form=form, out=tmp_path / "w.bin")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("out", "better"), [(".", "network.onnx"), ("/", "/network.onnx"), ("runs/v1.2", "runs/v1.2.onnx")]
)
def test_a_name_for_an_export_is_suggested(out: str, better: str) -> None:
    with pytest.raises(UserError, match=f"; give {better}$"):
        Config(run=Path("run"), form="onnx", out=Path(out))
