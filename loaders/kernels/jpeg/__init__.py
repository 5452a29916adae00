"""The baseline JPEG decoder, the check of whole files, and calls of libjpeg-turbo from compiled code."""
