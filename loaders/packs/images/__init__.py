"""How a single image is checked, decoded, resized and encoded on its way into a pack."""
