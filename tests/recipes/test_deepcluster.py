"""DeepCluster: constants, the preparation of an epoch, and the result of a short run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sklearn.metrics import normalized_mutual_info_score

from engine.train.distributed import seed_everything
from engine.train.metrics import read_metrics
from loaders import LoaderOptions, build_loader, open_pack
from loaders.batch import Batch
from loaders.common.errors import UserError
from loaders.packs import Pack
from loaders.views import presets
from recipes.deepcluster import Config, DeepCluster, run
from tests.floors import trainings
from tests.floors.data import Data
from tests.floors.table import check

SMALL = Config(
    pack=Path("p"),
    out=Path("o"),
    backbone="tiny_resnet",
    resolution=16,
    hidden=(8,),
    num_clusters=6,
    pca_components=4,
)


def build(pack: Path) -> tuple[DeepCluster, Pack]:
    opened = open_pack(pack)
    split = opened.split("unlabeled")
    loader = build_loader(
        split, (presets.evaluation(16),), 24, options=LoaderOptions(num_threads=1), mode="eval"
    )
    seed_everything(0)
    return DeepCluster(SMALL, loader, len(opened)), opened


def test_defaults_are_the_papers() -> None:
    config = Config(pack=Path("p"), out=Path("o"))
    assert (config.num_clusters, config.pca_components, config.kmeans_iterations) == (10000, 256, 20)
    assert (config.lr, config.momentum, config.weight_decay) == (0.05, 0.9, 1e-5)
    assert (config.batch_size, config.epochs, config.hidden) == (256, 200, (4096, 4096))


def test_more_clusters_than_images_are_refused_before_the_run_begins(
    few_digits: Path, tmp_path: Path
) -> None:
    config = replace(SMALL, pack=few_digits, out=tmp_path / "run", num_clusters=10_000)
    with pytest.raises(UserError, match=r"num_clusters: expected at most \d+, .* found 10000; ask for fewer"):
        run(config)
    assert not config.out.exists()


def test_the_classifier_alone_has_no_momentum(few_digits: Path) -> None:
    recipe, _ = build(few_digits)
    body, classifier = recipe.make_optimizer().param_groups
    assert (body["momentum"], classifier["momentum"]) == (0.9, 0.0)
    assert [id(p) for p in classifier["params"]] == [id(p) for p in recipe.classifier.parameters()]
    assert len(body["params"]) + 2 == len(list(recipe.parameters()))


def test_an_epoch_begins_with_new_clusters_and_a_new_classifier(few_digits: Path) -> None:
    recipe, pack = build(few_digits)
    rows = pack.split("unlabeled").rows(range(64))
    recipe.train()
    with torch.no_grad():
        recipe.begin_epoch(0)
    first, head = recipe.assignment.clone(), recipe.classifier.weight.detach().clone()
    assert recipe.training, "the mode is put back"
    assert sorted(first[rows].unique().tolist()) == list(range(6))
    assert (first >= 0).sum() == 64, "rows of other splits have no cluster"
    assert float(recipe.nmi[0]) == 0.0
    labels = pack.split("unlabeled").labels()
    expected = normalized_mutual_info_score(labels, first[rows].numpy())
    assert float(recipe.nmi[1]) == pytest.approx(expected, rel=1e-5)
    with torch.no_grad():
        recipe.begin_epoch(1)
    again = recipe.assignment[rows]
    expected = normalized_mutual_info_score(first[rows].numpy(), again.numpy())
    assert float(recipe.nmi[0]) == pytest.approx(expected, rel=1e-5)
    assert not torch.equal(recipe.classifier.weight, head)
    assert float(recipe.classifier.weight.detach().std()) == pytest.approx(0.01, rel=0.4)
    assert not recipe.classifier.bias.any()


def test_a_step_reads_the_clusters_of_its_rows(few_digits: Path) -> None:
    recipe, pack = build(few_digits)
    with torch.no_grad():
        recipe.begin_epoch(0)
    index = torch.from_numpy(pack.split("unlabeled").rows(range(5, 13)))
    x = torch.randn(8, 3, 16, 16)
    recipe.classifier.weight.data.zero_()
    recipe.classifier.bias.data.copy_(torch.arange(6.0))
    output = recipe.training_step(Batch((x,), None, index, index >= 0), 0)
    log_p = torch.log_softmax(torch.arange(6.0), 0)
    cluster = recipe.assignment[index]
    expected = -(recipe.weights[cluster] * log_p[cluster]).mean()
    assert float(output.loss.detach()) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.floor
def test_learns_clusters_and_features_of_digits(data: Data, tmp_path: Path) -> None:
    check("deepcluster", trainings.deepcluster(data, tmp_path / "run", 0))
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")[0]["nmi_last"] == 0.0
