"""Banks of foreground patches and backgrounds, uint8, small enough to live on the training device."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path as FilePath

import numpy as np
import torch
from platformdirs import user_cache_dir
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import SetupError
from ..files import atomic_path
from ..reporter import Reporter, Silent
from ..workers import in_processes, worker_count
from .patch import make_patch
from .synthetic import KINDS, WEIGHTS, make_background, make_matte

BANK_VERSION = 1
"""Raised whenever the generator draws other pixels, so that no stale cache is used."""
HELD_OUT_SEED = 1_000_000_000
"""Synthetic seeds from here on are never trained on."""


@dataclass(frozen=True)
class Bank:
    """Material for composites.

    patches: (N, 5, S, S) uint8 planes of `make_patch`; backgrounds: (M, 3, S, S) uint8.
    """

    patches: Tensor
    backgrounds: Tensor

    def to(self, device: torch.device) -> Bank:
        return Bank(self.patches.to(device), self.backgrounds.to(device))


def synthetic_bank(
    seed: int,
    patches: int,
    backgrounds: int,
    size: int,
    kinds: Sequence[str] = KINDS,
    reporter: Reporter | None = None,
) -> Bank:
    """Procedural bank of the given counts and kinds of matte; made once and kept in the cache folder, if that can be written."""
    mix = "all" if tuple(kinds) == KINDS else "-".join(kinds)
    name = f"v{BANK_VERSION}-{mix}-seed{seed}-{patches}x{backgrounds}x{size}.safetensors"
    cached = cache_folder() / "banks" / name
    if cached.is_file():
        try:
            return Bank(**load_file(cached))
        except SafetensorError:
            cached.unlink()
    reporter = reporter or Silent()
    bank = Bank(
        patches=_render(
            partial(_matte_patch, size, tuple(kinds)), range(seed, seed + patches), "making mattes", reporter
        ),
        backgrounds=_render(
            partial(_background, size), range(seed, seed + backgrounds), "making backgrounds", reporter
        ),
    )
    try:
        with atomic_path(cached) as temporary:
            save_file(vars(bank), temporary)
    except SetupError as error:
        reporter.warn(
            f"{error.message}; it is made again next time, unless PAM_HOME names a folder that can be written"
        )
    return bank


def cache_folder() -> FilePath:
    """Where generated material and downloads are kept: `$PAM_HOME`, or the user's cache folder."""
    return FilePath(os.environ.get("PAM_HOME") or user_cache_dir("pam_mobile"))


def _matte_patch(size: int, kinds: tuple[str, ...], seed: int) -> np.ndarray:
    weights = np.array([WEIGHTS[kind] for kind in kinds])
    kind = str(np.random.default_rng(seed).choice(kinds, p=weights / weights.sum()))
    matte = make_matte(seed, size, kind)
    return make_patch(matte.foreground, matte.alpha)


def _background(size: int, seed: int) -> np.ndarray:
    return np.ascontiguousarray(make_background(seed, size).transpose(2, 0, 1))


def _render(make: Callable[[int], np.ndarray], seeds: Sequence[int], title: str, reporter: Reporter) -> Tensor:
    """Stack of make(seed), by one process per core."""
    workers = worker_count()
    if len(seeds) < 4 * workers:
        return torch.from_numpy(np.ascontiguousarray([make(seed) for seed in seeds]))
    with reporter.progress(title, len(seeds)) as advance:
        planes = []
        for plane in in_processes(make, seeds, workers, chunk=8):
            planes.append(plane)
            advance()
    return torch.from_numpy(np.ascontiguousarray(planes))
