"""Compile the device kernels for GPUs that this machine may lack; a program, without Triton's interpreter.

usage: compiling.py KERNEL[:OUT[:FLAGS]] ... TARGET ...; prints a line of JSON per binary.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from loaders.kernels.device import views
from loaders.kernels.device.launch import BLOCK

INTS, FLOATS, LONGS, SIDES = "*i32", "*fp32", "*i64", "i32"
ARGUMENTS = {
    "address": LONGS, "place": LONGS, "sizes": INTS, "box": "*fp64", "window": INTS, "shift": INTS,
    "flip": INTS, "rows": INTS, "half": FLOATS, "codes": INTS, "args": FLOATS, "stage": INTS,
    "source": FLOATS, "known": FLOATS,
    "found": INTS, "view": FLOATS, "partial": FLOATS, "counts": INTS, "gain": FLOATS, "bias": FLOATS,
    "P": SIDES, "R": SIDES, "pixel_step": SIDES, "channel_step": SIDES,
}  # fmt: skip
OUTS = {"float32": "*fp32", "float16": "*fp16", "bfloat16": "*bf16", "uint8": "*u8"}
FLAGS = {
    "across": ("INTERLEAVED", "CUBIC", "ROUNDED"),
    "down": ("CUBIC", "EQUALIZES", "ROUNDED"),
    "advance": ("EQUALIZES",),
}


def every_specialisation() -> list[str]:
    """Return `KERNEL:OUT:FLAGS` of all specialisations that loaders can use."""
    two = ("00", "01", "10", "11")
    found = [f"across:float32:{flags}{rounded}" for flags in two for rounded in "01"]
    for out in OUTS:
        found += [f"down:{out}:{flags}{rounded}" for flags in two for rounded in "01"]
        found += [f"advance:{out}:{flags}" for flags in ("0", "1")]
    return found


def compiled(kernel: str, out: str, flags: str, capability: int) -> dict[str, object]:
    """Compile one specialisation and return its registers per thread and bytes of spills."""
    function = getattr(views, kernel)
    constants = dict(zip(FLAGS[kernel], (flag == "1" for flag in flags), strict=True)) | {"BLOCK": BLOCK}
    kinds = ARGUMENTS | {"out": OUTS[out]} | dict.fromkeys(constants, "constexpr")
    source = ASTSource(
        fn=function,
        signature={name: kinds[name] for name in function.arg_names},
        constexprs={(function.arg_names.index(name),): value for name, value in constants.items()},
    )
    binary = triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4, "enable_fp_fusion": True}
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(binary.asm["cubin"])
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        usage = subprocess.run(
            [tool, "--dump-resource-usage", path], capture_output=True, text=True, check=True
        ).stdout
    registers = [int(number) for number in re.findall(r"REG:(\d+)", usage)]
    stack = [int(number) for number in re.findall(r"(?:STACK|LOCAL):(\d+)", usage)]
    return {
        "kernel": f"{kernel}:{out}:{flags}", "capability": capability, "registers": max(registers),
        "spilled": max(stack), "shared": binary.metadata.shared,
    }  # fmt: skip


def main() -> None:
    """Compile the kernels that the command line names."""
    wanted = [name for name in sys.argv[1:] if not name.isdigit()] or every_specialisation()
    for capability in [int(name) for name in sys.argv[1:] if name.isdigit()] or [80, 90]:
        for name in wanted:
            print(json.dumps(compiled(*name.split(":"), capability)), flush=True)


if __name__ == "__main__":
    main()
