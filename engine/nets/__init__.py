"""Networks, what they start from, and their files."""
