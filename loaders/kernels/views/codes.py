"""Codes of the pixel operations in `ViewParameters`, with their arguments.

An operation of several arguments takes as many slots: its code is in the first, `NONE` in the others.
"""

NONE = 0
BRIGHTNESS = 1  # factor
CONTRAST = 2  # factor
SATURATION = 3  # factor
HUE = 4  # turn of the circle, in [-0.5, 0.5]
GRAYSCALE = 5
BLUR = 6  # standard deviation in pixels
SOLARIZE = 7  # threshold of 255
POSTERIZE = 8  # bits kept
INVERT = 9
AUTOCONTRAST = 10
EQUALIZE = 11
SHARPNESS = 12  # factor
AFFINE = 13  # a, b, c, d, e, f, fill: source (x, y) = (a x + b y + c, d x + e y + f), from the view's centre
CUTOUT = 14  # top, left, bottom, right in pixels of the view; red, green, blue
STANDARDIZE = 15  # eps of 255, added to the deviation
NOISE = 16  # top, left, bottom, right in pixels of the view; the key, two whole numbers below 2^24

ROUNDING = 2.0**-10
"""Of 255: more than rounding errors come to, by which the values of processors and devices differ. A channel
that spans no more is of one colour, and a value below a threshold by no more has reached it."""

HALF = 0.5 + ROUNDING
"""Added before a value is cut to a level: a half that rounding errors brought lower goes up too."""

ARGUMENTS = {AFFINE: 7, CUTOUT: 7, NOISE: 6}
"""Slots of the operations that take more than one."""

MAX_ARGUMENTS = 7
