"""Preparing one image for a pack: copy it, convert it, or refuse it with a reason."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from functools import cached_property
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from loaders.common.errors import UserError
from loaders.kernels.jpeg.turbojpeg import CMYK, Decompressor, check_jpeg, decode_jpeg, factor_leaving
from loaders.packs.images.jpeg_header import JpegError, JpegHeader, is_jpeg, parse_jpeg_header, without_junk
from loaders.packs.images.resize import crop_middle, fit_inside, fit_short_side, resize_antialiased
from loaders.packs.reasons import MAX_PIXELS, BadImage, Reason

if TYPE_CHECKING:
    from loaders.packs.images.odd_formats import DecodedImage

DEFAULT_QUALITY = 95
# Neither FFCV's 16-bit metadata nor a JPEG can hold a longer side.
MAX_SIDE_PX = 65_535
_NO_SUBSAMPLING_FROM_QUALITY = 95


class Action(IntFlag):
    """Flags for what was done to an image, as the index stores them; 0 means that its bytes were copied."""

    REENCODED = 1
    RESIZED = 2
    ROTATED = 4  # the orientation in EXIF or XMP was applied
    CONVERTED = 8  # the file was no JPEG, or one with four colour components
    FIRST_FRAME = 16  # only the first frame of an animation was kept
    CROPPED = 32  # cropped to the square in the middle
    DECODED = 64  # stored as pixels
    REPAIRED = 128  # a strict decoder complains about the file, but a tolerant one decodes it


@dataclass(frozen=True)
class ImagePolicy:
    """How images are packed.

    Attributes:
        max_side: limit of the longer side in pixels; larger images are shrunk. None sets no limit.
        short_side: limit of the shorter side in pixels; larger images are shrunk. None sets no limit.
        crop_square: keep only the largest square in the middle of each image.
        quality: JPEG quality, 1 to 100. Without a size limit or a crop, every image is re-encoded with it.
            With a limit or a crop, plain JPEGs that need neither shrinking nor cropping are still copied.
            None copies every JPEG that can be copied and encodes the rest with quality 95, unless `encoding`
            is "raw".
        encoding: "jpeg", or "raw" for decoded pixels, which take more space but no time to decode.
        max_pixels: images with more pixels are refused before decoding, as decompression bombs.
        damaged: "repair" packs a JPEG that only a tolerant decoder reads, unless over 1 % of its pixels are
            lost; "quarantine" refuses it.
    """

    max_side: int | None = None
    quality: int | None = None
    max_pixels: int = MAX_PIXELS
    short_side: int | None = None
    crop_square: bool = False
    encoding: Literal["jpeg", "raw"] = "jpeg"
    damaged: Literal["repair", "quarantine"] = "repair"

    def __post_init__(self) -> None:
        """Refuse values out of range, unknown choices, and `quality` beside encoding "raw"."""
        for option, side in (("--max-side", self.max_side), ("--short-side", self.short_side)):
            if side is not None and not 1 <= side <= MAX_SIDE_PX:
                raise UserError(f"{option} {side}: expected 1 to {MAX_SIDE_PX} pixels")
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise UserError(f"--quality {self.quality}: expected 1 to 100")
        if self.encoding not in ("jpeg", "raw"):
            raise UserError(f"--encoding {self.encoding!r}: expected jpeg or raw")
        if self.encoding == "raw" and self.quality is not None:
            raise UserError("--quality applies only to JPEG, not to --encoding raw: leave one of them out")
        if self.damaged not in ("repair", "quarantine"):
            raise UserError(f"--damaged {self.damaged!r}: expected repair or quarantine")
        if self.max_pixels < 1:
            raise UserError(f"--max-pixels {self.max_pixels}: expected at least 1")

    @cached_property
    def keeps_sizes(self) -> bool:
        """Tell whether JPEGs of any size are copied, so that packed files are about as large as inputs."""
        return self.copies and not self.limits_sizes

    @cached_property
    def limits_sizes(self) -> bool:
        """Tell whether the policy changes the size of some images."""
        return self.max_side is not None or self.short_side is not None or self.crop_square

    @cached_property
    def encodes_all(self) -> bool:
        """Tell whether every image is re-encoded with `quality`, regardless of its size."""
        return self.quality is not None and not self.limits_sizes

    @cached_property
    def copies(self) -> bool:
        """Tell whether plain, upright JPEGs that need no change of size keep their bytes."""
        return not self.encodes_all and self.encoding == "jpeg"

    def geometry(self, height: int, width: int) -> Geometry:
        """Return how an upright image of this size is cropped and resized."""
        side = min(height, width)
        cropped = (side, side) if self.crop_square else (height, width)
        size = fit_inside(*cropped, self.max_side)
        if self.short_side is not None and min(size) > self.short_side:
            size = fit_short_side(*cropped, self.short_side)
        return Geometry(*cropped, *size)


class Geometry(NamedTuple):
    """Size of the crop, and its size after resizing, in pixels."""

    crop_height: int
    crop_width: int
    height: int
    width: int


COPIED = Action(0)


class PreparedImage(NamedTuple):
    """An image in the form in which a shard stores it.

    Attributes:
        data: JPEG bytes, or uint8 pixels [height, width, 3] if `is_raw`.
        messages: warnings of the decoders.
    """

    data: bytes
    height: int
    width: int
    action: Action
    is_raw: bool = False
    messages: tuple[str, ...] = ()


def prepare_image(data: bytes, policy: ImagePolicy) -> PreparedImage:
    """Check an image completely and convert it to the form in which it is packed.

    Args:
        data: the file's bytes, in any format.

    Returns:
        The same bytes if they are a plain, upright JPEG that the policy copies; otherwise a new JPEG, or
        pixels if the policy stores these.

    Raises:
        BadImage: the data cannot be packed; its `reason` says why.
    """
    if not is_jpeg(data):
        if not data:
            raise BadImage(Reason.EMPTY, "an empty file")
        return _prepare_cold(data, policy)
    try:
        header = parse_jpeg_header(data)
        _check_form(header, policy)
        if not header.is_plain or header.orientation != 1:
            return _prepare_odd_jpeg(data, header, policy)
        size = header.height, header.width
        if policy.keeps_sizes or (policy.copies and policy.geometry(*size) == (*size, *size)):
            check_jpeg(data)
            return PreparedImage(data, header.height, header.width, COPIED)
        if (image := _shrink_planes(data, header, policy)) is not None:
            return image
        return _finish(*_decode_scaled(data, header, policy), policy, size)
    except ValueError as error:
        return _prepare_damaged(data, error, policy)


def _check_form(header: JpegHeader, policy: ImagePolicy) -> None:
    """Refuse a JPEG with too many pixels or of an unsupported form, before it is decoded."""
    if header.height * header.width > policy.max_pixels:
        size = f"{header.width}x{header.height} pixels"
        raise BadImage(Reason.TOO_LARGE, f"{size}, over the limit of {policy.max_pixels} pixels")
    if header.precision != 8 or header.num_components not in (1, 3, 4):
        form = f"{header.precision} bits and {header.num_components} components"
        raise BadImage(
            Reason.UNSUPPORTED,
            f"a JPEG of {form}, which is not supported: convert it to a PNG of 8 or 16 bits",
        )


def _prepare_damaged(data: bytes, error: ValueError, policy: ImagePolicy) -> PreparedImage:
    """Repair a JPEG that a strict decoder complains about; refuse it if this fails or the policy says so."""
    from loaders.packs.images.jpeg_repair import find_scans, lost_share, repair_jpeg  # loads Pillow

    complaint = str(error)
    if policy.damaged == "repair":
        return _finish_decoded(repair_jpeg(data, complaint, policy.max_pixels), Action.REPAIRED, policy)
    is_cut = isinstance(error, JpegError) and error.reason == Reason.TRUNCATED
    if is_cut or lost_share(data, find_scans(data), policy.max_pixels) > 0:
        raise BadImage(Reason.TRUNCATED, f"truncated: {complaint}")
    raise BadImage(Reason.DAMAGED, f"damaged JPEG: {complaint}")


def _shrink_planes(data: bytes, header: JpegHeader, policy: ImagePolicy) -> PreparedImage | None:
    """Shrink a plain JPEG in its YCbCr planes; None if it is damaged, or policy or image need another way."""
    if policy.encoding != "jpeg" or (policy.quality or DEFAULT_QUALITY) >= _NO_SUBSAMPLING_FROM_QUALITY:
        return None
    size, to = (header.height, header.width), policy.geometry(header.height, header.width)
    if header.num_components != 3 or (to.crop_height, to.crop_width) != size or (to.height, to.width) == size:
        return None
    from loaders.packs.images.planes import shrink_planes  # loads compiled code

    factor = dct_factor(header.height, header.width, to.height, to.width)
    encoded = shrink_planes(data, factor, to.height, to.width, policy.quality or DEFAULT_QUALITY)
    if encoded is None:
        return None
    return PreparedImage(encoded, to.height, to.width, Action.RESIZED | Action.REENCODED)


def _decode_scaled(data: bytes, header: JpegHeader, policy: ImagePolicy) -> tuple[NDArray[np.uint8], Action]:
    """Decode a plain JPEG, at a reduced scale if it will be shrunk much; return pixels and `COPIED`."""
    to = policy.geometry(header.height, header.width)
    if (to.crop_height, to.crop_width) == (to.height, to.width):
        return decode_jpeg(data), COPIED
    # The size of the whole image at the target's scale, rounded up.
    height = -(-header.height * to.height // to.crop_height)
    width = -(-header.width * to.width // to.crop_width)
    factor = dct_factor(header.height, header.width, height, width)
    return decode_jpeg(data, factor), COPIED


def dct_factor(height: int, width: int, to_height: int, to_width: int) -> int:
    """Return the factor, 1, 2, 4 or 8, by which decoding shrinks an image before it is resized to the target.

    The decoder's inverse DCT gives 1/2, 1/4 or 1/8 of the size for less work, but filters worse than the
    resize that follows. The final JPEG loses less than 0.2 dB if the decoded sides are at least twice those
    of the target, and 1 to 6 dB otherwise (docs/performance.md). Other fractions decode more slowly than the
    full size.
    """
    return factor_leaving(height, width, 2 * to_height, 2 * to_width)


def _prepare_odd_jpeg(data: bytes, header: JpegHeader, policy: ImagePolicy) -> PreparedImage:
    """Prepare a JPEG that is not plain or not upright; it is checked as strictly as a plain one."""
    if header.num_components == 4:
        # Pillow handles Adobe's inverted CMYK but misses some damage, so libjpeg-turbo checks first.
        Decompressor().decode(data, form=CMYK)
        return _prepare_cold(data, policy)
    from loaders.packs.images.odd_formats import upright

    action = COPIED if header.orientation == 1 else Action.ROTATED
    # A new decompressor, since a used one keeps the tables of the previous image.
    return _finish(upright(Decompressor().decode(data), header.orientation), action, policy)


def _prepare_cold(data: bytes, policy: ImagePolicy) -> PreparedImage:
    """Prepare an image that is no JPEG, a JPEG of four components, or a JPEG with junk before its header."""
    from loaders.packs.images.odd_formats import decode_any  # loads Pillow

    try:
        decoded = decode_any(data, policy.max_pixels)
    except BadImage as error:
        whole = without_junk(data) if error.reason == Reason.NOT_AN_IMAGE else None
        if whole is not None:
            text = f"{len(data) - len(whole)} bytes of junk before its header"
            return _prepare_damaged(whole, JpegError(Reason.DAMAGED, text), policy)
        raise
    return _finish_decoded(decoded, COPIED, policy)


def _finish_decoded(decoded: DecodedImage, action: Action, policy: ImagePolicy) -> PreparedImage:
    """Turn decoded pixels upright, then crop, resize and encode them as the policy says."""
    from loaders.packs.images.odd_formats import upright

    if decoded.is_rotated:
        action |= Action.ROTATED
    if decoded.is_converted:
        action |= Action.CONVERTED
    if decoded.num_frames > 1:
        action |= Action.FIRST_FRAME
    image = _finish(upright(decoded.pixels, decoded.orientation), action, policy)
    return image._replace(messages=decoded.messages)


def _finish(
    pixels: NDArray[np.uint8], action: Action, policy: ImagePolicy, size: tuple[int, int] | None = None
) -> PreparedImage:
    """Crop, resize and encode pixels as the policy says.

    Args:
        pixels: uint8 [H, W, 3], upright.
        size: height and width of the image before decoding shrank it; by default those of `pixels`.
    """
    full = pixels.shape[:2] if size is None else size
    to = policy.geometry(*full)
    if max(to.height, to.width) > MAX_SIDE_PX:
        size_text = f"{to.width}x{to.height} pixels"
        raise BadImage(Reason.TOO_LARGE, f"{size_text}: a side over {MAX_SIDE_PX}; give --max-side")
    if (to.crop_height, to.crop_width) != full:
        action |= Action.CROPPED
        pixels = crop_middle(pixels)
    if (to.height, to.width) != (to.crop_height, to.crop_width):
        action |= Action.RESIZED
    pixels = resize_antialiased(pixels, to.height, to.width)
    if policy.encoding == "raw":
        return PreparedImage(pixels.tobytes(), to.height, to.width, action | Action.DECODED, is_raw=True)
    return _encode(pixels, action, policy)


def _encode(pixels: NDArray[np.uint8], action: Action, policy: ImagePolicy) -> PreparedImage:
    quality = DEFAULT_QUALITY if policy.quality is None else policy.quality
    subsampling = "444" if quality >= _NO_SUBSAMPLING_FROM_QUALITY else "420"
    data = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality, "rgb", subsampling)
    return PreparedImage(data, pixels.shape[0], pixels.shape[1], action | Action.REENCODED)
