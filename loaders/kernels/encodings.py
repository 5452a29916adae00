"""How the images of a pack are stored: values of the column `encoding`."""

ENCODING_JPEG, ENCODING_RAW = 0, 1
