"""Every contender of the benchmark does the same work: its views have torchvision's statistics."""

import itertools

import numpy as np
import pytest
import torch

from tools.bench.contender import find_contender, refusal
from tools.bench.corpus import Corpus, open_corpus, pack_images
from tools.bench.workload import MEAN, STD, ImageEncoding, ViewSet, Workload

NUM_BATCHES = 8
BATCH_SIZE = 64
BARLOW = ("cpu", "stream_backend", "dali_backend", "ffcv_backend", "torchvision_pil", "webdataset", "dali")
CROPS = (*BARLOW, "ffcv")
EXTRA_BARLOW = ("spdl", "litdata", "kornia")
EXTRA_CROPS = (*EXTRA_BARLOW, "turboloader")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    from PIL import Image
    from sklearn.datasets import load_sample_images

    folder = tmp_path_factory.mktemp("photographs")
    random = np.random.default_rng(0)
    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    for number in range(100):
        photograph = photographs[number % 2]
        left, top = (int(random.integers(0, side - 200)) for side in photograph.size)
        photograph.crop((left, top, left + 200, top + 200)).resize((64, 64)).save(
            folder / f"{number}.jpg", quality=90
        )
    cache = folder.parent / "cache"
    return open_corpus(pack_images(folder, cache, BATCH_SIZE, num_images=512), "", cache, BATCH_SIZE)


def statistics(
    name: str, views: ViewSet, corpus: Corpus, encoding: ImageEncoding = "jpeg"
) -> list[dict[str, float]]:
    workload = Workload(views, resolution=64, batch_size=BATCH_SIZE, encoding=encoding)
    contender = find_contender(name)
    assert refusal(contender, workload) is None
    try:
        contender.prepare(workload, corpus)
        batches = list(itertools.islice(contender.batches(workload, corpus), NUM_BATCHES))
    except ImportError as error:
        pytest.skip(str(error))
    found = []
    for view in zip(*batches, strict=True):
        pixels = torch.cat([torch.as_tensor(np.array(batch)).float() for batch in view])
        pixels = pixels.permute(0, 3, 1, 2) if pixels.shape[-1] == 3 else pixels
        if workload.is_uint8:
            pixels = pixels if name == "turboloader" else pixels / 255
        elif views != "tiles":
            pixels = pixels * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
        spread = pixels.amax(1) - pixels.amin(1)
        found.append(
            {
                "mean": float(pixels.mean()),
                "contrast": float(pixels.std((1, 2, 3)).mean()),
                "detail": float((pixels[..., 1:] - pixels[..., :-1]).abs().mean()),
                "color": float(spread.mean()),
                "gray": float((spread.amax((1, 2)) < 0.02).float().mean()),
            }
        )
    return found


@pytest.fixture(scope="module")
def expected(corpus: Corpus) -> dict[ViewSet, list[dict[str, float]]]:
    return {views: statistics("torchvision_v2", views, corpus) for views in ("barlow", "crop_flip")}


def assert_alike(found: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one["mean"] == pytest.approx(other["mean"], abs=0.03)
        assert one["gray"] == pytest.approx(other["gray"], abs=0.08)
        for name in ("contrast", "detail", "color"):
            assert one[name] == pytest.approx(other[name], rel=0.15), name


@pytest.mark.parametrize("name", BARLOW)
def test_barlow_views_are_alike(
    name: str, corpus: Corpus, expected: dict[ViewSet, list[dict[str, float]]]
) -> None:
    assert_alike(statistics(name, "barlow", corpus), expected["barlow"])


@pytest.mark.parametrize("name", CROPS)
def test_crops_are_alike(name: str, corpus: Corpus, expected: dict[ViewSet, list[dict[str, float]]]) -> None:
    assert_alike(statistics(name, "crop_flip", corpus), expected["crop_flip"])


@pytest.mark.parametrize("views", ["rotations", "tiles"])
@pytest.mark.parametrize("name", ["cpu", "torchvision_pil"])
def test_views_of_one_crop_are_alike(name: str, views: ViewSet, corpus: Corpus) -> None:
    assert_alike(statistics(name, views, corpus), statistics("torchvision_v2", views, corpus))


@pytest.mark.parametrize("name", ["cpu", "ffcv"])
def test_stored_pixels_give_the_same_views(
    name: str, corpus: Corpus, expected: dict[ViewSet, list[dict[str, float]]]
) -> None:
    assert_alike(statistics(name, "crop_flip", corpus, "raw"), expected["crop_flip"])


@pytest.mark.peer
def test_stored_pixels_of_turboloader(
    corpus: Corpus, expected: dict[ViewSet, list[dict[str, float]]]
) -> None:
    assert_alike(statistics("turboloader", "crop_flip", corpus, "raw"), expected["crop_flip"])


@pytest.mark.peer
@pytest.mark.parametrize("name", EXTRA_BARLOW)
def test_barlow_views_of_extra_peers(
    name: str, corpus: Corpus, expected: dict[ViewSet, list[dict[str, float]]]
) -> None:
    assert_alike(statistics(name, "barlow", corpus), expected["barlow"])


@pytest.mark.peer
@pytest.mark.parametrize("name", EXTRA_CROPS)
def test_crops_of_extra_peers(
    name: str, corpus: Corpus, expected: dict[ViewSet, list[dict[str, float]]]
) -> None:
    assert_alike(statistics(name, "crop_flip", corpus), expected["crop_flip"])


def test_the_statistics_tell_a_missing_operation(expected: dict[ViewSet, list[dict[str, float]]]) -> None:
    with pytest.raises(AssertionError):
        assert_alike(expected["barlow"][:1], expected["barlow"][1:])
    with pytest.raises(AssertionError):
        assert_alike(expected["crop_flip"], expected["barlow"][:1])
