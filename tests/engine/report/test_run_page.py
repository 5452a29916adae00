"""The page of a run with labels: what it shows about the classifier, and that it works in a browser."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from engine.evaluate import classification_report
from engine.evaluate.classification_report import cluster_order
from engine.nets.classifier import build_classifier, save_classifier
from engine.report import classifier_sections, run_page, tested
from engine.report.embedding import place
from engine.report.page import Table
from engine.report.run_page import PageOptions, build_run_page, leave_page, training_counts
from engine.report.theme import LIGHT
from engine.train.classifier_recipe import ACCURACY_NAME
from engine.train.run_folder import opened_run
from loaders.packs import Pack
from loaders.packs.labels.subsample import training_labels
from loaders.packs.labels.validation import SET_ASIDE_PATH
from loaders.views.evaluation import EvaluationView
from tests.browser import needs_browser, open_page, result


def make_run(run: Path, pack: Pack) -> Path:
    """Write a run folder like that of a recipe with labels: a classifier, its accuracy, a log."""
    options = {"pack": str(pack.path), "labeled_split": "train", "labels_per_class": 4, "test_split": "test"}
    with opened_run(run, "supervised", options, (), resume=False):
        pass
    torch.manual_seed(0)
    classifier = build_classifier("test_resnet", EvaluationView.usual(16), pack.classes)
    nn.init.normal_(classifier.head.weight, std=0.5)  # so that some predictions are confident
    save_classifier(run, classifier, "raw")
    accuracy = {"top1": 0.1, "num_images": 445, "top5": 0.5}
    (run / ACCURACY_NAME).write_text(json.dumps({"raw": accuracy}))
    records = [
        {"step": s, "epoch": 0, "loss": 3.0 / s, "top1": 0.1 * s, "img_per_s": 50.0 * s, "wait_share": 0.2}
        for s in (1, 2, 3)
    ]
    records.append({"step": 3, "validation_top1": 0.25, "validation_loss": 1.5})
    (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return run


@pytest.fixture(scope="module")
def page(digits_pack: Pack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = make_run(tmp_path_factory.mktemp("page") / "run", digits_pack)
    path = run / "report.html"
    path.write_text(build_run_page(PageOptions(run, num_tested=60)))
    return path


def test_what_is_known_of_a_classifier_is_shown(page: Path, digits_pack: Pack) -> None:
    text = page.read_text()
    for heading in (
        "Accuracy",
        "Training",
        "What is taken for what",
        "Images",
        "Classes",
        "Right and wrong by rank",
        "How sure it is",
        "Precision at rank",
        "Imbalance",
        "Feature maps",
        "Map of the features",
        "Speed",
    ):
        assert f"<h2>{heading}</h2>" in text, heading
    assert "95 % interval 7.4 to 13.0 % (Wilson)" in text
    assert "60 of 445 images of split &#x27;test&#x27;, evenly spaced" in text
    assert "most sure and wrong" in text
    classes = text.split("<h2>Classes</h2>")[1].split("</table>")[0]
    assert classes.count("<tr>") == 1 + len(digits_pack.classes)
    assert classes.count("<td>4</td>") >= 10  # numbers of training labels
    assert "Accuracy over labels per class" not in text  # all classes have equally many
    assert "loss (training, validation), accuracy (training, validation)" in text
    assert "120" in text.split("<h2>Speed</h2>")[1]  # the harmonic mean of 100 and 150
    assert "The run waited for data: tools/doctor.py" in text
    assert "views: sample views: expected" in text.split("What is missing")[1]
    assert re.search("https?:", text) is None


def test_labels_that_were_set_aside_are_not_counted(digits_pack: Pack, tmp_path: Path) -> None:
    run, options = tmp_path / "run", {"labeled_split": "train", "labels_per_class": 4}
    every = training_labels(digits_pack, "train", 4, 0)
    assert training_counts(run, options, digits_pack).tolist() == [4] * 10
    held = every.of_rows(every.row[every.label == 3][:1])
    (run / "labels").mkdir(parents=True)
    held.write(run / SET_ASIDE_PATH)
    assert training_counts(run, options, digits_pack).tolist() == [4, 4, 4, 3, 4, 4, 4, 4, 4, 4]


def test_an_accuracy_has_wilsons_interval() -> None:
    low, high = classifier_sections.interval(8, 10)  # Newcombe 1998, table I: 0.4902 to 0.9433
    assert (round(low, 4), round(high, 4)) == (0.4902, 0.9433)
    assert classifier_sections.interval(0, 10)[0] == 0


def test_classes_that_are_mistaken_stand_together() -> None:
    confusion = np.eye(8, dtype=np.int64) * 50
    for a, b in ((0, 5), (2, 7), (1, 6)):
        confusion[a, b] = confusion[b, a] = 40
    order = cluster_order(confusion).tolist()
    assert sorted(order) == list(range(8))
    for a, b in ((0, 5), (2, 7), (1, 6)):
        assert abs(order.index(a) - order.index(b)) == 1
    assert cluster_order(np.ones((2, 2), np.int64)).tolist() == [0, 1]


@pytest.mark.parametrize(("classes", "numbers"), [(2, ["9", "1", "0", "8"]), (13, [])])
def test_few_classes_have_their_counts_in_the_cells(
    classes: int, numbers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = Figure()
    monkeypatch.setattr(classification_report, "draw_picture", lambda draw, *_, **__: draw(figure, LIGHT))
    confusion = np.eye(classes, dtype=np.int64)
    confusion[:2, :2] = [[9, 1], [0, 8]]
    classification_report.draw_confusion(confusion, [f"c{i}" for i in range(classes)])
    assert [text.get_text() for text in figure.axes[0].texts] == numbers


def test_a_thousand_classes_fit_a_picture() -> None:
    from engine.evaluate.classification_report import draw_confusion

    confusion = np.eye(1000, dtype=np.int64)
    confusion[3, 900] = 9
    picture = draw_confusion(
        confusion[np.ix_(*[cluster_order(confusion)] * 2)], [f"c{i}" for i in range(1000)]
    )
    assert "A cell is the largest share of 2 x 2 classes." in picture.caption
    labels = np.repeat(np.arange(1000), 2)
    scores = torch.zeros(2000, 1000)
    guesses = torch.from_numpy(labels).clone()
    guesses[7], guesses[1801] = 900, 3  # classes 3 and 900 are confused with each other
    scores[torch.arange(2000), guesses] = 1.0
    none, names = np.zeros(0, np.int64), tuple(f"c{i}" for i in range(1000))
    said = tested.Tested("test", 2000, np.arange(2000), labels, scores, none, np.zeros((0, 0), np.float32))
    shown = classifier_sections.ClassifierPages(SimpleNamespace(classes=names), said)  # type: ignore[arg-type]
    (table,) = shown.per_class(None).blocks
    assert isinstance(table, Table)
    assert table.columns[-1] == "place in the picture"
    places = [int(row[-1].replace(",", "")) for row in table.rows]
    assert sorted(places) == list(range(1000))
    assert abs(places[3] - places[900]) == 1
    pairs = shown.confusion().blocks[1]
    assert isinstance(pairs, Table)
    assert [row[:2] for row in pairs.rows] == [("c3", "c900"), ("c900", "c3")]


def test_a_map_keeps_groups_together_and_bears_a_collapse() -> None:
    generator = np.random.default_rng(0)
    features = generator.normal(0, 0.1, (60, 70)).astype(np.float32)
    features[30:] += 3.0
    places = place(features)
    gap = np.linalg.norm(places[:30].mean(0) - places[30:].mean(0))
    assert gap > 2 * places[:30].std()
    assert np.array_equal(places, place(features))
    assert not place(np.ones((20, 8), np.float32)).any()


def test_a_page_that_fails_is_a_line(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["recipes/barlow.py", "--out", "a b"])
    leave_page(tmp_path)  # the folder holds no run
    assert "report: not written (run folder: expected a run at" in capsys.readouterr().out
    assert (tmp_path / "command.txt").read_text() == "python recipes/barlow.py --out 'a b'\n"
    monkeypatch.setattr(run_page, "build_run_page", lambda options: "<p>page</p>")
    leave_page(tmp_path)
    assert capsys.readouterr().out == f"report: {tmp_path / 'report.html'}\n"
    monkeypatch.setenv("RANK", "1")
    leave_page(tmp_path / "other")
    assert capsys.readouterr().out == ""


DRIVER = """
const table = [...document.querySelectorAll("h2")].find(h => h.textContent === "Classes").parentNode
  .querySelector("table");
const column = place => [...table.tBodies[0].rows].map(row => parseFloat(row.cells[place].textContent));
const head = table.tHead.rows[0].cells[3];
head.click();
const down = column(3);
head.click();
const up = column(3);
document.querySelector(".sheet img").click();
const zoomed = document.getElementById("zoom").open;
document.getElementById("zoom").click();
const made = document.createElement("pre");
made.id = "result";
made.textContent = JSON.stringify({
  down, up, zoomed, closed: !document.getElementById("zoom").open,
  broken: [...document.images].filter(i => i.complete && !i.naturalWidth && i.getAttribute("src")).length,
  wider: document.documentElement.scrollWidth - window.innerWidth,
});
document.body.append(made);
"""


@needs_browser
@pytest.mark.parametrize("width", [500, 1000])
def test_the_page_works_in_a_browser(page: Path, tmp_path: Path, width: int) -> None:
    copy = tmp_path / "report.html"
    copy.write_text(page.read_text())
    opened = open_page(copy, DRIVER, width)
    assert opened.console == []
    found = json.loads(result(opened))
    assert found["down"] == sorted(found["down"], reverse=True)
    assert found["up"] == sorted(found["up"])
    assert found["zoomed"]
    assert found["closed"]
    assert found["broken"] == 0
    assert found["wider"] <= 0
