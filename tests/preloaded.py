"""The imports that processes forked for tests inherit; see `tests.forked`."""

import gc

import accelerate
import pyarrow.parquet
import sklearn.linear_model
import timm
import torch
import torchvision

import recipes.pipeline
import tests.engine.synthetic
import tests.recipes.short_runs
from loaders.common.allocator import keep_freed_memory

__all__ = [
    "accelerate",
    "pyarrow",
    "recipes",
    "sklearn",
    "tests",
    "timm",
    "torch",
    "torchvision",
]

keep_freed_memory()
gc.freeze()  # see tests/conftest.py
