"""Drawn pictures equal a slow reference: blended windows of two textures, in JPEGs of a given size."""

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from tools.packing.names import MAX_SIDE
from tools.packing.synthetic import NUM_TEXTURES, Pictures, Textures, draw_jpegs

TEXTURES = Textures(0)


def pictures(sides: list[tuple[int, int]], quality: int = 95) -> Pictures:
    rng, count = np.random.default_rng(3), len(sides)
    return Pictures(
        np.array(sides), rng.integers(0, NUM_TEXTURES, (count, 2)), rng.random((count, 4)),
        rng.integers(0, 257, count), np.full(count, quality),
    )  # fmt: skip


def planes_of(drawn: Pictures, i: int) -> list[np.ndarray]:
    """Return luma and the two colour planes of one picture, by a slow reference."""
    height, width = drawn.sides[i]
    rows, columns = -(-height // 2), -(-width // 2)
    half = MAX_SIDE // 2
    found = []
    for plane, scale in ((TEXTURES.luma, 2), (TEXTURES.colors[0], 1), (TEXTURES.colors[1], 1)):
        side = half * scale
        windows = []
        for kind, y, x in zip(drawn.kinds[i], drawn.places[i, ::2], drawn.places[i, 1::2], strict=True):
            top, left = scale * int(y * (half - rows + 1)), scale * int(x * (half - columns + 1))
            texture = plane.reshape(NUM_TEXTURES, side, side)[kind].astype(int)
            windows.append(texture[top : top + scale * rows, left : left + scale * columns])
        share = int(drawn.shares[i])
        found.append((windows[0] * share + windows[1] * (256 - share)) >> 8)
    return found


@pytest.mark.parametrize("sides", [(96, 96), (97, 73), (1, 16), (256, 255)])
def test_a_picture_is_two_windows_blended(sides: tuple[int, int]) -> None:
    drawn = pictures([(16, 16), sides, (40, 30)], quality=100)
    (jpeg,) = draw_jpegs(TEXTURES, drawn, np.array([1]))
    with Image.open(io.BytesIO(jpeg)) as image:
        image.draft("YCbCr", image.size)
        assert (image.height, image.width) == sides
        assert image.layer[0][1:3] == (2, 2)
        pixels = np.asarray(image).astype(int)
    luma, *colors = planes_of(drawn, 1)
    assert np.abs(pixels[..., 0] - luma[: sides[0], : sides[1]]).max() <= 3
    for number, color in enumerate(colors, 1):
        spread = np.repeat(np.repeat(color, 2, 0), 2, 1)[: sides[0], : sides[1]]
        assert np.abs(pixels[..., number] - spread).mean() < 8  # decoders smooth enlarged colours


def test_pictures_do_not_depend_on_threads_or_calls() -> None:
    drawn = pictures([(72 + i, 120 - i) for i in range(40)], quality=80)
    one_call = [bytes(jpeg) for jpeg in draw_jpegs(TEXTURES, drawn, np.arange(40))]
    with ThreadPoolExecutor(3) as pool:
        alone = list(pool.map(lambda i: bytes(draw_jpegs(TEXTURES, drawn, np.array([i]))[0]), range(40)))
    assert one_call == alone
    assert len(set(one_call)) == 40


def test_what_the_encoder_refuses_is_an_error() -> None:
    drawn = pictures([(16, 16), (16, 16)])
    drawn.qualities[1] = 101
    with pytest.raises(RuntimeError, match=r"picture 1: .*tj3Set"):
        draw_jpegs(TEXTURES, drawn, np.arange(2))
