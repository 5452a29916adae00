"""Functions of libjpeg-turbo by name, called by compiled loops without the interpreter or its lock."""

from __future__ import annotations

from typing import Any

from llvmlite import binding
from numba import types

from loaders.turbojpeg import PATH

# Found by name, so that what calls them can be kept on disk, where an address could not.
binding.load_library_permanently(PATH)
read_header = types.ExternalFunction(
    "tj3DecompressHeader", types.int32(types.uintp, types.uintp, types.uintp)
)
get_parameter = types.ExternalFunction("tj3Get", types.int32(types.uintp, types.int32))
# Its second argument is a struct of four int32: x, y, width and height, in the registers of two integers.
set_region = types.ExternalFunction(
    "tj3SetCroppingRegion", types.int32(types.uintp, types.uint64, types.uint64)
)
decompress = types.ExternalFunction(
    "tj3Decompress8",
    types.int32(types.uintp, types.uintp, types.uintp, types.uintp, types.int32, types.int32),
)
set_parameter: Any = types.ExternalFunction("tj3Set", types.int32(types.uintp, types.int32, types.int32))
compress_planes: Any = types.ExternalFunction(
    "tj3CompressFromYUVPlanes8",
    types.int32(types.uintp, types.uintp, types.int32, types.uintp, types.int32, types.uintp, types.uintp),
)
