"""A map of features: images with similar features lie close to each other."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.report.figures import draw_picture, dress
from engine.report.names import drawn_names, natural
from engine.report.page import Picture, Section
from engine.report.tested import Tested
from engine.report.theme import Palette

_FEWEST = 10  # images; a map of fewer shows nothing
_NAMED = 10  # maximum number of classes with a colour and a name of their own
_PERPLEXITY = 30.0


def embedding_section(tested: Tested, classes: tuple[str, ...]) -> Section:
    """Return a map of the backbone's features of test images by t-SNE; an empty section for few images.

    Source: van der Maaten and Hinton 2008.
    """
    if len(tested.features) < _FEWEST:
        return Section("Map of the features", [])
    return Section(
        "Map of the features", [_draw(place(tested.features), tested.label[tested.mapped], classes)]
    )


def place(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Map features, float32 [M, D], to points in a plane, float32 [M, 2]; deterministic."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    centred = features - features.mean(0)
    if not np.ptp(centred, axis=0).any():  # a collapsed network gives all images the same features
        return np.zeros((len(features), 2), np.float32)
    most = min(50, *centred.shape)  # PCA is needed in any case: t-SNE starts from the first two components
    reduced = PCA(most, random_state=0, svd_solver="randomized").fit_transform(centred)
    start = reduced[:, :2] if reduced.shape[1] >= 2 else np.hstack([reduced, np.zeros_like(reduced)])
    start = start / max(float(start[:, 0].std()), 1e-12) * 1e-4  # scaled as by scikit-learn's init="pca"
    perplexity = min(_PERPLEXITY, (len(features) - 1) / 3)
    found: NDArray[np.float32] = TSNE(
        init=start.astype(np.float32), perplexity=perplexity, random_state=0, max_iter=500
    ).fit_transform(reduced)
    return found


def _draw(places: NDArray[np.float32], labels: NDArray[np.int64], classes: tuple[str, ...]) -> Picture:
    present, counts = np.unique(labels, return_counts=True)
    named = present[np.argsort(-counts, kind="stable")][:_NAMED].tolist()
    named.sort(key=lambda number: natural(classes[number]))
    names = drawn_names([classes[number] for number in named])

    def draw(figure: Any, palette: Palette) -> None:
        from matplotlib import colormaps

        axes = figure.add_subplot(1, 1, 1)
        others = ~np.isin(labels, named)
        axes.scatter(*places[others].T, s=7, color=palette.muted, alpha=0.4, linewidths=0)
        for number, label in enumerate(named):
            text = names.texts[number]
            text = f" {text}" if text[:1] == "_" else text
            own = places[labels == label]
            axes.scatter(*own.T, s=9, color=colormaps["tab10"](number), label=text, linewidths=0)
        axes.set_xticks([])
        axes.set_yticks([])
        dress(axes, palette)
        axes.grid(False)
        legend = {"frameon": False, "fontsize": 8, "labelcolor": palette.ink, "markerscale": 2.0}
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), **legend)

    rest = f" The {_NAMED} largest classes are coloured." if len(present) > _NAMED else ""
    caption = (
        f"t-SNE of the backbone's features of {len(places):,} test images, with their true classes.{rest} "
        "Neighbours are alike; distances between groups mean little."
    )
    return draw_picture(draw, (8.6, 5.2), "Map of the features by t-SNE", caption, names)
