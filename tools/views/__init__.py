"""Parts of `tools/show_views.py`."""
