"""What was measured on this machine decides about backend "auto"; nothing in its file is an error there."""

import dataclasses
import json
import os
import sys

import pytest
import torch

from loaders import build_loader, build_paired_loader, measured
from loaders.backends import explain_backend
from loaders.cache_folder import cache_folder
from loaders.errors import UserError
from loaders.kernels.encodings import ENCODING_RAW
from loaders.measured import Machine, Measurement, Rate, describe_views, keep_measurement, this_machine
from loaders.packs import Pack, StoreOptions, open_pack
from loaders.views import presets
from loaders.views.policy import RandAugment
from tests.loaders.conftest import write_pack

VIEWS = (presets.crop_flip(24),)
FIXMATCH = (presets.weak(24), presets.fixmatch_strong(24))
DALI_WINS = {"cpu": 1000.0, "dali": 3000.0}


@pytest.fixture(autouse=True)
def path(tmp_path, monkeypatch):
    """The file of measurements, which is not there yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    return measured.measurements_path()


def measurement(views=VIEWS, rates=DALI_WINS, spread=10.0, device="cpu", **changes):
    kept = Measurement(
        date="2026-11-22",
        machine=this_machine(),
        views=describe_views(views),
        resolution=views[0].resolution,
        encoding="jpeg",
        threads=2,
        rates=tuple(
            Rate(backend, device if backend == "dali" else "cpu", rate, spread)
            for backend, rate in rates.items()
        ),
    )
    return dataclasses.replace(kept, **changes)


def choice(views=VIEWS, device="cpu"):
    return explain_backend("auto", device, views=views)


def build(pack, views=VIEWS, **options):
    return build_loader(pack.split("train"), views, 8, num_threads=1, **options)


def test_views_are_told_apart_by_number_and_operations():
    same = describe_views((presets.crop_flip(224, min_scale=0.5, flip_p=0.0),))
    assert describe_views(VIEWS) == same == "1 view of HorizontalFlip, RandomResizedCrop"
    others = (VIEWS * 2, (presets.weak(24),), (presets.evaluation(24),), (presets.barlow_a(24),))
    assert len({same, *map(describe_views, others)}) == 5


def test_without_a_file_the_choice_says_how_to_measure():
    line = choice()
    assert line.startswith("cpu: the fused kernels")
    assert "tools/bench_loaders.py --pack PACK --backends cpu dali_backend --remember" in line
    assert "--backends cpu dali_gpu_backend --remember" in choice(device="cuda")
    assert explain_backend("auto") == line


def test_the_fastest_is_taken_and_its_batches_are_its_own(photo_pack):
    pytest.importorskip("nvidia.dali")
    keep_measurement(measurement())
    with (
        build(photo_pack) as auto,
        build(photo_pack, backend="dali") as dali,
        build(photo_pack, backend="cpu") as cpu,
    ):
        assert (
            auto.backend
            == choice()
            == (
                "dali: measured here on 2026-11-22, 3,000 images/s where cpu gave 1,000 "
                "(1 view of HorizontalFlip, RandomResizedCrop at 24 px, jpeg)"
            )
        )
        assert auto.fingerprint == dali.fingerprint != cpu.fingerprint
        found, same, other = (next(iter(loader.epoch(0))).views[0] for loader in (auto, dali, cpu))
        assert torch.equal(found, same)
        assert not torch.equal(found, other)


def test_a_paired_loader_goes_by_its_unlabelled_views(photo_pack):
    pytest.importorskip("nvidia.dali")
    split, plain = photo_pack.split("train"), (presets.weak(24),)
    keep_measurement(measurement(VIEWS))

    def chosen(labeled, unlabeled):
        with build_paired_loader(split, split, labeled, unlabeled, 2, 2, num_threads=1) as pairs:
            return pairs.backend

    assert chosen(plain, VIEWS).startswith("dali: measured")
    assert chosen(VIEWS, plain).startswith("cpu: the fused kernels")
    assert "cannot serve this loader: backend dali cannot do equalize" in chosen(FIXMATCH, VIEWS)


def test_cpu_stays_where_it_was_the_fastest():
    keep_measurement(measurement(rates={"cpu": 8264.4, "dali": 771.0, "ffcv": 8000.0}))
    assert choice().startswith(
        "cpu: measured here on 2026-11-22, 8,264 images/s where ffcv gave 8,000, dali gave 771 (1 view of"
    )


@pytest.mark.parametrize(("dali", "taken"), [(1020.0, "cpu"), (1021.0, "dali")])
def test_a_lead_within_both_spreads_is_noise(dali, taken):
    pytest.importorskip("nvidia.dali")
    keep_measurement(measurement(rates={"cpu": 1000.0, "dali": dali}, spread=10.0))
    assert choice().startswith(f"{taken}: measured")
    assert ("the lead of dali is within the noise" in choice()) == (taken == "cpu")


def test_the_nearest_resolution_within_a_factor_of_two_counts():
    for side, rate in ((48, 900.0), (96, 800.0), (224, 700.0)):
        keep_measurement(measurement(rates={"cpu": 1000.0, "dali": rate}, resolution=side))
    known = {side: choice((presets.crop_flip(side),)) for side in (23, 24, 64, 72, 110, 200, 448, 449)}
    at = {
        side: "nothing" if "not measured" in line else line.split(" at ")[1] for side, line in known.items()
    }
    assert [at[side].split(" ")[0] for side in at] == [
        "nothing",
        "48",
        "48",
        "96",
        "96",
        "224",
        "224",
        "nothing",
    ]


def test_a_later_measurement_replaces_that_of_the_same_work_alone(path):
    keep_measurement(measurement())
    keep_measurement(measurement(threads=4, rates={"cpu": 5.0, "dali": 4.0}))
    keep_measurement(measurement(date="2026-11-23", rates={"cpu": 7.0, "dali": 6.0}))
    assert [entry["date"] for entry in json.loads(path.read_text())] == ["2026-11-22", "2026-11-23"]
    assert choice().startswith("cpu: measured here on 2026-11-23, 7 images/s"), "the latest counts"
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize(
    "changes",
    [
        {"machine": dataclasses.replace(this_machine(), cpu="another")},
        {"machine": dataclasses.replace(this_machine(), cores=4096)},
        {"encoding": "raw"},
        {"views": FIXMATCH},
        {"device": "cuda"},
    ],
)
def test_what_was_measured_of_other_work_or_elsewhere_says_nothing(changes):
    keep_measurement(measurement(**changes))
    assert "not measured here for such views" in choice()


def test_a_gpu_counts_where_batches_go_to_it(monkeypatch):
    pytest.importorskip("nvidia.dali")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "this GPU")
    here = this_machine()
    keep_measurement(measurement(device="cuda", machine=Machine(here.cpu, here.cores, "another GPU")))
    assert choice(device="cuda").startswith("cpu: the fused kernels")
    keep_measurement(measurement(device="cuda", machine=Machine(here.cpu, here.cores, "this GPU")))
    assert choice(device="cuda").startswith("dali: measured")
    assert choice(device="cuda:7").startswith("cpu: the fused kernels")
    assert choice().startswith("cpu: the fused kernels"), "DALI on the processor was not measured"


def without_equalize(view):
    operations = tuple(
        dataclasses.replace(one, augments=tuple(a for a in one.augments if a.name != "equalize"))
        if isinstance(one, RandAugment)
        else one
        for one in view.operations
    )
    return dataclasses.replace(view, operations=operations)


def test_what_dali_cannot_do_is_left_to_cpu(photo_pack, monkeypatch):
    pytest.importorskip("nvidia.dali")
    keep_measurement(measurement(FIXMATCH))
    with build(photo_pack, FIXMATCH) as loader:
        assert loader.backend.startswith(
            "cpu: measured here on 2026-11-22, 1,000 images/s where dali gave 3,000"
        )
        assert "; dali cannot serve this loader: backend dali cannot do equalize" in loader.backend
    possible = (FIXMATCH[0], without_equalize(FIXMATCH[1]))
    assert choice(possible).startswith("dali: measured"), "the same names, and nothing that it lacks"
    with build(photo_pack, possible, dtype="bfloat16") as loader:
        assert loader.backend.startswith("cpu: measured")
        assert "found bfloat16" in loader.backend
    encoding = photo_pack.columns.encoding.copy()
    encoding[0] = ENCODING_RAW
    columns = dataclasses.replace(photo_pack.columns, encoding=encoding)
    with build(Pack(photo_pack.path, photo_pack.manifest, columns), possible) as loader:
        assert loader.backend.startswith("cpu: measured")
        assert "expected JPEG alone or pixels alone, found both" in loader.backend
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with build(photo_pack, possible) as loader:
        assert loader.backend.startswith("cpu: measured")
        assert "nvidia.dali cannot be imported" in loader.backend


def test_ffcv_is_taken_where_it_can_read(photo_pack, photo_beton_pack):
    pytest.importorskip("ffcv")
    keep_measurement(measurement(rates={"cpu": 1000.0, "ffcv": 2000.0}))
    with build(photo_beton_pack) as loader:
        assert loader.backend.startswith("ffcv: measured here on 2026-11-22, 2,000 images/s")
        assert len(list(loader.epoch(0))) == loader.steps_per_epoch
    with build(photo_pack) as loader:
        assert loader.backend.startswith("cpu: measured")
        assert "expected a pack of format ffcv" in loader.backend
    split = photo_beton_pack.split("train")
    with build_paired_loader(split, split, VIEWS, VIEWS, 2, 2, num_threads=1) as pairs:
        assert pairs.backend.startswith("cpu: measured")
        assert "expected one stream" in pairs.backend


def test_pixels_are_other_work_than_jpeg(tmp_path, photos):
    pytest.importorskip("nvidia.dali")
    pixels = write_pack(tmp_path, photos, encoding="raw")
    keep_measurement(measurement())
    with build(pixels) as loader:
        assert "not measured here for such views" in loader.backend
    keep_measurement(measurement(encoding="raw"))
    with build(pixels) as loader:
        assert loader.backend.startswith("dali: measured")


def test_packs_in_a_store_still_stream(photo_pack, tmp_path):
    keep_measurement(measurement())
    remote = open_pack(f"file://{photo_pack.path}", StoreOptions(cache_dir=tmp_path / "cache"))
    with build(remote) as loader:
        assert loader.backend.startswith("stream: file://")


def edited(change):
    def write(path):
        keep_measurement(measurement())
        (entry,) = json.loads(path.read_text())
        change(entry)
        path.write_text(json.dumps([entry]))

    return write


DAMAGE = {
    "cut": lambda path: path.write_text('[{"date": "2026'),
    "no text": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "empty": lambda path: path.write_text(""),
    "no list": lambda path: path.write_text("{}"),
    "a number": lambda path: path.write_text("[7]"),
    "deep": lambda path: path.write_text("[" * 100_000),
    "a folder": lambda path: path.mkdir(),
    "unknown field": edited(lambda entry: entry.update(batch=3)),
    "unknown field of a rate": edited(lambda entry: entry["rates"][1].update(median=3)),
    "missing field": edited(lambda entry: entry.pop("threads")),
    "no machine": edited(lambda entry: entry.update(machine="this")),
    "unknown backend": edited(lambda entry: entry["rates"][1].update(backend="stream")),
    "not a number": edited(lambda entry: entry["rates"][1].update(images_per_s=float("nan"))),
    "too large": edited(lambda entry: entry["rates"][1].update(images_per_s=10**400)),
    "a text": edited(lambda entry: entry["rates"][1].update(spread="1")),
    "a flag": edited(lambda entry: entry.update(resolution=True)),
    "no cpu": edited(lambda entry: entry["rates"].pop(0)),
    "twice": edited(lambda entry: entry["rates"].append(entry["rates"][1])),
    "no day": edited(lambda entry: entry.update(date="\x1b[2J")),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_tells_nothing_and_is_named(damage, path, photo_pack):
    path.parent.mkdir(parents=True)
    DAMAGE[damage](path)
    with build(photo_pack) as loader:
        line = loader.backend
    assert line.startswith("cpu: the fused kernels")
    assert f"not measured: {path}: expected what tools/bench_loaders.py --remember writes, found" in line
    assert line.endswith("delete it and measure again")
    assert line.isprintable()
    with pytest.raises(UserError, match="delete it"):
        keep_measurement(measurement())


def test_without_a_home_nothing_is_known(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("pathlib.Path.home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert choice().startswith("cpu: the fused kernels")


def test_no_test_sees_the_measurements_of_the_user(monkeypatch):
    monkeypatch.undo()
    assert cache_folder().parent.name.startswith("cache"), "see tests/conftest.py"
    assert not measured.measurements_path().exists()
