"""Reports of runs and of other folders of results, each one self-contained HTML file."""
