"""Tools, such as for packing, measuring, predicting and reporting: scripts, and folders of their modules."""
