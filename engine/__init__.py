"""Everything that takes batches from the loaders: training, evaluation and reports."""

import loaders.common  # noqa: F401  (imported first, so that Ctrl-C ends a script in one line)
