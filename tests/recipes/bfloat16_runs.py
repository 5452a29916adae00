"""Runs a recipe on a processor that is said to have bfloat16, and goes on on one that has none.

usage: python -m tests.recipes.bfloat16_runs NAME PACK FOLDER
"""

import sys
from pathlib import Path

import torch

from loaders import open_pack
from tests.recipes.test_backends import losses

if __name__ == "__main__":
    name, pack, out = sys.argv[1], open_pack(sys.argv[2]), Path(sys.argv[3]) / sys.argv[1]
    shared = {"precision": "auto", "progress": True}
    torch.cpu.get_capabilities = lambda: {"avx512_bf16": True}
    losses(name, pack, out, **shared, max_steps=1)
    torch.cpu.get_capabilities = dict
    losses(name, pack, out, **shared, max_steps=2, resume=True)
