"""What the compile gate compiles: a row of an operator's configurations, described."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Build:
    """One kernel with one configuration."""

    name: str
    kernel: Any
    types: dict[str, str]
    """Triton types of the run-time arguments: `*bf16`, `i32`, ..."""
    constants: dict[str, Any]
    warps: int
    stages: int
    divisible: tuple[str, ...]
    """Arguments that are multiples of 16 in the shapes that matter; loads of 128 bits depend on it."""
    tensor_cores: bool = False
    wide_loads: bool = False
