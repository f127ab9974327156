"""Matter: the class that people use to cut things out of photos."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path as FilePath
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .. import checkpoint
from ..budget import Budget
from ..checkpoint import Checkpoint
from ..cost import CostTable, padded, prior_macs
from ..data.trimap import quantise_trimap
from ..errors import InputError, UsageError
from ..imageio import read_photo, read_trimap
from ..model.presets import preset
from ..model.prior import ColourPrior
from ..model.trunk import known_masks
from ..path import Path

PRIOR = "prior"
"""The model name of the colour prior without a network."""
SELECTIONS = {
    "auto": "planned if the network has learned to choose, fixed otherwise",
    "fixed": "the best measured path of each budget, the same for every image",
    "planned": "one head chooses the whole path from the image and the budget before the first unit runs",
    "stepwise": "every unit's own head chooses when its turn comes",
}

Picture = str | FilePath | np.ndarray


@dataclass(frozen=True)
class Plan:
    """What runs for a budget at one image size."""

    path: Path | None
    """None: the colour prior alone."""
    macs: int
    budget_macs: int | None
    """The bound that was asked for; None: as good as possible."""


@dataclass(frozen=True)
class Matte:
    """An alpha and what was run for it."""

    alpha: np.ndarray
    """(H, W) float32 in [0, 1]."""
    plan: Plan


class PriorMatting(nn.Module):
    """The colour prior alone, with a network's interface."""

    def __init__(self) -> None:
        super().__init__()
        self.prior = ColourPrior()

    def forward(self, image: Tensor, trimap: Tensor) -> Tensor:
        """As Supernet.forward: image (N, 3, H, W), trimap (N, 1, H, W) to alpha (N, 1, H, W)."""
        return self.prior(image, *known_masks(trimap))[:, 1:2]


class Matter:
    """A model that is loaded once and used on any number of photos, each at any size and budget.

    >>> matter = Matter.load("runs/mine")
    >>> alpha = matter.predict("photo.jpg", "trimap.png", budget="80%")
    """

    def __init__(self, checkpoint: Checkpoint | None, device: str = "auto", selection: str = "auto") -> None:
        """selection: how paths are chosen, one of SELECTIONS. Raises UsageError for one that the model has not learned."""
        learned = checkpoint is not None and checkpoint.learned_paths
        if selection not in SELECTIONS:
            raise UsageError(f"selection {selection!r} is not known", f"use one of {', '.join(SELECTIONS)}")
        if selection in ("planned", "stepwise") and not learned:
            raise UsageError(
                f"this model has not learned to choose paths, selection {selection} needs that",
                "train it with --stages 1,2,3, or use fixed",
            )
        self.selection = ("planned" if learned else "fixed") if selection == "auto" else selection
        self.checkpoint = checkpoint
        self.device = choose_device(device)
        self.network: nn.Module = checkpoint.supernet if checkpoint else PriorMatting()
        self.network.to(self.device).eval()

    @classmethod
    def load(cls, model: str | FilePath = PRIOR, device: str = "auto", selection: str = "auto") -> Matter:
        """Load a shipped model, a run folder, a checkpoint or `prior`.

        Raises InputError if there is none, IntegrityError if it is damaged, UsageError if the device is not there or the model
        cannot choose its paths so.
        """
        if str(model) == PRIOR:
            return cls(None, device, selection)
        return cls(checkpoint.load(checkpoint.find(str(model))), device, selection)

    @property
    def name(self) -> str:
        return self.checkpoint.preset.label if self.checkpoint else PRIOR

    def plan(self, height: int, width: int, budget: str | Budget | None = None) -> Plan:
        """The fixed path that a budget means for any image of this size. Raises BudgetError if no path fits."""
        wish = None if budget is None else Budget.parse(budget)
        if not self.checkpoint:
            macs = prior_macs(preset("tiny", prior=True), padded(height), padded(width))
            table = CostTable(height, width, macs, (), (), prior=macs)
            if wish:
                table.require(wish.macs(table))
            return Plan(None, macs, wish.macs(table) if wish else None)
        table = CostTable.of(self.checkpoint.preset, height, width)
        path = self.checkpoint.paths.best(wish, table) if wish else Path.all_run(len(table.run))
        return Plan(path, table.cost(path), wish.macs(table) if wish else None)

    def predict(self, image: Picture, trimap: Picture, budget: str | Budget | None = None) -> np.ndarray:
        """Alpha of one photo, (H, W) float32 in [0, 1], exactly 0 and 1 where the trimap is known.

        image: a file, or (H, W, 3) uint8, uint16 or float in [0, 1], sRGB. trimap: a file, or (H, W) uint8 with 0, 128, 255.
        budget: `4.5G`, `80%` or None for the largest path. Any size; the image is padded to a multiple of 32 and the alpha cropped.
        Raises InputError for unusable pictures, BudgetError if no path fits.
        """
        pixels = _photo(image)
        known = _trimap(trimap, pixels.shape[:2], str(image) if isinstance(image, str | FilePath) else "")
        return self.matte(pixels, known, budget).alpha

    @torch.inference_mode()
    def matte(self, pixels: np.ndarray, trimap: np.ndarray, budget: str | Budget | None = None) -> Matte:
        """Alpha and what was run for it, of pixels (H, W, 3) float32 in [0, 1] and trimap (H, W) uint8 {0, 128, 255}.

        The network chooses its path where it has learned to and the budget leaves a choice. Raises BudgetError if no path fits.
        """
        height, width = trimap.shape
        image, levels = (x.to(self.device) for x in padded_tensors(pixels, trimap))
        plan = self.plan(height, width, budget)
        choice = self._choice(plan, height, width)
        if choice:
            alpha, (path,) = choice.choose(image, levels, Budget(Fraction(choice.budget_macs), relative=False))
            plan = Plan(path, choice.table.cost(path) + choice.heads, choice.budget_macs)
        else:
            alpha = self.network(image, levels, path=plan.path) if plan.path else self.network(image, levels)
        return Matte(alpha[0, 0, :height, :width].cpu().numpy(), plan)

    def _choice(self, plan: Plan, height: int, width: int) -> _Choice | None:
        """How the network chooses its path, if it does and the budget leaves a choice once the heads are paid for."""
        if self.checkpoint is None or self.selection == "fixed" or plan.budget_macs is None:
            return None
        network, table = self.checkpoint.supernet, CostTable.of(self.checkpoint.preset, height, width)
        choose, heads = (
            (network.plan, table.planning) if self.selection == "planned" else (network.choose, table.selection)
        )
        leaves_one = table.smallest + heads <= plan.budget_macs < table.largest
        return _Choice(choose, heads, table, plan.budget_macs) if leaves_one else None


class _Choice(NamedTuple):
    choose: Callable[[Tensor, Tensor, Budget], tuple[Tensor, list[Path]]]
    heads: int
    table: CostTable
    budget_macs: int


def choose_device(wish: str) -> torch.device:
    """`auto` takes a GPU if there is one. Raises UsageError if the device is not there."""
    if wish == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if wish not in ("cpu", "cuda"):
        raise UsageError(f"device {wish!r} is not known", "use auto, cpu or cuda")
    if wish == "cuda" and not torch.cuda.is_available():
        raise UsageError("device cuda is not available here", "use --device cpu, or install a CUDA build of torch")
    return torch.device(wish)


def _photo(image: Picture) -> np.ndarray:
    if not isinstance(image, np.ndarray):
        return read_photo(image).pixels
    if image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise InputError(f"image has shape {image.shape}", "give (H, W, 3)")
    if image.dtype in (np.uint8, np.uint16):
        return image.astype(np.float32) / np.float32(np.iinfo(image.dtype).max)
    if image.dtype.kind != "f" or not (image.min() >= 0 and image.max() <= 1):
        raise InputError(
            f"image is {image.dtype} with values from {image.min()} to {image.max()}",
            "give uint8, uint16, or float in [0, 1]",
        )
    return image.astype(np.float32)


def _trimap(trimap: Picture, size: tuple[int, ...], photo_name: str) -> np.ndarray:
    if not isinstance(trimap, np.ndarray):
        return read_trimap(trimap, (size[0], size[1]), photo_name)
    if trimap.shape != size:
        raise InputError(
            f"trimap has shape {trimap.shape}, the image {size}", "give a trimap (H, W) of the image's size"
        )
    if trimap.dtype != np.uint8:
        raise InputError(f"trimap is {trimap.dtype}", "give uint8 with 0, 128 and 255")
    return quantise_trimap(trimap)


def padded_tensors(pixels: np.ndarray, trimap: np.ndarray) -> tuple[Tensor, Tensor]:
    """Image (1, 3, H', W') and trimap (1, 1, H', W') with 0, 0.5, 1 as networks take them, H' and W' multiples of 32.

    pixels: (H, W, 3) float32 in [0, 1]; trimap: (H, W) uint8 {0, 128, 255}.
    """
    levels = np.rint(trimap / 127.5).astype(np.float32) / 2
    return torch.from_numpy(_pad(pixels)).permute(2, 0, 1)[None], torch.from_numpy(_pad(levels))[None, None]


def _pad(x: np.ndarray) -> np.ndarray:
    """Mirrored at the bottom and the right up to multiples of 32."""
    height, width = x.shape[:2]
    margin = [(0, padded(height) - height), (0, padded(width) - width)] + [(0, 0)] * (x.ndim - 2)
    return np.ascontiguousarray(np.pad(x, margin, mode="symmetric"))
