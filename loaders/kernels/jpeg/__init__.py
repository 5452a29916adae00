"""Our decoder of baseline JPEGs, the check that JPEG files are complete, and access to libjpeg-turbo."""
