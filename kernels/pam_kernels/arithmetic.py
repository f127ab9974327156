"""Device functions shared by all kernels: the few operations that Triton's interpreter computes differently from a GPU.

The interpreter keeps bfloat16 blocks as 16-bit integers: sums and products of them are garbage there, and a cast from
float32 truncates. So kernels load, cast to float32 at once, and go through `round_to` and `dot`, with the flag EMU
telling which of the two machines runs. On a GPU both functions are one instruction each.
"""

from __future__ import annotations

import triton
import triton.language as tl

EMU: bool = triton.knobs.runtime.interpret
"""True in Triton's interpreter (TRITON_INTERPRET=1 before the first import of triton). Kernels take it as a constexpr."""


@triton.jit
def round_to(v, DT: tl.constexpr, EMU: tl.constexpr):
    """v, a float32 (or float64) block, in DT. Rounds to nearest, ties to even; NaN stays NaN."""
    if EMU and DT == tl.bfloat16:
        bits = v.to(tl.float32).to(tl.uint32, bitcast=True)
        even = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        quiet = (bits | 0x400000) >> 16  # rounding would carry a NaN's payload into the exponent
        r = tl.where(v == v, even, quiet).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        r = v.to(DT)
    return r


@triton.jit
def dot(a, b, acc, EMU: tl.constexpr):
    """acc + a @ b, accumulated in the dtype of acc: float32, or float64 in the interpreter.

    Products of two bfloat16 or float16 numbers are exact in float32, so the interpreter multiplies what a tensor core
    multiplies. float32 operands are never rounded to TF32.
    """
    if EMU:
        r = tl.dot(a.to(acc.dtype), b.to(acc.dtype), acc, input_precision="ieee", out_dtype=acc.dtype)
    else:
        r = tl.dot(a, b, acc, input_precision="ieee")
    return r
