"""What this machine computes in, and what a run must find again to give the same bits."""

from __future__ import annotations

import ctypes
import platform
import resource
import sys
from pathlib import Path as FilePath
from typing import Any

import torch

from .. import __version__
from ..errors import UsageError
from ..files import read_sealed_json
from ..reporter import Reporter
from .processes import Processes

REMEDY = "delete the run folder and train again"


def precision(wish: str) -> str:
    """fp32 or bf16. `auto`: bf16 where the device computes in it natively."""
    if wish != "auto":
        return wish
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() and _has_bf16_instructions() else "fp32"


def environment(processes: Processes, used_precision: str) -> dict[str, Any]:
    """What env.json says."""
    return {
        "pam_mobile": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__.split("+")[0],
        "device": processes.device.type,
        "precision": used_precision,
        "threads": torch.get_num_threads(),
        "processes": processes.count,
    }


def require_same(path: FilePath, now: dict[str, Any], reporter: Reporter) -> None:
    """Raise UsageError if a run continues with another number of processes or, on the CPU, of threads; warn of other differences."""
    then = read_sealed_json(path, REMEDY)
    if then.get("processes") != now["processes"]:
        raise UsageError(
            f"the run was started by {then.get('processes')} processes, now there are {now['processes']}",
            f"continue it with torchrun --nproc-per-node {then.get('processes')} -m pam_mobile train ... --resume",
        )
    if now["device"] == "cpu" and then.get("threads") != now["threads"]:
        raise UsageError(
            f"the run was started with {then.get('threads')} threads, now there are {now['threads']}",
            f"continue it with OMP_NUM_THREADS={then.get('threads')}: sums of another order give other bits",
        )
    for name in ("pam_mobile", "torch", "device", "precision"):
        if then.get(name) != now[name]:
            reporter.warn(
                f"the run was started with {name} {then.get(name)}, now it is {now[name]}: other bits will come out"
            )


def keep_freed_memory() -> None:
    """Let glibc keep large freed blocks: returning them costs page faults at every step (a quarter of the time on CPU)."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        trim_threshold, mmap_threshold = -1, -3
        # glibc before 2.35 refuses more than 32 MB; with the next line alone, its threshold would stay at 128 kB
        if not libc.mallopt(mmap_threshold, 2**31 - 1):
            libc.mallopt(mmap_threshold, 2**25)
        libc.mallopt(trim_threshold, 2**31 - 1)


def peak_memory(device: torch.device) -> int:
    """Bytes: the largest amount so far on the device, for the CPU that of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


def _has_bf16_instructions() -> bool:
    cpu = FilePath("/proc/cpuinfo")
    return cpu.exists() and ("avx512_bf16" in (text := cpu.read_text()) or "amx_bf16" in text)
