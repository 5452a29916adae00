"""What every layer may use; nothing here knows of images."""
