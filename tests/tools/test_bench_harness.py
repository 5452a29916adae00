import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import psutil
import pytest

from loaders.common.errors import UserError
from tests.in_process import run_script
from tests.loaders.packs.inputs import pack
from tools import bench_loaders
from tools.bench import harness
from tools.bench import measure as one_run
from tools.bench.contender import Contender, Views, find_contender
from tools.bench.corpus import Corpus, open_corpus, pack_images, read_corpus, write_beton, write_tar
from tools.bench.measure import MISSING, check_views, measure
from tools.bench.names import BackendName, LimitName, PeerName
from tools.bench.table import notes
from tools.bench.workload import Workload

ROOT = Path(__file__).resolve().parents[2]
WORK = Workload("crop_flip_pair", resolution=8, batch_size=4)
PIXELS = np.arange(4 * 3 * 8 * 8, dtype=np.uint8).reshape(4, 3, 8, 8)


def endless(workload: Workload, corpus: Corpus) -> Iterator[Views]:
    return itertools.repeat((PIXELS, PIXELS))


def contender(name: str, **changes: object) -> Contender:
    return Contender(name, ("numpy",), "a test", "", endless, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from PIL import Image

    folder = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(0)
    for number in range(10):
        pixels = noise.integers(0, 255, (40, 40 + number % 2, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.jpg")
    return folder


@pytest.fixture(scope="module")
def corpus(images: Path) -> Corpus:
    cache = images.parent / "cache"
    return open_corpus(pack_images(images, cache, batch_size=4, num_images=25), "", cache, batch_size=4)


def test_a_corpus_gives_everyone_the_same_bytes(corpus: Corpus, images: Path) -> None:
    assert corpus.num_images == 25
    assert not corpus.uniform
    assert read_corpus(corpus.root) == corpus
    sources = {path.read_bytes() for path in images.glob("*.jpg")}
    assert {path.read_bytes() for path in corpus.paths} == sources
    write_tar(WORK, corpus)
    write_beton(WORK, corpus)
    tar = corpus.tar.read_bytes()
    (beton,) = (corpus.beton_pack("jpeg") / "shards").glob("*.beton")
    shard = beton.read_bytes()
    assert all(source in tar and source in shard for source in sources)


def test_a_corpus_of_pixels_is_refused(images: Path, tmp_path: Path) -> None:
    raw = pack(tmp_path / "raw", f"train={images}", encoding="raw")
    with pytest.raises(UserError, match=r"^pack: expected JPEG images, found pixels in .*raw; pack with"):
        open_corpus(raw.path, "", tmp_path / "cache", batch_size=2)
    assert not (tmp_path / "cache").exists()


def test_a_measurement_counts_images_over_time(corpus: Corpus) -> None:
    running = 1 + len(psutil.Process().children(recursive=True))  # other tests keep rank processes alive
    timing = measure(contender("one"), WORK, corpus, seconds=0.2, warmup_s=0.0)
    assert timing.images % 4 == 0
    assert timing.images > 0
    assert 0.2 <= timing.seconds < 1.0
    assert timing.first_batch_s < 0.1
    assert timing.num_processes == running


@pytest.mark.parametrize(
    ("views", "match"),
    [
        ((PIXELS,), "expected 2 of"),
        ((PIXELS, PIXELS[:3]), r"found \[\(4, 3, 8, 8\), \(3, 3, 8, 8\)\]"),
        ((PIXELS, PIXELS * 0), "constant"),
    ],
)
def test_wrong_views_are_no_measurement(views: Views, match: str) -> None:
    check_views((PIXELS, PIXELS.transpose(0, 2, 3, 1)), WORK)
    with pytest.raises(ValueError, match=match):
        check_views(views, WORK)


def test_runs_take_turns_and_failures_drop_out(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    def spawn(benchmark: harness.Benchmark, one: Contender, prepare: bool) -> harness.Record:
        if one.name == "b":
            return {"status": "failed", "reason": "it broke"}
        return {"status": "ok", "images": 100, "seconds": 2.0, "cpu_s": 3.0}

    monkeypatch.setattr(harness, "_spawn", spawn)
    refuser = contender("d", refuses=lambda workload: "no such operation")
    benchmark = harness.Benchmark([*map(contender, "abc"), refuser], WORK, corpus, runs=3)
    absent = harness.prepare(benchmark)
    assert {name: record["reason"] for name, record in absent.items()} == {"d": "no such operation"}
    records = list(harness.rounds(benchmark, absent))
    assert [(r["run"], r["contender"]) for r in records] == [
        (0, "a"), (0, "b"), (0, "c"), (1, "c"), (1, "a"), (2, "c"), (2, "a"),
    ]  # fmt: skip
    assert records[0]["images_per_s"] == 50
    assert records[0]["cpu_s_per_1000"] == 30
    assert "images_per_s" not in records[1]
    assert records[0]["versions"] == {"numpy": np.__version__}


@pytest.mark.parametrize("name", [*get_args(BackendName), *get_args(PeerName), *get_args(LimitName)])
def test_every_name_leads_to_its_contender(name: str) -> None:
    assert find_contender(name).name == name


def test_a_contender_that_is_not_installed_is_told_by_a_code(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(name: str) -> Contender:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(one_run, "find_contender", absent)
    monkeypatch.setattr(one_run, "pin", lambda cores: None)
    run = one_run.Run("torchvision_pil", corpus.root, tmp_path / "out", WORK, 1.0, 0.0)
    assert one_run.main(run) == MISSING
    assert "No module named 'torchvision_pil'; install it" in capsys.readouterr().err


def test_there_is_no_other_contender() -> None:
    with pytest.raises(ValueError, match="expected a known name"):
        find_contender("nobody")


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_tool_writes_a_record_per_run_and_a_table(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    """Contenders that can run are measured; others are refused, or named as missing with a remedy.

    Each contender takes a separate process, so the short form leaves out those that add nothing to the test.
    """
    for module in ("spdl/__init__.py", "nvidia/__init__.py"):
        blocked = tmp_path / "blocked" / module
        blocked.parent.mkdir(parents=True, exist_ok=True)
        blocked.write_text("raise ImportError('not here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "blocked"))  # for the measuring processes
    out = tmp_path / "records.jsonl"
    measured = ("cpu", "torchvision_v2") if whole else ("cpu",)
    done = run_script(
        "tools/bench_loaders.py",
        "--images", images, "--num-images", "32", "--cache", tmp_path, "--json", out,
        "--batch-size", "8", "--resolution", "32", "--runs", "1", "--seconds", "0.2", "--warmup-s", "0",
        "--limits", "--backends", "cpu", *(["dali_backend"] if whole else []),
        *(["--peers", *measured[1:], "ffcv", "spdl"] if whole else ["--peers"]),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    records = {record["contender"]: record for record in map(json.loads, out.read_text().splitlines())}
    expected = dict.fromkeys(measured, "ok")
    expected |= {"spdl": "missing", "ffcv": "refused", "dali_backend": "missing"} if whole else {}
    assert {name: record["status"] for name, record in records.items()} == expected
    for name in measured:
        assert records[name]["images_per_s"] > 0
        assert records[name]["cpu_s_per_1000"] > 0
        assert 2**26 < records[name]["peak_anonymous_bytes"] <= records[name]["peak_rss_bytes"]
    if whole:
        assert "spdl missing: not here; install it: pip install '.[peers]'" in done.stdout
        assert "ffcv refused: no hue" in done.stdout
        assert records["torchvision_v2"]["num_processes"] == 1 + 2
        assert "cpu faster by" in done.stdout.replace("\n", " ") or "torchvision_v2" in done.stdout
        assert "dali_backend missing: backend dali: nvidia.dali cannot be imported" in done.stdout


def _ran(contender: str, images_per_s: float) -> dict:
    return {
        "contender": contender, "kind": "backend", "status": "ok", "images_per_s": images_per_s,
        "cpu_s_per_1000": 1.0, "peak_anonymous_bytes": 1, "peak_rss_bytes": 1, "first_batch_s": 1.0,
        "differences": "",
    }  # fmt: skip


def test_the_option_of_the_fastest_backend_is_named_unless_noise_hides_it() -> None:
    runs = [_ran("cpu", 100.0), _ran("cpu", 110.0), _ran("dali_backend", 200.0), _ran("dali_backend", 210.0)]
    assert notes(runs) == ["fastest of our backends here: --backend dali"]
    assert notes(runs[:2]) == []
    close = [*runs[:2], _ran("dali_backend", 104.0), _ran("dali_backend", 112.0)]
    assert "equally fast" in notes(close)[0]


def test_by_default_there_are_no_more_threads_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for cores in (1, 2, 8):
        monkeypatch.setattr(bench_loaders, "available_cores", lambda cores=cores: cores)
        found.append(bench_loaders.Config().num_threads)
    assert found == [1, 2, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "one of --pack and --images"),
        (("--images", "nowhere"), "expected a folder"),
        (("--pack", "nowhere"), "nowhere: make one with"),
        (("--images", "tests", "--runs", "0"), "runs: expected more than 0, found 0"),
        (("--images", "tests", "--cache", "build/bench"), "expected JPEG files, found none"),
    ],
)
def test_mistakes_cost_one_line(arguments: tuple[str, ...], message: str) -> None:
    done = run_script("tools/bench_loaders.py", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
