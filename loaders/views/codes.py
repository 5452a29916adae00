"""Codes of the pixel operations in `ViewParameters`; the meaning of their argument stands beside each."""

NONE = 0
BRIGHTNESS = 1  # factor
CONTRAST = 2  # factor
SATURATION = 3  # factor
HUE = 4  # turn of the circle, in [-0.5, 0.5]
GRAYSCALE = 5
BLUR = 6  # standard deviation in pixels
SOLARIZE = 7  # threshold of 255
