"""Training on batches, and what is measured and reported of it."""

import loaders.common  # noqa: F401  (first: from here on Ctrl-C ends a script in one line)
