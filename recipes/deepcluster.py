r"""DeepCluster: cluster the images by their features, train the network to predict the clusters, and repeat.

Example:
    python recipes/deepcluster.py --pack packs/mine --split unlabeled --backbone resnet18 \
        --resolution 96 --hidden --num-clusters 1000 --epochs 100 --out runs/deepcluster

Source: Caron, Bojanowski, Joulin, Douze 2018, "Deep Clustering for Unsupervised Learning of Visual
Features" (arXiv 1807.05520), and the authors' published code for details that the paper leaves open.

The algorithm is in `DeepCluster.begin_epoch` and `training_step`; the clusters come from
`engine.labels.clusters`, the loss is in `engine.objectives.deepcluster`.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

from engine.train.run_config import StartConfig
from loaders.common.checks import Count
from loaders.common.errors import run_command
from loaders.common.program import check_command_line, command_line


@dataclass(frozen=True)
class Config(StartConfig):
    """Pre-train a backbone with DeepCluster."""

    split: str = "unlabeled"
    """Split of the pack to train on; its labels, if any, are only compared with the clusters."""
    backbone: str = "alexnet_bn"
    """alexnet_bn, any timm name, or tiny_resnet for a CPU. Paper: AlexNet with BatchNorm."""
    hidden: tuple[Count, ...] = (4096, 4096)
    """Sizes of the fully connected layers after the backbone; may be empty. The last layer's output is
    clustered. Paper: 4096 4096."""
    resolution: Count = 224
    """Side length of the views in pixels. Paper: 224."""
    min_crop: float = 0.08
    """Smallest fraction of the image's area that a view shows. Authors' code: 0.08."""
    flip_p: float = 0.5
    """Probability of a horizontal flip; use 0 where left and right carry meaning. Paper: 0.5."""
    epochs: Count = 200
    """Passes over the split, each with newly computed clusters. Authors' code: 200."""
    batch_size: Count = 256
    """Images per step over all ranks. Paper: 256."""
    num_clusters: Count = 10000
    """Number of clusters of k-means. Paper: 10000, ten times the number of ImageNet's classes."""
    pca_components: Count = 256
    """Largest number of principal components, which are whitened, normalised and clustered. Paper: 256."""
    kmeans_iterations: Count = 20
    """Iterations of Lloyd's algorithm. Authors' code: 20."""
    lr: float = 0.05
    """Constant learning rate. Paper: 0.05."""
    momentum: float = 0.9
    """Momentum of SGD; the classifier of the clusters, which is new in every epoch, has none. Paper: 0.9."""
    weight_decay: float = 1e-5
    """Weight decay of all parameters. Paper: 1e-5."""


if __name__ == "__main__":  # check the options before the slow imports below
    check_command_line(Config, __doc__)


import numpy as np
import torch
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor, nn

from engine.evaluate.representations import Features, extract_features
from engine.labels.clusters import kmeans, whiten
from engine.nets.backbones import Projector
from engine.objectives.deepcluster import cluster_weights, deepcluster_loss
from engine.train.distributed import gather_on_main, on_main
from engine.train.recipe import Recipe, StepOutput
from engine.train.run import RunSummary, print_summary
from engine.train.run import run as run_recipe
from loaders.batch import Batch, Loader
from loaders.common.errors import UserError
from loaders.pretraining import PretrainingLoaders
from loaders.views import presets


class DeepCluster(Recipe):
    """Backbone, fully connected layers, and a classifier of the current clusters."""

    name = "deepcluster"
    parts = "rows"
    own_optimizer = True  # each epoch's new classifier must not inherit optimizer state
    assignment: Tensor
    weights: Tensor
    nmi: Tensor

    def __init__(self, config: Config, in_order: Loader[Batch], num_rows: int) -> None:
        """Build the networks; call `seed_everything` first.

        Args:
            in_order: yields every image of the split once, without augmentation; each rank gets its part.
            num_rows: number of rows of the pack.
        """
        super().__init__()
        self.config = config
        self.in_order = in_order
        num_features = self.make_backbone(config.backbone, config.resolution, config.init)
        self.hidden: nn.Module = Projector(num_features, config.hidden) if config.hidden else nn.Identity()
        self.classifier = nn.Linear((num_features, *config.hidden)[-1], config.num_clusters)
        # Buffers, since checkpoints hold them: a run resumed within an epoch continues with its clusters.
        self.register_buffer("assignment", torch.full((num_rows,), -1))
        self.register_buffer("weights", torch.ones(config.num_clusters))
        self.register_buffer("nmi", torch.zeros(2))

    def clustered(self, x: Tensor) -> Tensor:
        """Map views [B, 3, H, W] to the features that are clustered, [B, D]."""
        z: Tensor = self.hidden(self.backbone(x))
        return z

    def begin_epoch(self, epoch: int) -> None:
        """Cluster the images anew and re-initialise the classifier for the new clusters."""
        embedded = extract_features(_Embedding(self), self.in_order, self.nmi.device, self.config.out)
        features = gather_on_main(embedded)
        before = self.assignment.cpu().numpy()
        assignment, nmi = on_main(lambda: self._cluster(features, before, epoch))
        self.assignment.copy_(torch.from_numpy(assignment))
        self.weights.copy_(
            cluster_weights(torch.from_numpy(assignment[assignment >= 0]), self.config.num_clusters)
        )
        self.nmi.copy_(torch.tensor(nmi))
        generator = torch.Generator().manual_seed(int(_seed(self.config.seed, epoch)))
        fresh = torch.randn(self.classifier.weight.shape, generator=generator) * 0.01
        self.classifier.weight.copy_(fresh)
        self.classifier.bias.zero_()

    def _cluster(
        self, parts: list[Features], before: np.ndarray, epoch: int
    ) -> tuple[np.ndarray, tuple[float, float]]:
        """Return each row's cluster, -1 for none, and the NMI with the last clusters and with the labels.

        NMI is the normalised mutual information, in [0, 1]; 0 if there are no last clusters or no labels.
        """
        rows, first = np.unique(np.concatenate([p.index.numpy() for p in parts]), return_index=True)
        features = np.concatenate([p.h.numpy() for p in parts])[first]
        labels = np.concatenate([p.labels.numpy() for p in parts])[first]
        found = kmeans(
            whiten(features, self.config.pca_components),
            self.config.num_clusters,
            int(_seed(self.config.seed, epoch)),
            self.config.kmeans_iterations,
        ).assignment
        assignment = np.full_like(before, -1)
        assignment[rows] = found
        known = labels >= 0
        to_last = normalized_mutual_info_score(before[rows], found) if epoch else 0.0
        to_labels = normalized_mutual_info_score(labels[known], found[known]) if known.any() else 0.0
        return assignment, (float(to_last), float(to_labels))

    def training_step(self, batch: Batch, step: int) -> StepOutput:
        """Predict the cluster of each image, with equal weight for every cluster (equation 1)."""
        z = self.clustered(batch.views[0])
        logits = self.classifier(torch.relu(z) if self.config.hidden else z)
        terms = deepcluster_loss(logits, self.assignment[batch.index], self.weights)
        nmi_last, nmi_labels = self.nmi.unbind()
        return StepOutput(
            terms.loss, {"cluster_top1": terms.top1, "nmi_last": nmi_last, "nmi_labels": nmi_labels}
        )

    def make_optimizer(self) -> torch.optim.SGD:
        """Return SGD, without momentum for the classifier, which is new in every epoch."""
        config = self.config
        body = [*self.backbone.parameters(), *self.hidden.parameters()]
        groups = [
            {"params": body, "momentum": config.momentum},
            {"params": list(self.classifier.parameters()), "momentum": 0.0},
        ]
        return torch.optim.SGD(groups, config.lr, weight_decay=config.weight_decay)


class _Embedding(nn.Module):
    """Network for `extract_features` that maps images to the features to cluster."""

    def __init__(self, recipe: DeepCluster) -> None:
        super().__init__()
        self.recipe = recipe

    def forward(self, x: Tensor) -> Tensor:
        return self.recipe.clustered(x)


def _seed(seed: int, epoch: int) -> np.uint32:
    """Derive the seed of an epoch from the seed of the run."""
    mixed: np.uint32 = np.random.SeedSequence([seed, epoch]).generate_state(1)[0]
    return mixed


def run(config: Config) -> RunSummary:
    """Pre-train on a pack and write a run folder."""
    view = presets.crop_flip(config.resolution, config.min_crop, config.flip_p)
    loaders = PretrainingLoaders(config, (view,))
    images = loaders.pack.split(config.split)
    num_images = len(images)
    if config.num_clusters > num_images:
        raise UserError(
            f"num_clusters: expected at most {num_images}, the images of split {config.split!r}, found "
            f"{config.num_clusters}; ask for fewer"
        )
    with ExitStack() as opened:

        def make_recipe() -> DeepCluster:
            in_order = loaders.in_order(images, config.loader_options())
            opened.callback(in_order.close)
            return DeepCluster(config, in_order, len(loaders.pack))

        return run_recipe(config, make_recipe, loaders)


def main() -> None:
    """Parse the command line and run the command."""
    print_summary(DeepCluster.name, run(command_line(Config, __doc__)))


if __name__ == "__main__":
    run_command(main)
