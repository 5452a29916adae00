"""A recipe's configuration refuses mistakes before anything is loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState

from engine.nets.backbones import TinyResNet
from engine.train.distributed import make_accelerator
from engine.train.run_config import RUNTIME_FIELDS, RunConfig, described, on_device
from engine.train.run_folder import opened_run, save_backbone
from loaders import LoaderOptions
from loaders.backends.work import Crew
from loaders.common.errors import MissingBackendError, UserError
from loaders.packs import Pack
from recipes import barlow, supervised, temporal_ensembling, vae


def config(pack: Path, out: Path, resume: bool = False) -> RunConfig:
    return RunConfig(
        pack=pack, out=out, backbone="test_resnet", resolution=16, epochs=1, batch_size=2, resume=resume
    )


def test_a_pack_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no pack at .*nowhere: make one with"):
        config(tmp_path / "nowhere", tmp_path / "run").check_places()


def test_a_folder_in_use_is_told_at_once(digits_pack: Pack, tmp_path: Path) -> None:
    config(digits_pack.path, tmp_path / "run").check_places()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="already holds a run; add --resume to continue it, or give"):
        config(digits_pack.path, tmp_path).check_places()
    with pytest.raises(UserError, match="is not a run's configuration"):
        config(digits_pack.path, tmp_path, resume=True).check_places()


def test_what_no_run_can_begin_with_is_told_at_once(
    digits_pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual: dict[str, Any] = {"pack": digits_pack.path, "out": tmp_path / "run"}
    rows = len(digits_pack.split("train"))
    barlow.Config(**usual, split="train", batch_size=rows).check_places()
    with pytest.raises(UserError, match=rf"expected at most the {rows} rows of the split, found {rows + 1}"):
        barlow.Config(**usual, split="train", batch_size=rows + 1).check_places()
    with pytest.raises(UserError, match="extra_labels: expected a label table nowhere, found none"):
        supervised.Config(**usual, extra_labels=(Path("nowhere"),)).check_places()
    with pytest.raises(UserError, match="resolution: expected at most 4096, found 5000; lower it"):
        supervised.Config(**usual, resolution=5000)
    with pytest.raises(UserError, match=r"trackers: expected one or more of aim, .*, found nope; change it"):
        supervised.Config(**usual, trackers=("nope",))
    with pytest.raises(UserError, match="backend ffcv: "):  # FFCV is missing, or the pack has another format
        supervised.Config(**usual, loader=LoaderOptions(backend="ffcv")).check_places()
    monkeypatch.setattr("loaders.options.find_spec", lambda name: None)
    for backend in ("dali", "ffcv"):
        with pytest.raises(MissingBackendError, match=rf"backend {backend}: .* cannot be imported \(No modu"):
            supervised.Config(**usual, loader=LoaderOptions(backend=backend)).check_places()


@pytest.mark.parametrize(
    ("device", "asked", "ranks", "expected"),
    [("cpu", None, "1", 2), ("cuda:0", None, "1", 12), ("cuda:3", None, "4", 3), ("cuda", 5, "4", 5)],
)
def test_threads_of_a_loader_are_the_ranks_share_of_the_cores(
    monkeypatch: pytest.MonkeyPatch, device: str, asked: int | None, ranks: str, expected: int
) -> None:
    """This holds if the network is on a GPU; if it is on the processor, the loader uses two threads."""
    monkeypatch.setattr("loaders.common.cores.available_cores", lambda: 12)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    options = on_device(LoaderOptions(num_threads=asked, seed=3), device)
    assert options == LoaderOptions(num_threads=expected, seed=3, device=device, channels_last=True)


def test_a_library_call_under_a_launcher_takes_its_share_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loaders.common.cores.available_cores", lambda: 8)
    for ranks, expected in (("", 8), ("4", 2), ("64", 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
        assert Crew(LoaderOptions()).num_threads == expected


@pytest.mark.parametrize(("kind", "expected"), [(supervised, "bfloat16"), (vae, "float32")])
def test_on_a_gpu_views_for_the_network_alone_come_in_bfloat16(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: Any, expected: str
) -> None:
    """Views of recipes that compare pixels stay float32, and so do those of loaders for measurements."""
    monkeypatch.setattr(AcceleratorState, "mixed_precision", "bf16")
    make_accelerator("no")
    config = kind.Config(pack=tmp_path, out=tmp_path / "run")
    assert config.training_options().dtype == "float32"  # on a processor
    on_gpu = config.loader_options()
    monkeypatch.setattr(type(config), "loader_options", lambda _: replace(on_gpu, device="cuda:0"))
    assert config.training_options().dtype == expected
    assert config.loader_options().dtype == "float32"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"split": "nowhere"},
            "split: expected a split .*, train, .*, found 'nowhere'; give one with --split",
        ),
        (
            {"init": Path("nowhere")},
            "init: expected a run folder, .* found nothing at nowhere; check",
        ),
    ],
)
def test_what_a_run_begins_with_is_told_at_once(
    options: dict[str, Any], said: str, digits_pack: Pack, tmp_path: Path
) -> None:
    given = {"pack": digits_pack.path, "out": tmp_path / "run", "split": "train", **options}
    with pytest.raises(UserError, match=said):
        barlow.Config(**given).check_places()


def test_a_split_of_the_probe_that_is_not_there_is_told_where_it_is_measured_on(
    digits_pack: Pack, tmp_path: Path
) -> None:
    usual = config(digits_pack.path, tmp_path / "run")
    unmeasured = replace(usual, probe_splits=("nowhere",))
    unmeasured.check_places()
    replace(usual, probe_every_epochs=1, probe_splits=("train", "test")).check_places()
    with pytest.raises(
        UserError, match=r"^probe_splits: expected a split of .* found 'nowhere'; give one with"
    ):
        replace(unmeasured, probe_every_epochs=1).check_places()


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        (barlow, {"micro_batch": 1}, "micro_batch: expected 2 or more, since BatchNorm"),
        (supervised, {"batch_size": 25, "mixing": "mixup"}, "batch_size: expected an even number with"),
        (supervised, {"micro_batch": 5, "mixing": "cutmix"}, "micro_batch: expected an even number with"),
        (temporal_ensembling, {"mixing": "mixup"}, "--mixing mixup, .*, found 25; change it"),
        (supervised, {"resolution": 32, "start_resolution": 32}, "start_resolution: expected less than .*32"),
    ],
)
def test_sizes_that_do_not_go_together_are_refused(
    kind: Any, options: dict[str, Any], said: str, digits_pack: Pack, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said):
        kind.Config(pack=digits_pack.path, out=tmp_path / "run", **options)
    if "micro_batch" not in options:  # a preset may still change the other options
        settled = kind.Config(pack=digits_pack.path, out=tmp_path / "run", preset="cpu", **options)
        with pytest.raises(UserError, match=said):
            settled.check_sizes()


def test_ranks_that_mix_an_odd_number_of_images_are_told_at_once(
    digits_pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_accelerator("no")
    mixed = supervised.Config(pack=digits_pack.path, out=tmp_path / "run", batch_size=6, mixing="mixup")
    mixed.training_options()
    monkeypatch.setattr(type(mixed), "loader_options", lambda _: LoaderOptions(num_ranks=2))
    with pytest.raises(
        UserError, match="an even number for each of 2 processes with --mixing mixup, found 3"
    ):
        mixed.training_options()


def test_a_pack_in_a_store_is_left_for_later(tmp_path: Path) -> None:
    config(Path("s3://bucket/pack"), tmp_path).check_places()


def test_a_resume_from_other_weights_is_refused(digits_pack: Pack, tmp_path: Path) -> None:
    start, out = tmp_path / "start", tmp_path / "run"
    start.mkdir()
    begun = barlow.Config(pack=digits_pack.path, out=out, init=start, backbone="tiny_resnet", resolution=16)

    def claim() -> None:
        save_backbone(start, TinyResNet(), {"backbone": "tiny_resnet", "resolution": "16"})
        with opened_run(out, "barlow", described(begun), RUNTIME_FIELDS, resume=True):
            (out / "metrics.jsonl").touch()

    claim()
    with pytest.raises(UserError, match="holds a run with init_weights = "):
        claim()
