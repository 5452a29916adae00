"""The tables of docs/results.md: what they are made of, how they are measured, how they are shown."""
