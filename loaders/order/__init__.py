"""Which row comes when: pure functions of the seed, the epoch and the position."""
