"""Codes of the pixel operations in `ViewParameters`, with their arguments.

An operation with several arguments takes a slot for each; its code is in the first, `NONE` in the others.
"""

NONE = 0
BRIGHTNESS = 1  # factor
CONTRAST = 2  # factor
SATURATION = 3  # factor
HUE = 4  # rotation of the hue circle, as a fraction in [-0.5, 0.5]
GRAYSCALE = 5
BLUR = 6  # standard deviation in pixels
SOLARIZE = 7  # threshold in [0, 255]
POSTERIZE = 8  # number of bits kept
INVERT = 9
AUTOCONTRAST = 10
EQUALIZE = 11
SHARPNESS = 12  # factor
AFFINE = 13  # a, b, c, d, e, f, fill: source (x, y) = (a x + b y + c, d x + e y + f), with 0 at the centre
CUTOUT = 14  # top, left, bottom, right in pixels of the view; red, green, blue
STANDARDIZE = 15  # eps on the scale of 255, added to the standard deviation
NOISE = 16  # top, left, bottom, right in pixels of the view; random key, two whole numbers below 2^24

ROUNDING = 2.0**-10
"""Margin, on the scale of 255, that exceeds the rounding errors by which values on processors and devices
differ. A channel whose values span at most this margin counts as constant, and a value that is below a
threshold by at most this margin counts as having reached it."""

HALF = 0.5 + ROUNDING
"""Added to a value before it is truncated to a whole level. It exceeds 0.5, so that a half is rounded up even
if rounding errors have lowered it."""

ARGUMENTS = {AFFINE: 7, CUTOUT: 7, NOISE: 6}
"""Number of slots of the operations that take more than one."""

MAX_ARGUMENTS = 7
