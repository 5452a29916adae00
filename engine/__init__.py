"""What trains on batches.

Importing this package before torch makes OpenMP's threads sleep instead of spin while they wait for each
other. Loader threads share the cores with torch's; a spinning thread then holds the core that the one it
waits for needs, and a training step on a busy 2-core machine took several times as long. A value of
OMP_WAIT_POLICY set outside is kept.
"""

import os

import loaders.common.errors  # noqa: F401 - its package says where libraries may keep files

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
