"""A table of results from scratch to its page: within its budget, stopped and resumed."""

from __future__ import annotations

import io
import math
import signal
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from rich.console import Console

from engine.report.figures import Series
from engine.train.metrics import read_metrics
from loaders.common.errors import UserError
from loaders.common.files import to_json
from loaders.common.json_text import parse_json
from loaders.packs import Pack
from tests.in_process import run_script
from tests.tools.peers.test_airbench import STAND_IN
from tools import reproduce
from tools.comparison.cpu_budget import CommandFailed, CommandStopped
from tools.comparison.results import Held, Record
from tools.reproduce import Config, keep_question, prepare_pack, run
from tools.reproduction import page, tables
from tools.reproduction.measure import (
    Bench,
    Given,
    Stopped,
    _results,
    arguments_of,
    costs_of,
    measure_row,
    take_budget,
)
from tools.reproduction.page import accuracy_table, write_page
from tools.reproduction.plan import ResultTable, Row, Stage
from tools.reproduction.tables import SCALES, make_table

pytestmark = pytest.mark.usefixtures("blank_drawings")


@pytest.fixture(autouse=True)
def small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use a network that trains quickly; tests/recipes/test_supervised.py trains that of the tables."""
    monkeypatch.setattr(tables, "NETWORK", "test_resnet")
    monkeypatch.setattr(reproduce, "preload", lambda num_threads: None)


@dataclass
class Here:
    """Runs scripts in this process with simulated seconds per step; can stop or exceed the limit in one."""

    stop_in: str = ""
    exceed_in: str = ""
    commands: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    limits: dict[str, float | None] = field(default_factory=dict)  # by the log's name

    def __call__(self, script: str, arguments: Sequence[str], log: Path, limit_s: float | None) -> float:
        self.commands.append((script, tuple(arguments)))
        self.limits[log.stem] = limit_s
        length = next((o for o in ("--steps", "--pretrain.epochs") if o in arguments), None)
        steps = int(arguments[arguments.index(length) + 1]) if length else 0
        if self.exceed_in and self.exceed_in in str(log):
            raise CommandFailed("over", 5.0, -signal.SIGXCPU)
        stopping = self.stop_in and self.stop_in in str(log) and "--steps" in arguments
        words = (*arguments, "--max-steps", "2") if stopping else arguments
        ended = run_script(script, *words)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        if stopping:
            self.stop_in = ""
            raise CommandStopped(0.9)
        return 0.1 + 0.35 * steps


def bench_of(config: Config, pack: Pack, here: Here) -> Bench:
    table = make_table(config.table, config.scale, config.init, config.peer)
    out = config.out / f"{config.table}-{config.scale}"
    return Bench(pack.path, out, 1, lambda line: None, table, here)


def measure(config: Config, pack: Pack, here: Here) -> str:
    return run(config, Console(file=io.StringIO()), here)


def record(out: Path, name: str) -> Record:
    found: Record = parse_json((out / "records" / f"{name}.json").read_bytes())
    return found


def test_the_budgeted_table_is_stopped_and_gone_on_with(little_pack: Pack, tmp_path: Path) -> None:
    config = Config(table="budget", scale="tiny", out=tmp_path, pack=little_pack.path, rows=("pretrained",))
    out = tmp_path / "budget-tiny"
    first = Here(stop_in="row-pretrained-4-labels")
    with pytest.raises(Stopped):
        measure(config, little_pack, first)
    kept = {path: path.read_bytes() for path in (out / "records").glob("*.json")}
    assert {path.stem for path in kept} == {
        "machine", "cost-pretrained", "trial-pretrained-0", "trial-pretrained-1",
    }  # fmt: skip
    assert not (out / "records.md").exists()
    second = Here()
    page = measure(config, little_pack, second)
    assert all(path.read_bytes() == content for path, content in kept.items())
    assert "| own pre-training, fine-tuned |" in page
    # Two stages and the test: the stopped stage continues, and no finished one is repeated.
    assert [script for script, _ in second.commands] == [
        "recipes/vicreg.py", "recipes/supervised.py", "recipes/evaluate.py",
    ]  # fmt: skip
    found = record(out, "row-pretrained-4-labels-seed-0")
    pretraining, training = found["steps"]
    run_folder = out / "runs" / "row-pretrained-4-labels-seed-0"
    shared = out / "runs" / "row-pretrained-any-labels-seed-0"
    for folder, steps in ((shared / "pretrain", pretraining), (run_folder / "train", training)):
        taken = [line["step"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]
        assert taken[-1] == steps
        assert len(set(taken)) == len(taken)
    # The time of both commands counts, and the budget covers all stages together.
    assert found["cpu_s"] == pytest.approx(0.9 + 0.2 + 0.35 * (pretraining + training))
    assert 0.1 + 0.35 * pretraining <= 0.8 * found["budget_s"]
    assert 0.1 + 0.35 * training <= 0.2 * found["budget_s"]
    assert not found["over_budget"]
    assert str(tmp_path) not in " ".join(found["commands"])
    assert 0.0 < found["results"][0]["top1"] <= 1.0
    trials = [record(out, f"trial-pretrained-{number}") for number in range(2)]
    assert first.limits["trial-pretrained-0"] is None  # no limit, since it also validates
    assert first.limits["row-pretrained-4-labels-seed-0"] is not None
    best = max(trials, key=lambda trial: trial["validation_top1"])
    assert found["setting"] == best["setting"]
    lines = (out / "records.jsonl").read_text().splitlines()
    labels = [parse_json(line) for line in lines if '"kind": "labels"' in line]
    assert len(labels[0]["rows"]) == 40


def in_no_time(script: str, arguments: Sequence[str], log: Path, limit_s: float | None) -> float:
    """Leave the accuracies that a table reads from a run, without one; return simulated seconds."""
    out = Path(arguments[arguments.index("--out") + 1])
    out.mkdir(parents=True, exist_ok=True)
    if script == "recipes/evaluate.py":
        content = {"views": {"16": {"top1": 0.5}}, "mean_of_views": {"top1": 0.5}}
        (out / "classification.json").write_bytes(to_json(content))
    (out / "metrics.jsonl").write_text('{"step": 1, "validation_top1": 0.5}\n')
    return 0.1 + 0.1 * int(arguments[arguments.index("--steps") + 1] if "--steps" in arguments else 0)


def test_pretraining_is_shared_by_all_label_counts_and_counts_in_each(tmp_path: Path) -> None:
    table = make_table("budget", "tiny")
    table = replace(table, labels_per_class=(2, 4), seeds={2: (0, 1), 4: (0,)}, calibration=(2, 6))
    row = replace(next(row for row in table.rows if row.name == "pretrained"), settings=((),))
    trained: list[tuple[str, str]] = []

    def noted(script: str, arguments: Sequence[str], log: Path, limit_s: float | None) -> float:
        out = Path(arguments[arguments.index("--out") + 1])
        if script != "recipes/evaluate.py" and "calibration" not in str(log):
            init = arguments[arguments.index("--init") + 1] if "--init" in arguments else ""
            trained.append((str(out.relative_to(tmp_path / "runs")), init))
        return in_no_time(script, arguments, log, limit_s)

    bench = Bench(tmp_path / "pack", tmp_path, 1, lambda line: None, table, noted)
    records = [*measure_row(bench, row, (4,)), *measure_row(bench, row, (), (0,)), *measure_row(bench, row)]
    shared = [f"row-pretrained-any-labels-seed-{seed}/pretrain" for seed in (0, 1)]
    inits = [str(tmp_path / "runs" / folder) for folder in shared]
    assert trained == [
        (shared[0], ""), ("row-pretrained-4-labels-seed-0/train", inits[0]),
        ("row-pretrained-2-labels-seed-0/train", inits[0]),
        (shared[1], ""), ("row-pretrained-2-labels-seed-1/train", inits[1]),
    ]  # fmt: skip
    assert [(r["labels_per_class"], r["seed"]) for r in records] == [
        (4, 0),
        (2, 0),
        (4, 0),
        (2, 0),
        (2, 1),
        (4, 0),
    ]
    for record in records:
        assert record["cpu_s"] == pytest.approx(0.2 + 0.1 * sum(record["steps"]))


class Shown(io.StringIO):
    """The console of a command; calls a function once the command says that it waits."""

    def __init__(self, waits: Callable[[], None]) -> None:
        super().__init__()
        self._waits = waits

    def write(self, text: str) -> int:
        if "; waiting" in text:
            self._waits()
        return super().write(text)


def test_two_commands_share_a_table_and_train_nothing_twice(
    little_pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tables.SCALES, "tiny", replace(SCALES["tiny"], seeds={2: (0,), 4: (0,)}))
    config = Config(table="budget", scale="tiny", out=tmp_path, pack=little_pack.path)
    waits = threading.Event()
    pages: dict[str, str] = {}
    ran: Counter[tuple[str, str]] = Counter()
    shown = Shown(waits.set)

    def command(script: str, arguments: Sequence[str], log: Path, limit_s: float | None) -> float:
        out = arguments[arguments.index("--out") + 1]
        if "calibration" not in out:
            ran[script, out] += 1
        if out.endswith("row-pretrained-any-labels-seed-0/pretrain"):  # meanwhile a second command begins
            assert ran[script, out] == 1, "two commands train it at once"
            second.start()
            assert waits.wait(10), shown.getvalue()
        return in_no_time(script, arguments, log, limit_s)

    second = threading.Thread(target=lambda: pages.update(second=run(config, Console(file=shown), command)))
    pages["first"] = run(config, Console(file=io.StringIO()), command)
    second.join(10)
    assert set(ran.values()) == {1}
    left = shown.getvalue().partition("; waiting")[0]  # the second command measured all else before
    assert "row-rounds-4-labels-seed-0: " in left
    assert "row-pretrained-2-labels-seed-0: own" not in left
    found = [path.stem for path in (tmp_path / "budget-tiny" / "records").glob("row-*.json")]
    assert len(found) == 2 * len(make_table("budget", "tiny").rows)
    assert pages["first"] == pages["second"] == (tmp_path / "budget-tiny" / "records.md").read_text()


def test_no_row_is_begun_while_another_command_measures_the_time_that_it_has(tmp_path: Path) -> None:
    table = make_table("speed", "tiny", peer="airbench94.py")
    peer, compact = table.rows
    asked: list[str] = []

    def measured(script: str, arguments: Sequence[str], log: Path, limit_s: float | None) -> float:
        with pytest.raises(Held, match="row-airbench94-all-labels-seed-0"):
            take_budget(bench, compact)
        asked.append(script)
        out = Path(arguments[arguments.index("--out") + 1])
        out.mkdir(parents=True)
        content = {"train_cpu_s": 7.0, "top1": 0.5, "top1_one_view": 0.4}
        (out / "peer.json").write_bytes(to_json(content))
        return 8.0

    bench = Bench(tmp_path / "pack", tmp_path, 1, lambda line: None, table, measured)
    assert len(list(measure_row(bench, peer))) == len(asked) == 1
    take_budget(bench, compact)
    assert bench.table.budget_s == 7.0


def test_a_row_over_its_budget_has_no_accuracy(little_pack: Pack, tmp_path: Path) -> None:
    config = Config(table="speed", scale="tiny", out=tmp_path, pack=little_pack.path, rows=("compact",))
    page = measure(config, little_pack, Here(exceed_in="row-compact-all"))
    found = record(tmp_path / "speed-tiny", "row-compact-all-labels-seed-0")
    assert found["over_budget"]
    assert found["results"] == []
    assert "(over its budget)" in page


def test_rows_have_the_time_of_the_peer_that_is_measured_first(little_pack: Pack, tmp_path: Path) -> None:
    source = tmp_path / "airbench94.py"
    source.write_text(STAND_IN.replace("== 2.0", "== 9.9"))
    config = Config(
        table="speed", scale="tiny", out=tmp_path / "out", pack=little_pack.path, peer=str(source),
        rows=("airbench94", "compact"),
    )  # fmt: skip
    page = measure(config, little_pack, Here(exceed_in="row-compact"))
    out = tmp_path / "out" / "speed-tiny"
    peer = record(out, "row-airbench94-all-labels-seed-0")
    assert record(out, "row-compact-all-labels-seed-0")["budget_s"] == peer["cpu_s"]
    assert "| airbench94 on the CPU |" in page
    assert "| airbench94 on the CPU, one view in the test |" in page
    several, one = (result["top1"] for result in peer["results"])
    assert several == 0.75
    assert one == parse_json(next(out.rglob("peer.json")).read_bytes())["top1_one_view"]


def test_one_view_and_all_of_the_test_are_two_lines(tmp_path: Path) -> None:
    table = replace(make_table("speed", "tiny"), testing=("--flips",))
    (row,) = table.rows

    def evaluated(script: str, arguments: Sequence[str], log: Path, limit_s: float | None) -> float:
        assert script == "recipes/evaluate.py"
        assert "--flips" in arguments
        tested = Path(arguments[arguments.index("--out") + 1])
        tested.mkdir(parents=True)
        views = {"32": {"top1": 0.5}, "32 mirrored": {"top1": 0.25}}
        content = {"views": views, "mean_of_views": {"top1": 0.75}}
        (tested / "classification.json").write_bytes(to_json(content))
        return 1.0

    bench = Bench(tmp_path / "pack", tmp_path / "out", 1, lambda line: None, table, evaluated)
    results = _results(bench, row, tmp_path / "run", "row-compact")
    measured = {"kind": "row", "row": row.name, "cpu_s": 4.0, "over_budget": False, "labels_per_class": 0}
    measured |= {"settings_tried": 0}
    shown = accuracy_table(table, [{**measured, "results": results}])
    assert [(line.title, line.shares) for line in shown.rows] == [
        (row.title, ((0.75,),)), (f"{row.title}, one view in the test", ((0.5,),)),
    ]  # fmt: skip


def test_a_fast_method_is_calibrated_by_a_longer_run(tmp_path: Path) -> None:
    table = replace(make_table("speed", "tiny"), budget_s=1000.0, calibration=(8, 48))
    taken: list[int] = []

    def steps_slow_down(script: str, arguments: Sequence[str], log: Path, limit_s: float | None) -> float:
        taken.append(int(arguments[arguments.index("--steps") + 1]))
        return 1.0 + 0.1 * taken[-1] + 0.01 * max(0, taken[-1] - 48)

    bench = Bench(tmp_path / "pack", tmp_path / "out", 1, lambda line: None, table, steps_slow_down)
    (cost,) = costs_of(bench, table.rows[0])
    assert cost is not None
    share = table.rows[0].stages[0].share
    longer, foretold = taken.pop(), 0.02 * share * 1000.0
    assert taken == [1, 8, 48, 8]
    assert longer == pytest.approx((foretold - 1.0) / 0.1, abs=1)
    assert cost.per_step == pytest.approx(0.1 + 0.01 * (longer - 48) / (longer - 8))


def test_what_a_stage_compiles_is_no_part_of_its_steps(tmp_path: Path) -> None:
    compiled: set[str] = set()

    def first_run_compiles(script: str, arguments: Sequence[str], log: Path, limit_s: float | None) -> float:
        seconds = 1.0 + 0.1 * int(arguments[arguments.index("--steps") + 1])
        seconds += 0.0 if script in compiled else 30.0
        compiled.add(script)
        return seconds

    table = make_table("budget", "tiny")
    bench = Bench(tmp_path / "pack", tmp_path / "out", 1, lambda line: None, table, first_run_compiles)
    for row in table.rows:
        costs = costs_of(bench, row)
        assert [cost.per_step for cost in costs if cost] == pytest.approx([0.1] * len(row.stages))


def test_frozen_features_take_one_command(little_pack: Pack, tmp_path: Path) -> None:
    config = Config(table="start", scale="tiny", out=tmp_path, pack=little_pack.path)
    page = measure(config, little_pack, Here())
    assert "| linear probe |" in page
    assert "1 per class | 4 per class" in page
    found = record(tmp_path / "start-tiny", "row-features")
    assert len(found["results"]) == 3 * 2 * 3


@pytest.mark.slow
def test_the_pipelines_stages_are_rows(little_pack: Pack, tmp_path: Path) -> None:
    config = Config(table="ablation", scale="tiny", out=tmp_path, pack=little_pack.path)
    page = measure(config, little_pack, Here())
    assert "| fine tune |" in page
    assert "| tta |" in page


def test_stages_are_compared_in_pairs_over_seeds() -> None:
    table = replace(make_table("ablation", "full"), labels_per_class=(25,), seeds={25: (0, 1)})

    def of(seed: int, *shares: float) -> Record:
        results = [
            {"title": title, "top1": top1}
            for title, top1 in zip(("scratch", "fine_tune", "rounds"), shares, strict=True)
        ]
        return {"kind": "row", "row": "pipeline", "labels_per_class": 25, "seed": seed, "results": results}

    rows = accuracy_table(table, [of(0, 0.3, 0.4, 0.5), of(1, 0.3, 0.5, 0.54)]).rows
    assert [row.facts for row in rows] == [("", ""), ("", ""), ("+7.0", "3.0")]
    assert rows[2].shares == ((0.5, 0.54),)


def test_no_line_passes_over_a_column_that_is_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Series] = []
    monkeypatch.setattr(page, "draw_label_efficiency", drawn.extend)
    monkeypatch.setattr(page, "save_picture", lambda path, picture: None)
    records = [
        {
            "kind": "row", "row": "fixmatch", "cpu_s": 9.0, "over_budget": False, "labels_per_class": count,
            "seed": seed, "results": [{"title": "FixMatch", "top1": top1}], "settings_tried": 0,
        }
        for count, seed, top1 in ((4, 0, 0.2), (4, 1, 0.4), (50, 0, 0.7), (400, 0, 0.8))
    ]  # fmt: skip
    write_page(tmp_path / "records.jsonl", make_table("budget", "full"), records)
    (line,) = drawn
    assert line.places == [4, 25, 50, 400]
    assert line.mean == pytest.approx([0.3, math.nan, 0.7, 0.8], nan_ok=True)
    assert line.spread == pytest.approx([0.1 * math.sqrt(2), 0, 0, 0])


def test_a_page_says_what_its_records_say_of_settings(tmp_path: Path) -> None:
    table = make_table("budget", "full")
    common = {"kind": "row", "cpu_s": 9.0, "over_budget": False, "labels_per_class": 25, "seed": 0}
    results = [{"title": "a former title", "top1": 0.5}]
    records = [
        {**common, "row": row, "settings_tried": number, "results": results, "labels_per_class": count}
        for row, number, count in (("supervised", 0, 25), ("fixmatch", 3, 25), ("fixmatch", 0, 400))
    ]
    both = write_page(tmp_path / "both.jsonl", table, records)
    assert "| supervised, strong views | 9 | none | - | **50.0** (1 of 3) | - | - |" in both
    assert "| FixMatch | 9 | 3 or none | - | **50.0** (1 of 3) | - | **50.0** |" in both, "one seed at 400"
    assert "Settings were tried for 480 core seconds each, on a quarter of 25 labels per class" in both
    assert "former" not in both
    alone = write_page(tmp_path / "alone.jsonl", table, records[:1])
    assert "No setting was tried here." in alone


def test_every_table_has_a_plan_at_every_scale() -> None:
    for scale in SCALES:
        for name in ("speed", "budget", "ablation", "start"):
            table = make_table(name, scale)
            assert {len(row.settings) for row in table.rows} <= {1, SCALES[scale].tried}
    full = make_table("budget", "full")
    assert full.labels_per_class == (4, 25, 50, 400)
    assert [len(full.seeds[count]) for count in full.labels_per_class] == [3, 3, 3, 1]
    assert full.budget_s == 2 * 40 * 60
    with pytest.raises(ValueError, match="equally many settings for every row"):
        replace(full, rows=(replace(full.rows[0], settings=((),)), *full.rows[1:]))
    greedy = Row("a", "a", (Stage("one", "recipes/barlow.py"), Stage("two", "recipes/supervised.py")))
    with pytest.raises(ValueError, match="stages of a take more than the budget"):
        ResultTable("t", "t", (greedy,), (4,), {4: (0,)}, 1.0)


def test_a_trial_holds_labels_back_and_a_run_does_not(little_pack: Pack, tmp_path: Path) -> None:
    bench = bench_of(Config(table="budget", scale="tiny", out=tmp_path), little_pack, Here())
    row = next(row for row in bench.table.rows if row.name == "pretrained")
    for trial, share in ((True, "0.25"), (False, "0")):
        given = Given(4, 1, ("--lr", 0.5), trial)
        folders = [tmp_path / stage.name for stage in row.stages]
        words = arguments_of(bench, row, len(row.stages) - 1, given, 7, folders)
        assert words[words.index("--validation-share") + 1] == share
        assert words[words.index("--init") + 1] == str(tmp_path / "pretrain")
        assert words[words.index("--steps") + 1] == "7"
        assert words[-2:] == ["--lr", "0.5"]
        assert words[words.index("--test-split") + 1] == ""


def test_a_pack_is_made_of_the_digits_at_the_smallest_scale(tmp_path: Path) -> None:
    config = Config(table="budget", scale="tiny", out=tmp_path, pack=tmp_path / "pack")
    here = Here()
    pack = prepare_pack(config, here)
    assert set(pack.splits) == {"train", "test"}
    assert len(prepare_pack(config, here)) == len(pack)
    assert len(here.commands) == 2
    with pytest.raises(UserError, match=r"pack: expected one at .* or --splits to make it from"):
        prepare_pack(replace(config, scale="short", pack=tmp_path / "none"), here)


def test_another_question_wants_another_folder(little_pack: Pack, tmp_path: Path) -> None:
    config = Config(table="start", scale="tiny", out=tmp_path, pack=little_pack.path, init="timm:a")
    keep_question(config, tmp_path / "start-tiny", little_pack)
    keep_question(config, tmp_path / "start-tiny", little_pack)
    with pytest.raises(UserError, match=r"init: expected 'timm:a', with which .*, found 'timm:b'"):
        keep_question(replace(config, init="timm:b"), tmp_path / "start-tiny", little_pack)


def test_what_changed_at_its_place_wants_another_folder(
    little_pack: Pack, digits_pack: Pack, tmp_path: Path
) -> None:
    weights, out = tmp_path / "start.safetensors", tmp_path / "start-tiny"
    weights.write_bytes(b"first")
    config = Config(table="start", scale="tiny", out=tmp_path, pack=tmp_path / "pack", init=str(weights))
    keep_question(config, out, little_pack)
    with pytest.raises(
        UserError, match=r"^content of pack: expected 'of .*, found 'of .*; give another --out"
    ):
        keep_question(config, out, digits_pack)
    weights.write_bytes(b"second")
    with pytest.raises(UserError, match=r"^content of init: expected .*, found .*; give another --out"):
        keep_question(config, out, little_pack)
    asked = parse_json((out / "asked.json").read_bytes())
    older = {name: value for name, value in asked.items() if not name.startswith("content")}
    (out / "asked.json").write_bytes(to_json(older))
    keep_question(config, out, digits_pack)


def test_other_options_of_a_row_want_another_folder(
    little_pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config(table="speed", scale="tiny", out=tmp_path, pack=little_pack.path)
    keep_question(config, tmp_path / "speed-tiny", little_pack)
    monkeypatch.setattr(tables, "SPEED_RUN", ("--lr", 0.4))
    with pytest.raises(
        UserError, match=r"content of row compact: expected .*, with which .*, found .*; give"
    ):
        keep_question(config, tmp_path / "speed-tiny", little_pack)


def test_what_only_the_page_shows_and_a_new_row_want_no_other_folder(
    little_pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config(table="speed", scale="tiny", out=tmp_path, pack=little_pack.path)
    table = make_table("speed", "tiny")
    (row,) = table.rows

    def keep(*rows: Row) -> None:
        changed = replace(table, title="another title", rows=rows)
        monkeypatch.setattr(reproduce, "make_table", lambda *of: changed)
        keep_question(config, tmp_path / "speed-tiny", little_pack)

    keep(row)
    keep(replace(row, title="a narrow network", baseline=True))
    keep(replace(row, name="new"), row)
    with pytest.raises(UserError, match="content of row new: "):
        keep(replace(row, name="new", settings=(("--lr", 0.4),)))


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="init: expected a pre-trained network"):
        Config(table="start")
    with pytest.raises(UserError, match=r"records: expected a file at .*, found a folder"):
        Config(table="budget", records=tmp_path)
    for option, value, has in (
        ("rows", "nothing", "supervised, "), ("labels_per_class", 5, "4,"), ("seeds", 1, "0,"),
    ):  # fmt: skip
        given = Config(table="budget", scale="tiny", **{option: (value,)})  # type: ignore[arg-type]
        expected = f"{option.replace('_', '-')}: expected values among {has}.* found {value}"
        with pytest.raises(UserError, match=expected):
            run(given, Console())


def test_nothing_measured_is_said(tmp_path: Path) -> None:
    assert (
        write_page(tmp_path / "records.jsonl", make_table("speed", "tiny"), []) == "nothing is measured yet\n"
    )
