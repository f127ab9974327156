"""Configuration of a training run: frozen dataclasses, read from and written to YAML, every field checked by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from pathlib import Path as FilePath
from typing import Any

import yaml
from cattrs import Converter, transform_error
from cattrs.errors import ClassValidationError

from .data.order import RANDOM, STYLES
from .data.synthetic import KINDS
from .errors import InputError, PamError, UsageError
from .model.presets import MAX_STRIDE

MOST_DIFFERENCES = 6


def _require(settings: Any, place: str, **least: int) -> None:
    """Raise UsageError naming the first of these settings that is smaller than it may be, or no number."""
    for name, bound in least.items():
        value = getattr(settings, name)
        if not value >= bound:
            raise UsageError(f"{place}{name}={value} is too small", f"use {bound} or more")


def _require_size(name: str, size: int) -> None:
    if size < MAX_STRIDE or size % MAX_STRIDE:
        raise UsageError(f"{name}={size} is no size for the network", f"use a multiple of {MAX_STRIDE}")


@dataclass(frozen=True)
class Stage:
    """One training stage."""

    steps: int
    learning_rate: float
    """Peak of the cosine schedule, for the batch sizes of `crops`."""
    smooth: float = 0.01
    """Error below which the L1 loss is a parabola. Large, a network that corrects a good prior gets off the ground; small, it learns to
    leave alone what is right (docs/findings.md)."""
    rounding: float = 0.0
    """Share of the steps in which features are rounded to 8 bits, as int8 artifacts do (train/rounding.py; docs/findings.md)."""

    def __post_init__(self) -> None:
        _require(self, "a stage's ", steps=1, learning_rate=0)
        if not self.smooth > 0:
            raise UsageError(f"a stage's smooth={self.smooth} rounds nothing", "use more than 0, 0.001 say")
        if not 0 <= self.rounding <= 1:
            raise UsageError(f"a stage's rounding={self.rounding} is not a share of its steps", "use 0 to 1")


@dataclass(frozen=True)
class Crop:
    """A crop size, how many of them form a batch, and in which share of the steps."""

    size: int
    """Height and width, a multiple of 32."""
    batch: int
    share: float

    def __post_init__(self) -> None:
        _require_size("a crop's size", self.size)
        _require(self, "a crop's ", batch=1)
        if not self.share > 0:
            raise UsageError(f"a crop's share={self.share} is never drawn", "use more than 0, or leave the crop out")


@dataclass(frozen=True)
class Data:
    """Procedural patches, or folders of the user's own images."""

    patches: int = 2400
    """Foregrounds in the bank (patches of `size` pixels, 512 kB each at 320): one for every 35 crops of the default stages."""
    backgrounds: int = 600
    size: int = 320
    kinds: tuple[str, ...] = KINDS
    """Kinds of procedural matte; the held-out ones are of the same kinds."""
    sets: tuple[str, ...] = ()
    """Data sets to train with, `ROOT` or `NAME:ROOT`, beside the folders below."""
    foreground_folder: str = ""
    alpha_folder: str = ""
    """Empty: the foregrounds carry their alpha as a fourth channel."""
    background_folder: str = ""
    procedural: float = 0.0
    """Share of procedural images that is mixed with those of the folders."""
    style: str = RANDOM
    """How two foregrounds are combined: `random`, or `single`, `naive`, `rcf`, `triplet`, `quadruplet` (docs/data.md)."""

    def __post_init__(self) -> None:
        if not 0 <= self.procedural < 1:
            raise UsageError(f"data.procedural={self.procedural} is not a share", "use 0 up to, but not including, 1")
        if self.style not in (RANDOM, *STYLES):
            raise UsageError(f"data.style={self.style} is not known", f"use {', '.join((RANDOM, *STYLES))}")
        if not self.kinds or not set(self.kinds) <= set(KINDS):
            raise UsageError(f"data.kinds={','.join(self.kinds)} is not known", f"use some of {', '.join(KINDS)}")
        _require(self, "data.", patches=1 + (self.style not in (RANDOM, "single")), backgrounds=1, size=64)


@dataclass(frozen=True)
class HeldOut:
    """Procedural composites that are never trained on: whole objects, as photos show them."""

    composites: int = 32
    size: int = 256
    """Height and width, a multiple of 32."""

    def __post_init__(self) -> None:
        _require(self, "held_out.", composites=1)


@dataclass(frozen=True)
class PathLearningSettings:
    """Stage 3. `distillation_weight=0`, `uniform_prior` and `gumbel_only` are ablations of the paper, as is `connect=false`."""

    candidates: int = 4
    """Paths drawn from the prior per image (K)."""
    prior_images: int = 64
    """Composites that vote for the prior (M), of the held-out size."""
    prior_paths: int = 16
    """Random paths near a budget that a batch of these composites is judged on."""
    temperature: float = 1.0
    """Of straight-through samples."""
    head_rate: float = 10.0
    """Learning rate of the heads and the budget embedding, as a multiple of the stage's."""
    path_weight: float = 0.1
    distillation_weight: float = 1.0
    """0: no distillation."""
    uniform_prior: bool = False
    gumbel_only: bool = False

    def __post_init__(self) -> None:
        _require(self, "paths.", candidates=1, prior_images=1, prior_paths=1)
        _require(self, "paths.", head_rate=0, path_weight=0, distillation_weight=0)
        if not self.temperature > 0:
            raise UsageError(f"paths.temperature={self.temperature} softens nothing", "use more than 0")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides what a training run computes."""

    preset: str = "tiny"
    prior: bool = True
    """Start from the local-Gaussian colour prior."""
    connect: bool = True
    """False: bypassed units run nothing instead of their connect layer (the paper's ablation of naive skips)."""
    stages: tuple[int, ...] = (1, 2, 3)
    init: str = ""
    """A model to start from instead of fresh weights."""
    stage1: Stage = Stage(steps=6000, learning_rate=2e-3, smooth=0.1)
    stage2: Stage = Stage(steps=4000, learning_rate=1e-3)
    stage3: Stage = Stage(steps=2000, learning_rate=1e-3)
    paths: PathLearningSettings = field(default_factory=PathLearningSettings)
    crops: tuple[Crop, ...] = (Crop(256, 8, 0.75), Crop(384, 4, 0.25))
    data: Data = field(default_factory=Data)
    held_out: HeldOut = field(default_factory=HeldOut)
    shards: int = 1
    """Micro-batches of `crops` that make up a step; several processes share them."""
    alpha_free: bool = False
    """Learn from images and trimaps alone (train/alpha_free.py)."""
    seed: int = 0
    precision: str = "auto"
    """`auto`, `fp32` or `bf16`: auto takes bf16 where the device computes in it natively."""
    weight_decay: float = 1e-6
    magnitude_weight: float = 0.02
    """Of the penalty on features that grow (train/magnitude.py); 0: none."""
    betas: tuple[float, float] = (0.9, 0.99)
    warmup: int = 50
    """Steps in which the learning rate rises."""
    clip: float = 1.0
    """Bound on the gradient norm."""
    ema: float = 0.997
    """Decay of the averaged weights per step; they are what is kept."""
    validate_every: int = 500
    save_every: int = 500

    def __post_init__(self) -> None:
        if self.precision not in ("auto", "fp32", "bf16"):
            raise UsageError(f"precision={self.precision!r} is not known", "use auto, fp32 or bf16")
        _require(
            self, "", shards=1, seed=0, validate_every=1, save_every=1, warmup=0, weight_decay=0, magnitude_weight=0
        )
        for name, decay in (("ema", self.ema), *(("betas", beta) for beta in self.betas)):
            if not 0 <= decay < 1:
                raise UsageError(f"{name}={decay} is no decay per step", "use 0 up to, but not including, 1")
        if not self.clip > 0:
            raise UsageError(f"clip={self.clip} stops all training", "use more than 0")
        _require_size("held_out.size", self.held_out.size)
        if not self.crops:
            raise UsageError("crops is empty: there is nothing to train on", "name at least one crop")
        unknown = set(self.stages) - {1, 2, 3}
        if unknown or not self.stages or list(self.stages) != sorted(set(self.stages)):
            raise UsageError(
                f"stages={','.join(map(str, self.stages))} cannot be run",
                "stages are 1 (whole network), 2 (random paths) and 3 (path learning), in this order",
            )
        if 3 in self.stages and self.alpha_free:
            raise UsageError("alpha_free=true has no labels for stage 3, which needs alphas", "run --stages 1,2")
        if 3 in self.stages and 2 not in self.stages and not self.init:
            raise UsageError(
                f"stages={','.join(map(str, self.stages))} cannot be run: stage 3 needs a network that knows many paths",
                "run stages 1,2,3, or start from a model of stage 2 with --init",
            )

    def stage(self, number: int) -> Stage:
        """The settings of stage 1, 2 or 3."""
        return (self.stage1, self.stage2, self.stage3)[number - 1]


def _plain(value: Any, kind: type) -> Any:
    """`value` if it is of that kind; cattrs alone would turn 1.5 into 1 and "off" into True."""
    if kind is float and type(value) in (int, str):  # YAML reads 1e-3 as text
        return float(value)
    if type(value) is not kind:
        raise TypeError
    return value


def _texts(value: Any, kind: type) -> tuple[str, ...]:
    """A list of texts; cattrs alone would take a text for the list of its letters."""
    if not isinstance(value, list | tuple) or any(type(text) is not str for text in value):
        raise TypeError
    return tuple(value)


_converter = Converter(forbid_extra_keys=True)
for _kind in (bool, int, float, str):
    _converter.register_structure_hook(_kind, _plain)
_converter.register_structure_hook_func(lambda kind: kind == tuple[str, ...], _texts)


def from_dict(values: dict[str, Any], source: str) -> TrainConfig:
    """TrainConfig of nested plain values. Raises InputError naming every fault and where it is."""
    try:
        return _converter.structure(values, TrainConfig)
    except ClassValidationError as error:
        for refusal in _refusals(error):
            raise InputError(f"{source}: {refusal.message}", refusal.hint) from error
        raise InputError(f"{source}: {'; '.join(transform_error(error))}", "see `pam-mobile train --help`") from error


def _refusals(fault: Exception) -> Iterator[PamError]:
    """What the settings' own checks said, wherever in the nested tables it was."""
    if isinstance(fault, PamError):
        yield fault
    elif isinstance(fault, ExceptionGroup):
        for inner in fault.exceptions:
            yield from _refusals(inner)


def override(config: TrainConfig, assignments: Sequence[str]) -> TrainConfig:
    """The config with `a.b=value` assignments applied; values are YAML, lists may do without brackets.

    Raises UsageError for an unknown name or a value that does not fit.
    """
    values = asdict(config)
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        *parents, leaf = name.split(".")
        target = values
        for key in parents:
            target = target.get(key, {}) if isinstance(target, dict) else {}
        if not equals:
            raise UsageError(f"--set {assignment}: a value is missing", f"write {name}=VALUE")
        if not isinstance(target, dict) or leaf not in target:
            close = get_close_matches(name, _names(values), 1)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(_names(values))}"
            raise UsageError(f"--set {assignment}: {name!r} is not a setting", hint)
        try:
            value = yaml.safe_load(text)
            if isinstance(target[leaf], tuple) and not isinstance(value, list):
                value = yaml.safe_load(f"[{text}]")
        except yaml.YAMLError as error:
            raise UsageError(f"--set {assignment}: the value is not YAML", "quote it") from error
        target[leaf] = value
    try:
        return from_dict(values, "--set")
    except InputError as error:
        raise UsageError(error.message, error.hint) from error


def load(path: FilePath) -> TrainConfig:
    """Read a YAML file. Raises InputError naming the file and every fault in it."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(
            f"cannot read {path}: {_reason(error)}", "write a YAML file with the settings of TrainConfig"
        ) from error
    if not isinstance(values, dict):
        raise InputError(f"{path} is not a table of settings", "write a YAML file with the settings of TrainConfig")
    return from_dict(values, str(path))


def _reason(error: Exception) -> str:
    """Why a file cannot be read, in one line."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error).splitlines()[0]


def from_yaml(text: str, source: str) -> TrainConfig:
    """The config of `to_yaml`. Raises InputError naming every fault and where it is."""
    return from_dict(yaml.safe_load(text), source)


def to_yaml(config: TrainConfig) -> str:
    return yaml.safe_dump(_converter.unstructure(config), sort_keys=False)


def differences(before: TrainConfig, now: TrainConfig) -> str:
    """The settings that differ, as `name: before, now VALUE`, the first few; empty if none does."""
    then, values = _flat(asdict(before)), _flat(asdict(now))
    found = [f"{name}: {then[name]}, now {value}" for name, value in values.items() if then[name] != value]
    more = [f"{len(found) - MOST_DIFFERENCES} more"] if len(found) > MOST_DIFFERENCES else []
    return "; ".join(found[:MOST_DIFFERENCES] + more)


def _names(values: dict[str, Any]) -> list[str]:
    return list(_flat(values))


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one, with dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
