"""Compile the Triton kernels of the fractional convolution for GPUs that this machine does not have.

``python scripts/compile_kernels.py`` compiles every kernel, dtype, layout and block size for compute capability 8.0,
8.9 and 9.0 (some minutes); arguments such as ``convolution_kernel:fp32:tf32:nhwc:64:90`` select some of them. Prints a
JSON line for each, and ends with status 1 if one exceeds the shared memory of a thread block, spills more than a
few registers, or lacks the matrix instruction of its dtype.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import re
import sys
from typing import Any

from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from dnas.ops.fractional import triton_kernels
from dnas.ops.fractional.triton_launch import BLOCK_POSITIONS, NUM_STAGES, NUM_WARPS

#: Bytes of shared memory per thread block, by compute capability (CUDA C++ Programming Guide, table of capabilities).
SHARED_MEMORY = {80: 163 << 10, 89: 99 << 10, 90: 227 << 10}
#: Bytes that ptxas may spill: a few registers that are set aside once, next to up to 255 per thread.
FEW_SPILLS = 96
KERNELS = ("convolution_kernel", "weight_gradient_kernel")
#: Type of the maps and precision of products in float32.
TYPES = (("fp32", "tf32"), ("fp32", "ieee"), ("fp16", "tf32"), ("bf16", "tf32"))
MATRIX_TYPES = {("fp32", "tf32"): "tf32", ("fp16", "tf32"): "f16", ("bf16", "tf32"): "bf16"}
MAPS = ("source", "weight", "result", "grad_output")
FLOATS = ("rate_pointer", "partial_grad_weight", "partial_grad_rate")


def main(arguments: list[str]) -> int:
    every = itertools.product(KERNELS, (":".join(pair) for pair in TYPES), ("nchw", "nhwc"), (16, 32, 64), (80, 89, 90))
    used = [parts for parts in every if parts[1] != "fp32:ieee" or parts[3] <= 32]  # larger blocks are not launched
    failed = False
    for name in arguments or [":".join(map(str, parts)) for parts in used]:
        found = check(name)
        failed |= bool(found["problems"])
        print(json.dumps(found), flush=True)
    return int(failed)


def check(name: str) -> dict[str, Any]:
    """Compile one kernel; returns its shared memory in bytes, spilled bytes, matrix instructions and problems."""
    kernel, dtype, precision, layout, block, capability = name.split(":")
    compiled, log = build(kernel, dtype, precision, layout, int(block), int(capability))
    instructions = set(re.findall(r"(?:wgmma\.mma_async|mma\.sync)[.\w]*", compiled.asm["ptx"]))
    spilled = [int(size) for size in re.findall(r"(\d+) bytes spill stores", log)]
    shared, limit = compiled.metadata.shared, SHARED_MEMORY[int(capability)]
    wanted = MATRIX_TYPES.get((dtype, precision))
    problems = [
        *([f"{shared} bytes of shared memory, the limit is {limit}"] if shared > limit else []),
        *([] if spilled else ["no report of ptxas about spills: use an empty TRITON_CACHE_DIR"]),
        *([f"{max(spilled)} bytes of registers are spilled"] if max(spilled, default=0) > FEW_SPILLS else []),
        *(
            [f"no matrix instruction for {wanted}"]
            if wanted and not any(f".{wanted}" in i for i in instructions)
            else []
        ),
    ]
    return {
        "kernel": name,
        "shared_bytes": shared,
        "spilled_bytes": max(spilled, default=None),
        "instructions": sorted(instructions),
        "problems": problems,
    }


def build(kernel: str, dtype: str, precision: str, layout: str, block: int, capability: int) -> tuple[Any, str]:
    """The compiled kernel, and what ptxas reports."""
    function = getattr(triton_kernels, kernel)
    names = function.arg_names
    # Triton makes arguments that are 1 constants: the stride of the innermost dimension, stride and groups.
    ones = [
        "conv_stride",
        "groups",
        *(n for n in names if n.endswith("_stride_c" if layout == "nhwc" else "_stride_x")),
    ]
    constants: dict[str, object] = {name: 1 for name in ones if name in names}
    constants |= {"KERNEL_SIZE": 3, "BLOCK_POSITIONS": BLOCK_POSITIONS, "BLOCK_IN": block, "BLOCK_OUT": block}
    constants |= {"PRECISION": precision, **{n: n == "NEEDS_RATE" for n in ("TRANSPOSED", "NEEDS_RATE") if n in names}}
    types = {name: "constexpr" if name in constants else "i32" for name in names}
    types |= {name: f"*{dtype}" for name in MAPS if name in names} | {name: "*fp32" for name in FLOATS if name in names}
    # PyTorch's memory is aligned; sizes and strides that 16 divides are those of the networks that the kernels are for.
    aligned = [name for name in names if name not in constants and name != "weight_stride_in"]  # which is 9 or 9 C
    divisible = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    target, options = GPUTarget("cuda", capability, 32), {"num_warps": NUM_WARPS, "num_stages": NUM_STAGES}
    knobs.nvidia.dump_ptxas_log = True
    with contextlib.redirect_stdout(io.StringIO()) as log:
        return compile(ASTSource(function, types, constants, divisible), target, options), log.getvalue()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
