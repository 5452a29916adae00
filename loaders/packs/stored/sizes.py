"""Sizes and places that compiled code and its callers agree on."""

from __future__ import annotations

HEIGHT, WIDTH, CLEAN, HAS_EXIF = 0, 1, 2, 3  # of the facts of a file
RAW_BYTES = 16 + 256  # of a table of codes: how many there are of each length, then their symbols
NUM_TABLES = 8  # of a file: four of quantisation steps, four of codes
MAX_BLOCKS = 10  # of a unit, by the standard; of the usual kind 6
NUM_CODES = 34  # per length 1 to 16 the last code (-1: none), then the place of its symbol
SCAN_PEEK_BITS, DECODE_PEEK_BITS = 13, 10
SCAN_ROWS, DECODE_ROWS = 1 << SCAN_PEEK_BITS, 1 << DECODE_PEEK_BITS
# A block takes at most 64 symbols of 31 bits, so this much is read behind a scan that is cut off.
SLACK = 288
COEFFICIENTS = 72  # int16 of a block, with the place of no meaning
LANES = 16  # values that vectors may read behind a row, and pixels that are converted together
MAX_ROW_PX = 65_536

# Columns of the facts of a plane that shrinks: values of a source row, values of a pixel, where the result
# begins; of the rows where their tables of first pixels and of weights begin, taps of a pixel, and how many
# there are; then the same of the columns.
PLANE_VALUES, PLANE_CHANNELS, PLANE_OUT, PLANE_ROWS, PLANE_COLUMNS = 0, 1, 2, 3, 7
