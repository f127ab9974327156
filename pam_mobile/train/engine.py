"""The training loop: stages, averaged weights, logs, checkpoints, resume.

Every random choice of a step comes from (seed, stage, step), so a resumed run sees the data that the uninterrupted run would have seen.
"""

from __future__ import annotations

import ctypes
import json
import math
import platform
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor, nn

from .. import __version__, checkpoint
from ..checkpoint import Checkpoint
from ..config import Stage, TrainConfig, to_yaml
from ..cost import CostTable
from ..data.compose import Composer
from ..errors import PartialFailureError, SetupError, UsageError
from ..files import atomic_path, read_sealed_json, sha256, verify_file, write_bytes, write_sealed_json
from ..model.presets import preset
from ..model.supernet import Supernet
from ..path import Path, PathSpace
from ..pathtable import PathTable
from ..reporter import Reporter
from . import pathprior
from .log import RunLog
from .losses import LossWeights
from .material import load_bank
from .pathlearning import PathLearning
from .pathprior import PathPrior, estimate_prior
from .stages import Objective, RandomPaths, WholeNetwork
from .validate import SELECTION, VOTES, held_out_composites, sads, search_paths

CONFIG = "config.yaml"
STATE = "last"


class Trainer:
    """Trains the stages of a configuration into a run folder."""

    def __init__(self, config: TrainConfig, out: FilePath, reporter: Reporter) -> None:
        accelerate = _require_accelerate()
        self.config, self.out, self.reporter = config, out, reporter
        self.precision = _precision(config.precision)
        self.accelerator = accelerate.Accelerator()
        self.device: torch.device = self.accelerator.device
        torch.manual_seed(config.seed)
        supernet = Supernet(preset(config.preset, config.prior))
        self.supernet = supernet.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.ema = {name: value.clone() for name, value in self.supernet.state_dict().items()}
        reference = supernet.preset.reference
        self.space = PathSpace(CostTable.of(supernet.preset, reference, reference))
        self.log = RunLog(out)
        self.compose = Composer()

    def run(self, resume: bool = False) -> FilePath:
        """Train all stages; returns the last stage's checkpoint folder.

        Raises UsageError if the folder holds another run, PartialFailureError on a non-finite loss.
        """
        if self.device.type == "cpu":
            _keep_freed_memory()
        done = [stage for stage in self.config.stages if (self._folder(stage) / checkpoint.DOCUMENT).is_file()]
        start = self._open(resume, done)
        if done == list(self.config.stages):
            self.reporter.say(f"{self.out} is trained already")
            return self._folder(done[-1])
        self.bank = load_bank(self.config.data, self.config.seed, self.reporter).to(self.device)
        self.held_out = held_out_composites(
            self.config.held_out, self.config.data.kinds, SELECTION, self.device, self.reporter
        )
        for stage in self.config.stages:
            if stage in done:
                continue
            self._train_stage(stage, start if start and start["stage"] == stage else None)
        return self._folder(self.config.stages[-1])

    def _folder(self, stage: int) -> FilePath:
        return self.out / f"stage{stage}"

    def _open(self, resume: bool, done: list[int]) -> dict[str, Any] | None:
        """Prepare the run folder; returns the saved state's document when there is one to continue from."""
        text = to_yaml(self.config)
        existing = self.out / CONFIG
        if not existing.exists():
            if self.out.exists() and any(self.out.iterdir()):
                raise UsageError(f"{self.out} is not empty and not a training run", "choose another --out")
            write_bytes(existing, text.encode())
            write_bytes(self.out / "env.json", json.dumps(_environment(self.device, self.precision), indent=2).encode())
            return None
        if not resume:
            raise UsageError(f"{self.out} holds a run already", "add --resume to continue it, or choose another --out")
        if existing.read_text() != text:
            raise UsageError(
                f"{existing} says other settings than this command", "repeat the command that started the run"
            )
        if not (self.out / STATE / "state.json").exists():
            self.log.truncate(max(done, default=0), sys.maxsize)
            return None
        state = read_sealed_json(self.out / STATE / "state.json", "delete the run folder and train again")
        self.log.truncate(state["stage"], state["step"])
        return state

    def _train_stage(self, stage: int, state: dict[str, Any] | None) -> None:
        plan: Stage = getattr(self.config, f"stage{stage}")
        if state is None:
            self._start_from(stage)
        optimiser = self._optimiser(plan)
        model, optimiser = self.accelerator.prepare(self.supernet, optimiser)
        first = self._load_state(state, optimiser) if state else 0
        objective = self._objective(stage)
        self.supernet.train()
        if objective.freeze_statistics:
            for module in self.supernet.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        with self.reporter.progress(objective.title, plan.steps) as advance:
            if first:
                advance(first)
            clock, crops = time.perf_counter(), 0
            for step in range(first, plan.steps):
                batch_size, losses = self._step(model, optimiser, objective, stage, step, plan)
                crops += batch_size
                due = step + 1 == plan.steps or (step + 1) % self.config.validate_every == 0
                if due:
                    seconds = time.perf_counter() - clock
                    self._log(stage, step + 1, plan, losses, crops / seconds)
                    clock, crops = time.perf_counter(), 0
                if (step + 1) % self.config.save_every == 0 and step + 1 < plan.steps:
                    self._save_state(stage, step + 1, optimiser)
                advance(1, note=f"loss {losses['loss']:.4f}" if due or step % 10 == 0 else "")
        self._finish(stage)

    def _objective(self, stage: int) -> Objective:
        if stage < 3:
            return (WholeNetwork, RandomPaths)[stage - 1](self.space, LossWeights())
        start = self._before(stage)
        if start is None:
            raise UsageError(
                "stage 3 needs a network that knows many paths", "train stages 1,2,3, or give --init MODEL"
            )
        teacher = start.supernet.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return PathLearning(self.space, LossWeights(), self.config.paths, teacher, self._path_prior(start))

    def _path_prior(self, start: Checkpoint) -> PathPrior:
        """The votes of the network that enters stage 3; made once and kept in the run folder."""
        settings, digest = self.config.paths, start.document["weights"]["sha256"]
        if settings.uniform_prior or settings.gumbel_only:
            return PathPrior.flat(start.preset, self.space)
        if not (self.out / pathprior.DOCUMENT).exists():
            held_out = replace(self.config.held_out, composites=settings.prior_images)
            voters = held_out_composites(held_out, self.config.data.kinds, VOTES, self.device, self.reporter)
            rng = np.random.default_rng([self.config.seed, 3])
            prior = estimate_prior(start.supernet, voters, self.space, settings.prior_paths, rng, self.reporter)
            prior.save(self.out, digest)
        return PathPrior.load(self.out, self.space, digest)

    def _step(
        self, model: Any, optimiser: Any, objective: Objective, stage: int, step: int, plan: Stage
    ) -> tuple[int, dict[str, float]]:
        rng = Generator().manual_seed(_seed(self.config.seed, stage, step))
        shares = torch.tensor([crop.share for crop in self.config.crops])
        crop = self.config.crops[int(torch.multinomial(shares, 1, generator=rng))]
        batch = self.compose(self.bank, crop.batch, crop.size, rng)
        batch = batch._replace(image=batch.image.contiguous(memory_format=torch.channels_last))
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(plan, step, self.config.warmup)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            losses = objective(model, batch, np.random.default_rng([self.config.seed, stage, step]))
        if not torch.isfinite(losses["loss"]):
            raise PartialFailureError(
                f"the loss became {losses['loss'].item()} in stage {stage} at step {step}",
                f"lower the learning rate (--set stage{stage}.learning_rate=...) and train again; the last saved state is kept",
            )
        optimiser.zero_grad(set_to_none=True)
        self.accelerator.backward(losses["loss"])
        self.accelerator.clip_grad_norm_(model.parameters(), self.config.clip)
        optimiser.step()
        self._average(step)
        return crop.batch, {name: float(value.detach()) for name, value in losses.items()}

    @torch.no_grad()
    def _average(self, step: int) -> None:
        """Move the averaged weights and batch norm statistics; the decay warms up so that early noise is forgotten."""
        decay = min(self.config.ema, (1 + step) / (10 + step))
        live = self.supernet.state_dict()
        floats = [name for name, value in live.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.ema[name] for name in floats], [live[name] for name in floats], 1 - decay)
        for name in live.keys() - set(floats):
            self.ema[name].copy_(live[name])

    def averaged(self) -> Supernet:
        """A copy of the network with the averaged weights, in evaluation mode."""
        network = Supernet(self.supernet.preset).to(self.device)
        network.load_state_dict(self.ema)
        return network.eval()

    def _optimiser(self, plan: Stage) -> torch.optim.Optimizer:
        """RAdam; no weight decay on biases and norms."""
        decayed = [p for p in self.supernet.parameters() if p.dim() > 1]
        others = [p for p in self.supernet.parameters() if p.dim() <= 1]
        groups = [
            {"params": decayed, "weight_decay": self.config.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        return torch.optim.RAdam(
            groups, lr=plan.learning_rate, betas=self.config.betas, decoupled_weight_decay=True, foreach=True
        )

    def _before(self, stage: int) -> Checkpoint | None:
        """What a stage begins with: the averaged weights of the stage before, or else the model that the run starts from."""
        if (self._folder(stage - 1) / checkpoint.DOCUMENT).is_file():
            return checkpoint.load(self._folder(stage - 1))
        return checkpoint.load(checkpoint.find(self.config.init)) if self.config.init else None

    def _start_from(self, stage: int) -> None:
        before = self._before(stage)
        if before is not None:
            if before.preset != self.supernet.preset:
                raise UsageError(
                    f"{self.config.init} is a {before.preset.label} network, this run trains {self.supernet.preset.label}",
                    "give --preset and --prior of the model, or start without --init",
                )
            self.supernet.load_state_dict(before.supernet.state_dict())
        self.ema = {name: value.clone() for name, value in self.supernet.state_dict().items()}

    def _log(self, stage: int, step: int, plan: Stage, losses: dict[str, float], crops_per_second: float) -> None:
        network = self.averaged()

        def sad(path: Path) -> float:
            return round(float(sads(network, self.held_out, path).mean()), 5)

        row = {
            "stage": stage,
            "step": step,
            **{name: round(value, 6) for name, value in losses.items()},
            "learning_rate": learning_rate(plan, step - 1, self.config.warmup),
            "crops_per_second": round(crops_per_second, 2),
            "sad_largest": sad(Path.all_run(self.space.units)),
            "sad_smallest": sad(Path.all_bypass(self.space.units)),
        }
        self.log.append(row)
        self.reporter.detail(json.dumps(row))

    def _finish(self, stage: int) -> None:
        """Write the stage's checkpoint: averaged weights, and the measured paths once paths were trained."""
        network = self.averaged()
        paths = search_paths(network, self.held_out, self.reporter) if stage > 1 else PathTable([])
        facts = {
            "stage": stage,
            "precision": self.precision,
            "training": to_yaml(self.config),
            "licence": "Apache-2.0",
            "data_licence": self._data_licence(),
        }
        checkpoint.save(self._folder(stage), network.cpu(), paths, facts)
        self.log.plot(self.reporter)
        shutil.rmtree(self.out / STATE, ignore_errors=True)

    def _data_licence(self) -> str:
        data = self.config.data
        own = [folder for folder in (data.foreground_folder, data.background_folder) if folder]
        return f"images of the user in {' and '.join(own)}" if own else "procedural images only"

    def _save_state(self, stage: int, step: int, optimiser: Any) -> None:
        """Everything that the next step depends on; the document comes last and names the file's hash."""
        tensors = {f"model.{name}": value for name, value in self.supernet.state_dict().items()}
        tensors |= {f"ema.{name}": value for name, value in self.ema.items()}
        for index, values in optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{index}.{name}": value for name, value in values.items()}
        name = f"state-{stage}-{step}.safetensors"
        with atomic_path(self.out / STATE / name) as temporary:
            save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, temporary)
        digest = sha256(self.out / STATE / name)
        write_sealed_json(
            self.out / STATE / "state.json", {"stage": stage, "step": step, "file": name, "sha256": digest}
        )
        for old in (self.out / STATE).glob("state-*.safetensors"):
            if old.name != name:
                old.unlink()

    def _load_state(self, state: dict[str, Any], optimiser: Any) -> int:
        """Continue from a saved state; returns the step to do next. Raises IntegrityError if the file was changed."""
        file = self.out / STATE / state["file"]
        verify_file(file, state["sha256"], "delete the run folder and train again")
        groups: dict[str, dict[str, Tensor]] = {"model": {}, "ema": {}, "optimiser": {}}
        for key, value in load_file(file, str(self.device)).items():
            kind, name = key.split(".", 1)
            groups[kind][name] = value
        checkpoint.load_weights(self.supernet, groups["model"], file)
        self.ema = groups["ema"]
        slots: dict[int, dict[str, Tensor]] = {}
        for key, value in groups["optimiser"].items():
            index, name = key.split(".", 1)
            slots.setdefault(int(index), {})[name] = value
        optimiser.load_state_dict({"state": slots, "param_groups": optimiser.state_dict()["param_groups"]})
        return int(state["step"])


def learning_rate(plan: Stage, step: int, warmup: int) -> float:
    """Linear rise, then cosine to 0."""
    rise = min(1.0, (step + 1) / max(1, min(warmup, plan.steps // 5)))
    return plan.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * step / plan.steps))


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _precision(wish: str) -> str:
    if wish != "auto":
        return wish
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    return "bf16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() and _has_bf16_instructions() else "fp32"


def _has_bf16_instructions() -> bool:
    cpu = FilePath("/proc/cpuinfo")
    return cpu.exists() and ("avx512_bf16" in (text := cpu.read_text()) or "amx_bf16" in text)


def _keep_freed_memory() -> None:
    """Let glibc keep large freed blocks: returning them costs page faults at every step (a quarter of the time on CPU)."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        trim_threshold, mmap_threshold = -1, -3
        libc.mallopt(mmap_threshold, 2**31 - 1)
        libc.mallopt(trim_threshold, 2**31 - 1)


def _require_accelerate() -> Any:
    try:
        import accelerate
    except ImportError as error:
        raise SetupError("training needs accelerate", "pip install 'pam-mobile[train]'") from error
    return accelerate


def _environment(device: torch.device, precision: str) -> dict[str, Any]:
    return {
        "pam_mobile": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__.split("+")[0],
        "device": str(device),
        "precision": precision,
        "threads": torch.get_num_threads(),
    }
