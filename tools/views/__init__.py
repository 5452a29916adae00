"""Contact sheets, and views rendered by torchvision to compare ours with."""
