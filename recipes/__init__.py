"""The methods, one runnable file each."""
