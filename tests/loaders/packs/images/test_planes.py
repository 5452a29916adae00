"""Shrinking a JPEG in its colour planes: as good as in RGB, and always with the same bytes as result."""

import threading

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from loaders.packs.image import Action, ImagePolicy, dct_factor, prepare_image
from loaders.packs.images.planes import shrink_planes
from loaders.packs.images.resize import resize_antialiased
from loaders.packs.reasons import BadImage
from tests.loaders.packs.inputs import encoded


def picture(height: int, width: int) -> np.ndarray:
    """Draw colours that change smoothly and at edges, so that a shift between colour planes would show."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    channels = [np.sin(x / 19 + y / 31), np.cos(y / 17 - x / 23), np.sign(np.sin((x + 2 * y) / 40))]
    return np.clip(128 + 90 * np.stack(channels, axis=-1), 0, 255).astype(np.uint8)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return 10 * np.log10(255**2 / np.square(a.astype(float) - b).mean())


@pytest.mark.parametrize("subsampling", ["444", "422", "420", "440"])
@pytest.mark.parametrize(
    ("size", "to"), [((300, 451), (201, 302)), ((375, 500), (256, 341)), ((640, 481), (127, 95))]
)
def test_planes_are_as_good_as_rgb(subsampling: str, size: tuple[int, int], to: tuple[int, int]) -> None:
    data = simplejpeg.encode_jpeg(picture(*size), 95, "rgb", subsampling)
    made = shrink_planes(data, dct_factor(*size, *to), *to, 90)
    assert made is not None
    got = simplejpeg.decode_jpeg(made)
    assert got.shape == (*to, 3)
    whole = simplejpeg.decode_jpeg(data)
    reference = np.asarray(Image.fromarray(whole).resize(to[::-1], Image.Resampling.HAMMING))
    by_rgb = simplejpeg.encode_jpeg(resize_antialiased(whole, *to), 90, "rgb", "420")
    assert psnr(got, reference) > psnr(simplejpeg.decode_jpeg(by_rgb), reference) - 0.5
    assert simplejpeg.decode_jpeg_header(made)[3] == simplejpeg.decode_jpeg_header(by_rgb)[3]


def test_every_thread_gives_the_same_bytes_whatever_came_before() -> None:
    files = [simplejpeg.encode_jpeg(picture(260 + 31 * k, 397 + 17 * k)) for k in range(8)]
    policy = ImagePolicy(short_side=200, quality=90)
    expected = [prepare_image(data, policy).data for data in files]
    found: list[list[bytes]] = []

    def work(order: int) -> None:
        made = {k: prepare_image(files[k], policy).data for k in range(len(files))[::order]}
        found.append([made[k] for k in range(len(files))])

    threads = [threading.Thread(target=work, args=(order,)) for order in (1, -1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected, expected]


@pytest.mark.parametrize(
    "data",
    [
        encoded(Image.fromarray(picture(200, 200)).convert("L"), "JPEG"),
        simplejpeg.encode_jpeg(picture(200, 200), 90, "rgb", "411"),
        simplejpeg.encode_jpeg(picture(200, 12), 90, "rgb", "420"),
        encoded(Image.fromarray(picture(200, 200)), "JPEG", progressive=True),
    ],
)
def test_what_planes_do_not_suit_goes_by_way_of_rgb(data: bytes) -> None:
    whole = simplejpeg.decode_jpeg(data)
    image = prepare_image(data, ImagePolicy(max_side=100, quality=90))
    assert image.action == Action.RESIZED | Action.REENCODED
    reference = resize_antialiased(whole, image.height, image.width)
    assert psnr(simplejpeg.decode_jpeg(image.data), reference) > 28


def test_damage_is_refused_as_elsewhere() -> None:
    data = simplejpeg.encode_jpeg(picture(200, 300), 90)
    policy = ImagePolicy(short_side=100, quality=90)
    for cut in range(len(data) // 2, len(data) * 19 // 20, 97):
        with pytest.raises(BadImage, match="truncated"):
            prepare_image(data[:cut], policy)
    assert prepare_image(data, policy).data == prepare_image(data + b"more", policy).data


def test_an_image_after_a_damaged_one_is_packed_as_ever() -> None:
    data = simplejpeg.encode_jpeg(picture(200, 300), 90)
    table = data.index(b"\xff\xc4") + 5
    damaged = [
        data[:table] + bytes(b ^ 0x5A for b in data[table : table + 16]) + data[table + 16 :],
        data[:-300],
    ]
    policy = ImagePolicy(short_side=100, quality=90)
    expected = prepare_image(data, policy).data
    for other in damaged:
        with pytest.raises(BadImage):
            prepare_image(other, policy)
        assert prepare_image(data, policy).data == expected
