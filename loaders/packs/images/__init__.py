"""What becomes of one image on its way into a pack."""
