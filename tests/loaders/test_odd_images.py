"""Unusual images that a pack may contain: tiny, very long, gray, and CMYK ones converted to RGB."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from loaders import LoaderOptions, build_loader, open_pack
from loaders.packs import Pack
from loaders.packs.packer import PackOptions, pack_dataset
from loaders.packs.sources.spec import parse_splits
from loaders.views import presets
from loaders.views.geometry import CenterCrop
from loaders.views.policy import ViewPolicy

SIZES = {"one": (1, 1), "small": (5, 7), "wide": (1, 65_500), "tall": (65_500, 1), "gray": (40, 40)}


@pytest.fixture(scope="module")
def odd_pack(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    folder = tmp_path_factory.mktemp("odd")
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    for name, size in {**SIZES, "cmyk": (40, 40)}.items():
        image = Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8))
        mode = {"gray": "L", "cmyk": "CMYK"}.get(name, "RGB")
        image.convert(mode).save(folder / "images" / f"{name}.jpg", quality=95)
    splits = parse_splits((f"train={folder / 'images'}",))
    pack_dataset(PackOptions(splits, folder / "pack"))
    return open_pack(folder / "pack")


def test_odd_images_are_all_kept_and_copied_but_for_cmyk(odd_pack: Pack) -> None:
    columns = odd_pack.columns
    found = {odd_pack.key(row): (int(columns.height[row]), int(columns.width[row])) for row in range(6)}
    assert found == {f"train/{name}": size for name, size in {**SIZES, "cmyk": (40, 40)}.items()}


@pytest.mark.parametrize(
    "views",
    [
        (presets.barlow_a(32), presets.barlow_b(32)),
        (presets.weak(32), presets.fixmatch_strong(32)),
        presets.tiles(8, 10)[:2],
    ],
    ids=["barlow", "fixmatch", "tiles"],
)
def test_every_policy_takes_them(odd_pack: Pack, views: tuple[ViewPolicy, ...]) -> None:
    loader = build_loader(
        odd_pack.split("train"), views, options=LoaderOptions(seed=0, num_threads=2), batch_size=3
    )
    for epoch in range(5):
        for batch in loader.epoch(epoch):
            assert all(bool(torch.isfinite(view).all()) for view in batch.views)
    assert loader.bad_rows == {}
    loader.close()


def test_they_show_what_pil_decodes(odd_pack: Pack) -> None:
    square = ViewPolicy("square", 5, CenterCrop(1.0))
    loader = build_loader(
        odd_pack.split("train"), (square,), 6, options=LoaderOptions(seed=0, num_threads=1), mode="eval"
    )
    (batch,) = loader.epoch(0)
    for row, view in zip(batch.index.tolist(), batch.views[0], strict=True):
        image = Image.open(io.BytesIO(odd_pack.read(row))).convert("RGB")
        side = min(image.size)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        box = (left, top, left + side, top + side)
        expected = np.asarray(image.resize((5, 5), Image.Resampling.BILINEAR, box)).transpose(2, 0, 1)
        assert np.abs(255 * view.numpy() - expected).max() < 2, odd_pack.key(row)
    loader.close()
