"""What `tools/show_views.py` is made of."""
