"""pam-mobile doctor."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from typing import Any

from ..reporter import Reporter
from .common import Result, verb

TESTED = {"torch": "2.13", "executorch": "1.4", "coremltools": "9.0", "numpy": "2.4"}
EXTRAS = {
    "train": ("matplotlib",),
    "baselines": ("pymatting",),
    "export": ("executorch", "coremltools", "onnx", "onnxscript", "onnxruntime"),
    "demo": ("scikit-image",),
    "kernels": ("triton",),
}


@verb
def doctor(reporter: Reporter) -> Result:
    """Show versions, what is installed, and what this machine offers."""
    packages = ("torch", "numpy", "executorch", "coremltools", "torchao", "safetensors")
    versions = {name: _version(name) for name in packages}
    differs = [f"{k} {versions[k]} (tested: {v})" for k, v in TESTED.items() if not (versions[k] or v).startswith(v)]
    missing = {extra: lacks for extra, names in EXTRAS.items() if (lacks := [n for n in names if not _version(n)])}
    document: dict[str, Any] = {
        "pam_mobile": _version("pam-mobile"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "versions": versions,
        "untested_versions": differs,
        "missing_extras": missing,
        "cache": _cache(),
        **_torch(),
    }
    lines = [f"{key}: {value}" for key, value in document.items() if key not in ("versions", "missing_extras")]
    lines += [f"{name}: {version or 'not installed'}" for name, version in versions.items()]
    lines += [
        f"extra [{extra}] lacks {', '.join(names)}: pip install 'pam-mobile[{extra}]'"
        for extra, names in missing.items()
    ]
    return Result(document, "\n".join(lines))


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cache() -> str:
    from ..data.bank import cache_folder

    return str(cache_folder())


def _torch() -> dict[str, Any]:
    if not importlib.util.find_spec("torch"):
        return {}
    import torch

    from pam_kernels import dispatch

    cuda = torch.cuda.is_available()
    features = torch.empty((8, 96, 48, 48), device="cuda" if cuda else "cpu")
    try:
        operators = dispatch.explain("depthwise_conv2d", features, kernel=5)
    except (RuntimeError, ValueError) as error:  # PAM_KERNELS asks for what is not there
        operators = str(error)
    return {
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "operators": operators,
    }
