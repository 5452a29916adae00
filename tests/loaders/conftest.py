"""Packs of small and odd images, cut from real photographs (those that scikit-learn bundles)."""

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import simplejpeg
from sklearn.datasets import load_sample_images

from loaders.packs import Pack, open_pack
from loaders.packs.image import ImagePolicy
from loaders.packs.packer import PackOptions, pack_dataset
from loaders.packs.sources.spec import parse_splits


@pytest.fixture(scope="session")
def photos() -> list[np.ndarray]:
    """Crops of two photographs, uint8 [H, W, 3], in sizes from 24 to 200 pixels."""
    rng = np.random.default_rng(0)
    sources = load_sample_images().images
    crops = []
    for i in range(24):
        image = sources[i % 2]
        h, w = rng.integers(24, 200, 2)
        y, x = rng.integers(0, image.shape[0] - h), rng.integers(0, image.shape[1] - w)
        crops.append(np.ascontiguousarray(image[y : y + h, x : x + w]))
    return crops


def write_pack(
    folder: Path,
    images: list[np.ndarray],
    num_classes: int = 3,
    shard_format: str = "webdataset",
    encoding: Literal["jpeg", "raw"] = "jpeg",
) -> Pack:
    """Pack images as split "train" (class folders c0, c1, ...) and return the open pack."""
    for i, image in enumerate(images):
        path = folder / "images" / f"c{i % num_classes}" / f"{i:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(simplejpeg.encode_jpeg(image, 95))
    splits = parse_splits((f"train={folder / 'images'}",))
    pack_dataset(PackOptions(splits, folder / "pack", shard_format, ImagePolicy(encoding=encoding), 64.0, 1))
    return open_pack(folder / "pack")


@pytest.fixture(scope="session")
def photo_pack(tmp_path_factory: pytest.TempPathFactory, photos: list[np.ndarray]) -> Pack:
    return write_pack(tmp_path_factory.mktemp("photos"), photos)


@pytest.fixture(scope="session")
def photo_beton_pack(tmp_path_factory: pytest.TempPathFactory, photos: list[np.ndarray]) -> Pack:
    """Pack the same rows as a .beton."""
    return write_pack(tmp_path_factory.mktemp("photos-beton"), photos, shard_format="ffcv")


FFCV_COMPILES = {  # these run only as slow tests, since FFCV compiles for most of a second per loader
    "test_every_dtype_and_layout_holds_the_same_pixels": {"resolution": {20}, "channels_last": {True}},
    "test_ranks_share_what_one_rank_sees": {"num_ranks": {4, 8}},
    "test_threads_do_not_change_a_byte": {"num_threads": {2, 16}},
    "test_a_resumed_epoch_goes_on_where_it_stopped": {"start_step": {2}},
    "test_a_bad_image_is_counted_and_replaced_by_the_row_after_it": {"damage": {"swap"}, "bad_row": {0, 11}},
    "test_a_flipped_bit_that_still_decodes_is_caught_by_its_checksum": {"bad_row": {0, 11}},
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        costly = FFCV_COMPILES.get(getattr(item, "originalname", ""), {})
        values = {name: getattr(value, "__name__", value) for name, value in parameters.items()}
        if values.get("case") == "ffcv" and any(values[name] in costly[name] for name in costly):
            item.add_marker(pytest.mark.slow)
