"""Functions of libjpeg-turbo that kernels call without the interpreter and its lock."""

from __future__ import annotations

from llvmlite import binding
from numba import types

from loaders.kernels.jpeg.turbojpeg import PATH
from loaders.kernels.memory import c_function

binding.load_library_permanently(PATH)
_ADDRESS, _INT = types.uintp, types.int32
read_header = c_function("tj3DecompressHeader", _INT, _ADDRESS, _ADDRESS, _ADDRESS)
get_parameter = c_function("tj3Get", _INT, _ADDRESS, _INT)
# The second argument in C is a struct of four int32, x, y, width and height; it is passed in two registers.
set_region = c_function("tj3SetCroppingRegion", _INT, _ADDRESS, types.uint64, types.uint64)
decompress = c_function("tj3Decompress8", _INT, _ADDRESS, _ADDRESS, _ADDRESS, _ADDRESS, _INT, _INT)
set_parameter = c_function("tj3Set", _INT, _ADDRESS, _INT, _INT)
compress_planes = c_function(
    "tj3CompressFromYUVPlanes8", _INT, _ADDRESS, _ADDRESS, _INT, _ADDRESS, _INT, _ADDRESS, _ADDRESS
)
copy_bytes = c_function("memcpy", _ADDRESS, _ADDRESS, _ADDRESS, _ADDRESS)
