"""Predictions for folders, tars and packs equal the network's, in a table, as labels and as a picture."""

from __future__ import annotations

import csv
import errno
import os
import re
import tarfile
import zipfile
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image, ImageDraw

from engine.nets.backbones import TinyResNet
from engine.nets.classifier import Classifier, save_classifier
from engine.train.distributed import seed_everything
from loaders import LoaderOptions, build_loader
from loaders.common.errors import UserError
from loaders.packs import LabelTable, Pack, StoreOptions, open_pack
from loaders.packs.pack import is_pack
from loaders.views.evaluation import EvaluationView
from tools import predict
from tools.export import Config as ExportConfig
from tools.export import export
from tools.predict import Config, numbers_in_pack, run
from tools.views.sheet import fit_text

VIEW = EvaluationView.usual(16)
ONE = LoaderOptions(num_threads=1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, digits_pack: Pack) -> Path:
    seed_everything(0)
    folder = tmp_path_factory.mktemp("run")
    save_classifier(folder, Classifier(TinyResNet(), "tiny_resnet", VIEW, digits_pack.classes), "raw")
    return folder


def lines(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_images_that_come_later_are_predicted_too(
    trained: Path, digits_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, found = tmp_path / "photos", sorted((digits_folder / "test").rglob("*.jpg"))[:3]
    photos.mkdir()
    config = Config(network=trained, images=str(photos), out=tmp_path / "out", loader=ONE)
    for count, packed_again in ((2, False), (2, False), (3, True)):
        for path in found[:count]:
            (photos / path.name).write_bytes(path.read_bytes())
        assert len(lines(run(config))) == count
        assert ("images: packed again, since they have changed" in capsys.readouterr().err) == packed_again
    (photos / found[0].name).write_bytes(found[2].read_bytes())  # another image with the old name
    run(config)
    assert "images: packed again" in capsys.readouterr().err
    for path in photos.iterdir():
        path.unlink()
    (photos / "a.jpg").write_bytes(b"no image")
    with pytest.raises(UserError):  # nothing to pack, so the old pack stays
        run(config)
    (photos / "a.jpg").unlink()
    photos.rmdir()
    assert len(lines(run(config))) == 3, "the pack serves if its source is gone"
    assert "since the source cannot be read again" in capsys.readouterr().err


@pytest.mark.parametrize(("file", "told"), [("metrics.jsonl", True), ("model.safetensors", False)])
def test_only_a_run_is_to_be_exported_next(
    file: str, told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("config.json", file):  # an export in the form of Hugging Face has a config.json too
        (tmp_path / name).touch()
    config = Config(network=tmp_path, images="photos", out=tmp_path / "out")
    monkeypatch.setattr(predict, "command_line", lambda *_: config)
    monkeypatch.setattr(predict, "run", lambda _: None)
    predict.main()
    assert ("next: python tools/export.py --run" in capsys.readouterr().out) == told


def test_a_pack_is_predicted_as_the_network_says(trained: Path, digits_pack: Pack, tmp_path: Path) -> None:
    config = Config(network=trained, images=str(digits_pack.path), split="test", out=tmp_path, loader=ONE)
    path = run(config)
    network = run_network(trained)
    split = digits_pack.split("test")
    with build_loader(split, (VIEW.policy(),), 64, options=ONE, mode="eval") as loader, torch.no_grad():
        said = torch.cat([network(b.views[0])[b.valid].softmax(1) for b in loader.epoch(0)])
    found = lines(path)
    assert len(found) == len(split) == 445
    assert found[0].keys() >= {"file", "label", "confidence", "label_5", "confidence_5"}
    confidence, label = said.max(1)
    assert [line["label"] for line in found] == [digits_pack.classes[c] for c in label.tolist()]
    np.testing.assert_allclose([float(line["confidence"]) for line in found], confidence, atol=1e-4)
    assert found[7]["file"] == digits_pack.key(int(split.rows(np.array([7]))[0]))
    table = LabelTable.read(tmp_path / "labels.parquet")
    assert np.array_equal(table.label, label.numpy())
    assert digits_pack.checked_labels(table) is table
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (8 * 96, 8 * (96 + 14))


def test_a_pack_of_other_classes_gets_no_labels_and_keeps_none_of_before(
    trained: Path, digits_pack: Pack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = (*digits_pack.classes[:9], "a letter")
    other = tmp_path / "other"
    other.mkdir()
    save_classifier(other, Classifier(TinyResNet(), "tiny_resnet", VIEW, names), "raw")
    out, images = tmp_path / "out", str(digits_pack.path)
    run(Config(network=trained, images=images, split="test", out=out, sheet=8, loader=ONE))
    assert (out / "labels.parquet").is_file()
    capsys.readouterr()
    path = run(Config(network=other, images=images, split="test", out=out, sheet=8, loader=ONE))
    assert f"no labels.parquet is written: the classes of {images} ('0', '1'," in capsys.readouterr().err
    assert {line["label"] for line in lines(path)} <= set(names)
    assert not (out / "labels.parquet").exists()
    assert (out / "sheet.png").is_file()
    run(Config(network=other, images=images, split="test", out=out, sheet=None, loader=ONE))
    assert not (out / "sheet.png").exists()


def run_network(folder: Path) -> Classifier:
    from engine.nets.classifier import load_classifier

    return load_classifier(folder, "raw")


@pytest.mark.parametrize("form", ["torch_export", "safetensors"])
def test_an_export_predicts_a_folder_that_the_next_round_trains_on(
    form: str, trained: Path, digits_folder: Path, digits_pack: Pack, tmp_path: Path
) -> None:
    suffix = ".pt2" if form == "torch_export" else ".safetensors"
    network = export(ExportConfig(run=trained, form=form, out=tmp_path / f"w{suffix}"))  # type: ignore[arg-type]
    images = digits_folder / "test" / "3"  # a single folder of images, without classes
    out = tmp_path / "out"
    config = Config(
        network=network, images=str(images), out=out, form="parquet", threshold=0.15, sheet=None, loader=ONE
    )
    found = pyarrow.parquet.read_table(run(config)).to_pydict()
    assert sorted(found["file"]) == sorted(path.name for path in images.glob("*.jpg"))
    pack, table = open_pack(out / "pack"), LabelTable.read(out / "labels.parquet")
    assert pack.classes == digits_pack.classes
    assert len(table) == sum(c >= 0.15 for c in found["confidence"])
    assert pack.checked_labels(table) is table
    assert not (out / "sheet.png").exists()
    assert len(lines_of(run(config))) == len(found["file"])  # a second time, from the existing pack


@pytest.mark.parametrize(
    "kind", ["bytes", "tar", "tar.gz", "zip", "list", "pattern", "table", "table with keys"]
)
def test_each_source_is_named_as_its_user_names_it(
    kind: str, trained: Path, digits_folder: Path, tmp_path: Path
) -> None:
    files = sorted((digits_folder / "test" / "3").glob("*.jpg"))[:3]
    names = [f"new {path.name}" for path in files]
    folder = tmp_path / "photos"
    folder.mkdir()
    for path, name in zip(files, names, strict=True):
        (folder / name).write_bytes(path.read_bytes())
    source, expected = tmp_path / "given", names
    if kind == "bytes":  # a name that is not UTF-8
        source, expected = folder, [*names[1:], "caf\\xe9.jpg"]
        (folder / names[0]).rename(folder / os.fsdecode(b"caf\xe9.jpg"))
    elif kind in ("tar", "tar.gz"):
        source = source.with_suffix(f".{kind}")
        with tarfile.open(source, "w:gz" if kind == "tar.gz" else "w") as archive:
            archive.add(folder, "photos")
    elif kind == "zip":
        source = source.with_suffix(".zip")
        with zipfile.ZipFile(source, "w") as packed:
            for name in names:
                packed.write(folder / name, name)
    elif kind == "list":
        source, expected = source.with_suffix(".txt"), [str(folder / name) for name in names]
        source.write_text("\n".join(expected))
    elif kind == "pattern":
        source = tmp_path / "*.csv"
        expected = [f"photos/{name}" for name in names]
        (tmp_path / "a.csv").write_text(f"path\n{expected[0]}\n")
        (tmp_path / "b.csv").write_text("\n".join(["path", *expected[1:]]))
    else:
        source, columns = source.with_suffix(".parquet"), {"image": [path.read_bytes() for path in files]}
        expected = [f"given.parquet/{row}" for row in range(3)]
        if kind == "table with keys":
            columns["key"] = expected = ["a b/1.x", "a b/2.x", "3"]  # type: ignore[assignment]
        pyarrow.parquet.write_table(pyarrow.table(columns), source)
    config = Config(network=trained, images=str(source), out=tmp_path / "out", sheet=None, loader=ONE)
    assert sorted(line["file"] for line in lines(run(config))) == sorted(expected)


def test_a_url_may_name_a_pack_or_what_is_packed_first(
    trained: Path, digits_folder: Path, digits_pack: Pack, tmp_path: Path
) -> None:
    fs = fsspec.filesystem("memory")
    (path,) = sorted((digits_folder / "test" / "3").glob("*.jpg"))[:1]
    fs.pipe_file("/photos/a.jpg", path.read_bytes())
    config = Config(network=trained, images="memory://photos", out=tmp_path / "out", sheet=None, loader=ONE)
    assert [line["file"] for line in lines(run(config))] == ["a.jpg"]
    fs.put(str(digits_pack.path), "/packs/digits", recursive=True)
    store = StoreOptions(cache_dir=tmp_path / "cache")
    for url in ("memory://packs/digits", "memory://packs/digits/"):
        assert is_pack(url, store)
    assert not is_pack("memory://photos", store)
    assert is_pack(str(digits_pack.path))
    assert not is_pack(str(digits_folder))


def test_a_source_that_is_gone_leaves_the_keys(
    trained: Path, digits_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (path,) = sorted((digits_folder / "test" / "3").glob("*.jpg"))[:1]
    (photos / "a.jpg").write_bytes(path.read_bytes())
    config = Config(network=trained, images=str(photos), out=tmp_path / "out", sheet=None, loader=ONE)
    assert lines(run(config))[0]["file"] == "a.jpg"
    (photos / "a.jpg").unlink()
    photos.rmdir()
    assert lines(run(config))[0]["file"] == "a"
    assert "the column file has keys" in capsys.readouterr().err


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), PermissionError("not yours")])
def test_predictions_outlive_a_source_that_cannot_be_listed(
    error: OSError, trained: Path, digits_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(split: object, columns: object, within: Path) -> None:
        assert within == tmp_path  # in --out's folder, since /tmp may be small
        raise error

    monkeypatch.setattr("tools.predict.listed", fail)
    photos = tmp_path / "photos"
    photos.mkdir()
    (path,) = sorted((digits_folder / "test" / "3").glob("*.jpg"))[:1]
    (photos / "a.jpg").write_bytes(path.read_bytes())
    config = Config(network=trained, images=str(photos), out=tmp_path, sheet=None, loader=ONE)
    assert [line["file"] for line in lines(run(config))] == ["a"]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ((".",), ""),
        (
            ("3", "4"),
            "predict: labels.parquet lacks '0', '1', '2' and 5 more: the folders in {} ('3', '4') are ",
        ),
        (
            ("3", "Ems"),
            "predict: no labels.parquet is written: the folders in {} ('3', 'Ems') are not the 10 ",
        ),
    ],
)
def test_the_last_line_counts_images_and_folders_are_not_called_classes_of_a_pack(
    names: tuple[str, ...],
    said: str,
    trained: Path,
    digits_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    files = sorted((digits_folder / "test" / "3").glob("*.jpg"))[:4]
    for number, path in enumerate(files):
        folder = photos / names[number % len(names)]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / path.name).write_bytes(path.read_bytes())
    (photos / names[0] / "torn.jpg").write_bytes(b"no picture")
    (photos / ".thumbnails").mkdir()  # a hidden folder: its images are not packed
    (photos / ".thumbnails" / "a.jpg").write_bytes(files[0].read_bytes())
    run(Config(network=trained, images=str(photos), out=out, sheet=None, loader=ONE))
    shown = capsys.readouterr()
    where = out / "pack" / "quarantine.jsonl"
    last = f"predict: 4 of 4 images -> {out / 'predictions.csv'}, 2 inputs quarantined, reasons in {where}"
    assert shown.out.splitlines()[-1] == last
    assert shown.err.startswith(said.format(photos))
    assert bool(shown.err) == bool(said)
    assert "the pack" not in shown.err


def test_classes_are_not_looked_for_one_by_one(digits_pack: Pack, tmp_path: Path) -> None:
    class Names(tuple[str, ...]):
        def __contains__(self, name: object) -> bool:
            raise AssertionError("all classes are gone through for each class")

    config = Config(network=tmp_path, images=str(digits_pack.path), out=tmp_path)
    numbers = numbers_in_pack(config, digits_pack, Names(reversed(digits_pack.classes)))
    assert numbers is not None
    assert numbers.tolist() == [*range(9, -1, -1)]


def test_refused_images_leave_no_folder(trained: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "torn.jpg").write_bytes(b"no picture")
    for images in (photos, photos / "torn.jpg"):
        with pytest.raises(UserError):
            run(Config(network=trained, images=str(images), out=tmp_path / "new" / "out", loader=ONE))
        assert not (tmp_path / "new").exists()


def lines_of(path: Path) -> list[str]:
    return pyarrow.parquet.read_table(path)["file"].to_pylist()


def test_mistakes_are_named(tmp_path: Path, trained: Path, digits_pack: Pack) -> None:
    with pytest.raises(UserError, match="expected a share"):
        Config(network=trained, images="x", out=tmp_path, threshold=1.5)
    empty, photos = tmp_path / "empty", tmp_path / "photos" / "cats"
    empty.mkdir()
    photos.mkdir(parents=True)
    (photos / "1.jpg").write_bytes(b"a picture")
    with pytest.raises(UserError, match=f"images: expected images, found no file in {empty}"):
        Config(network=trained, images=str(empty), out=tmp_path / "out").check_places()
    with pytest.raises(UserError, match=r"no images at nowhere: expected a folder, .*; check the path"):
        Config(network=trained, images="nowhere", out=tmp_path / "out").check_places()
    for source in (f"{photos}#labels=list.csv", "s3://bucket/photos", str(tmp_path / "*.tar")):
        Config(network=trained, images=source, out=tmp_path / "out").check_places()
    with pytest.raises(UserError, match=f"network: .* found a folder without weights at {photos.parent}"):
        Config(network=photos.parent, images="x", out=tmp_path / "out").check_places()
    Config(network=trained, images=str(photos), out=tmp_path / "out").check_places()
    with pytest.raises(UserError, match="expected one in"):
        run(Config(network=tmp_path, images=str(digits_pack.path), out=tmp_path / "out", loader=ONE))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("87% cat", "87% cat"),
        ("87% reptiles_insects", "87% reptiles_insects"),
        ("87% " + "long" * 9, r"87% (long)+l?o?n?\.\.\."),
    ],
)
def test_a_long_name_fits_below_its_picture(text: str, shown: str) -> None:
    pen = ImageDraw.Draw(Image.new("RGB", (96, 16)))
    words, font = fit_text(pen, text, 94, (10, 9, 8))
    assert re.fullmatch(shown, words)
    assert pen.textlength(words, font) <= 94
