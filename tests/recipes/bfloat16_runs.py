"""Run a recipe on a simulated processor with bfloat16, and resume the run on one without.

Then do the same with a simulated GPU, for which the loader delivers bfloat16 views too.

usage: python -m tests.recipes.bfloat16_runs NAME PACK FOLDER
"""

import sys
from pathlib import Path

import torch

from engine.train import autocast
from loaders import open_pack
from tests.recipes.test_backends import losses

if __name__ == "__main__":
    name, pack, out = sys.argv[1], open_pack(sys.argv[2]), Path(sys.argv[3]) / sys.argv[1]
    shared = {"precision": "auto", "progress": True, "resolution": 32}  # see engine/train/advice.py
    on_machine = autocast.dtype_of_views
    for folder, device in ((out, "cpu"), (out.with_name(f"{name}-views"), "cuda")):
        torch.cpu.get_capabilities = lambda: {"avx512_bf16": True}
        autocast.dtype_of_views = lambda precision, _, run, device=device: on_machine(precision, device, run)
        losses(name, pack, folder, **shared, max_steps=1)
        torch.cpu.get_capabilities = dict
        autocast.dtype_of_views = on_machine
        losses(name, pack, folder, **shared, max_steps=2, resume=True)
