"""Which rows can be read, for backends that decode out of our sight: their bytes are checked beforehand."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from loaders.backends.cpu import MAX_REPLACEMENTS
from loaders.backends.work import Work
from loaders.common.errors import BadImageError, LoaderError, UserError
from loaders.kernels.encodings import ENCODING_RAW
from loaders.kernels.jpeg.turbojpeg import decode_jpeg
from loaders.packs import Split
from loaders.packs.shards.checksum import crc32, crc32_all


def are_pixels(split: Split) -> bool:
    """Tell whether the rows of a split hold pixels, not JPEG.

    Raises:
        UserError: it holds both.
    """
    encodings = np.unique(split.pack.columns.encoding[split.rows(np.arange(len(split)))])
    if len(encodings) > 1:
        raise UserError(
            f"split {split.name!r}: expected JPEG alone or pixels alone, found both; use backend='cpu'"
        )
    return bool(encodings[0] == ENCODING_RAW)


class VerifiedRows:
    """The bytes of a split's rows, each compared with the CRC-32 in the index when it is wanted.

    A decoder that warns nobody about damage, or dies of it, must not meet any. Packing has decoded every
    image, so bytes with the right CRC-32 are readable. The rule for bad rows is the cpu backend's: the next
    readable row of the split stands in.

    Args:
        work: whose option `verify` compares a row every time it is wanted; else the first time alone.

    Attributes:
        bad_rows: damaged rows met so far and what was wrong.
        are_pixels: the rows hold pixels, not JPEG.

    Raises:
        UserError: the split holds both.
    """

    def __init__(self, work: Work) -> None:
        split = work.split
        self.bad_rows: dict[int, str] = {}
        self._split = split
        self._replace_bad = work.replace_bad
        self._train = work.train
        self._verify = work.options.verify
        self._crc32 = split.pack.columns.crc32
        self._is_good = np.zeros(len(split.pack), np.bool_)
        self._maps: dict[int, NDArray[np.uint8]] = {}
        self.are_pixels = are_pixels(split)

    def resolve(
        self, positions: NDArray[np.int64], valid: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """Put readable rows in the place of damaged ones.

        Args:
            positions: int64 [B], rows of the split.
            valid: bool [B], False = padding.

        Returns:
            int64 [B] positions whose labels count, int64 [B] rows to report, int64 [B] rows to read, and
            bool [B] what is valid.

        Raises:
            LoaderError: a damaged row when `replace_bad` is off, or no readable row to replace it by.
        """
        rows = self._split.rows(positions)
        damaged = [i for i in self._doubtful(rows) if not self._readable(int(rows[i]))]
        if not damaged:
            return positions, rows, rows, valid
        positions, shown, read, valid = positions.copy(), rows.copy(), rows.copy(), valid.copy()
        for i in damaged:
            position = self._next_readable(int(positions[i]), int(rows[i]))
            read[i] = self._split.rows(np.array([position]))[0]
            if self._train:
                positions[i], shown[i] = position, read[i]
            else:
                valid[i] = False
        return positions, shown, read, valid

    def images(self, rows: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
        """Return the images of rows that `resolve` gave, without a copy: JPEG bytes or pixels [H, W, 3]."""
        columns, data = self._split.pack.columns, self._stored(rows)
        if not self.are_pixels:
            return data
        sizes = zip(columns.height[rows].tolist(), columns.width[rows].tolist(), strict=True)
        return [pixels.reshape(h, w, 3) for pixels, (h, w) in zip(data, sizes, strict=True)]

    def _stored(self, rows: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
        columns = self._split.pack.columns
        places = (columns.shard[rows].tolist(), columns.offset[rows].tolist(), columns.size[rows].tolist())
        return [self._shard(s)[first : first + size] for s, first, size in zip(*places, strict=True)]

    def _doubtful(self, rows: NDArray[np.int64]) -> list[int]:
        """Return the places in `rows` that need a closer look; with `verify` after a quick one at each."""
        if not self._verify:
            doubtful: list[int] = np.flatnonzero(~self._is_good[rows]).tolist()
            return doubtful
        try:
            changed = crc32_all(*self._split.pack.locate(rows)) != self._crc32[rows]
        except UserError:  # a shard that is cut or not there: whose rows these are, each says itself
            return list(range(len(rows)))
        known = np.isin(rows, list(self.bad_rows))  # whatever their bytes
        found: list[int] = np.flatnonzero(changed | known).tolist()
        return found

    def find_undecodable(self, rows: NDArray[np.int64]) -> bool:
        """Decode rows one by one and note those that fail; return whether any did."""
        found = False
        if self.are_pixels:
            return found
        for row in np.unique(rows).tolist():
            try:
                decode_jpeg(self._split.pack.view(row))
            except ValueError as error:
                self._note(row, str(error))
                found = True
        return found

    def _shard(self, shard: int) -> NDArray[np.uint8]:
        mapped = self._maps.get(shard)
        if mapped is None:  # a plain array slices faster than a memmap
            mapped = self._maps[shard] = self._split.pack.shard_map(shard).view(np.ndarray)
        return mapped

    def _readable(self, row: int) -> bool:
        if row in self.bad_rows:
            return False
        if self._is_good[row] and not self._verify:
            return True
        try:
            data = self._split.pack.view(row)
        except UserError as error:
            self._note(row, str(error))
            return False
        if crc32(data.data) != self._crc32.item(row):
            self._note(row, "its bytes differ from the CRC-32 in the index")
            return False
        self._is_good[row] = True
        return True

    def _note(self, row: int, reason: str) -> None:
        pack = self._split.pack
        shard = pack.shard_path(int(pack.columns.shard[row])).name
        self._is_good[row] = False
        self.bad_rows[row] = f"row {row} ({pack.key(row)}) in {shard}: {reason}"

    def _next_readable(self, position: int, row: int) -> int:
        if not self._replace_bad:
            raise BadImageError(self._split.pack.path, self.bad_rows[row])
        for step in range(1, min(MAX_REPLACEMENTS, len(self._split)) + 1):
            other = (position + step) % len(self._split)
            if self._readable(int(self._split.rows(np.array([other]))[0])):
                return other
        raise LoaderError(
            f"{self.bad_rows[row]}; nor could any of the {MAX_REPLACEMENTS} rows after it be read"
        )
