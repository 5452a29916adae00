"""Reading many small files: see `loaders.packs.stored.read_files`."""

from __future__ import annotations

import numpy as np

from loaders.kernels.memory import close_file, entry, open_file, read_file


@entry
def read_all(paths, path_starts, starts, data, good):
    """Read all files; see `loaders.packs.stored.read_files`."""
    for i in range(len(good)):
        file = open_file(np.uintp(paths.ctypes.data) + np.uintp(path_starts[i]), np.int32(0))
        if file < 0:
            continue
        at, stop = starts[i], starts[i + 1]
        is_short = True
        while is_short:
            # One byte more is asked for: it stays free where the file has the size that was expected.
            count = read_file(file, np.uintp(data.ctypes.data) + np.uintp(at), np.uintp(stop + 1 - at))
            at += count
            is_short = count > 0 and at < stop
        good[i] = count >= 0 and at == stop
        close_file(file)
