"""The training loop: stages, averaged weights, logs, checkpoints, resume.

Every random choice of a step comes from (seed, stage, step, shard), so a resumed run sees the data that the uninterrupted run would
have seen, and several processes that share the work see those of one.
"""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path as FilePath
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .. import checkpoint
from ..checkpoint import RUN, Checkpoint
from ..config import Stage, TrainConfig, differences, to_yaml
from ..config import load as load_config
from ..cost import CostTable
from ..data.compose import Batch
from ..errors import InterruptedRunError, PartialFailureError, UsageError
from ..files import LOCK, UNFINISHED, locked, remove_unfinished, write_bytes, write_sealed_json
from ..model.presets import preset
from ..model.supernet import Supernet, chooses
from ..path import Path, PathSpace
from ..pathtable import PathTable
from ..reporter import Reporter, Silent
from . import machine, pathprior
from .alpha_free import alpha_free_loss
from .batches import Batches
from .interruption import Interruption
from .log import RunLog
from .losses import matting_loss
from .magnitude import excess, magnitudes
from .material import load_bank, require_same_bank
from .pathlearning import PathLearning
from .pathprior import PathPrior, estimate_prior
from .processes import Processes
from .rounding import rounded
from .runstate import RunState, collect, restore, state_layout
from .shards import Shards
from .stages import Objective, RandomPaths, WholeNetwork
from .validate import SELECTION, VOTES, held_out_composites, sads, search_paths

ENVIRONMENT, BANK, STATE = "env.json", "bank.json", "last"
ROUNDING = 1 << 20
"""In the place of a shard's number, for what is the same in all of them."""
MOST_SKIPPED = 10
"""So many steps in a row without a finite gradient end the training."""
ASTRAY = 1.15
"""A SAD on held-out composites so many times the best one of its stage is told to the user."""


class Outcome(NamedTuple):
    """What a step did: losses by name, crops seen by all processes, whether it was skipped, the signal that asked for the end or 0."""

    losses: dict[str, float]
    crops: int
    skipped: bool
    signal: int


class Trainer:
    """Trains the stages of a configuration into a run folder."""

    def __init__(self, config: TrainConfig, out: FilePath, reporter: Reporter) -> None:
        self.config, self.out = config, out
        self.processes = Processes()
        self.reporter = reporter if self.processes.first else Silent()
        if config.shards % self.processes.count:
            self.processes.close()
            raise UsageError(
                f"{self.processes.count} processes cannot share {config.shards} shards of a step equally",
                f"--set shards={self.processes.count}, or a multiple of it",
            )
        self.device = self.processes.device
        self.precision = machine.precision(config.precision)
        torch.manual_seed(config.seed)
        supernet = Supernet(preset(config.preset, config.prior, config.connect))
        self.supernet = supernet.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.ema = {name: value.clone() for name, value in self.supernet.state_dict().items()}
        reference = supernet.preset.reference
        self.space = PathSpace(CostTable.of(supernet.preset, reference, reference))
        self.log = RunLog(out)
        self.states = RunState(out / STATE)
        self.interruption = Interruption(several=self.processes.count > 1)

    def run(self, resume: bool = False) -> FilePath:
        """Train all stages; returns the last stage's checkpoint folder.

        Raises UsageError if the folder holds another run or one that is running, PartialFailureError if the loss stays non-finite or a
        process is lost, InterruptedRunError after a signal.
        """
        try:
            if not self.processes.first:
                return self._run(resume)
            self._refuse_foreign_folder()
            with locked(self.out):
                return self._run(resume)
        finally:
            self.processes.close()

    def _run(self, resume: bool) -> FilePath:
        if self.device.type == "cpu":
            machine.keep_freed_memory()
        start = self.processes.from_first(lambda: self._open(resume))
        done, state = start["done"], start["state"]
        if done == list(self.config.stages):
            self.reporter.say(f"{self.out} is trained already")
            return self._folder(done[-1])
        self._prepare_data()
        for stage in self.config.stages:
            if stage not in done:
                self._train_stage(stage, state if state and state["stage"] == stage else None)
        return self._folder(self.config.stages[-1])

    def _prepare_data(self) -> None:
        """The first process of every machine makes the bank, the others read what it has kept."""
        if self.processes.local_rank:
            self.processes.wait()
        bank = load_bank(self.config.data, self.config.seed, self.reporter)
        require_same_bank(self.out / BANK, bank, self.processes.first)
        self.batches = Batches(self.config, bank.to(self.device))
        if not self.processes.local_rank:
            self.processes.wait()
        if self.processes.first:
            self.held_out = held_out_composites(
                self.config.held_out, self.config.data.kinds, SELECTION, self.device, self.reporter
            )
        self.processes.wait()

    def _folder(self, stage: int) -> FilePath:
        return self.out / f"stage{stage}"

    def _refuse_foreign_folder(self) -> None:
        own = (RUN, ENVIRONMENT, LOCK)
        names = [entry.name for entry in self.out.iterdir()] if self.out.is_dir() else []
        if RUN not in names and any(name not in own and not name.startswith(UNFINISHED) for name in names):
            raise UsageError(f"{self.out} is not empty and not a training run", "choose another --out")

    def _open(self, resume: bool) -> dict[str, Any]:
        """Prepare the run folder; returns the finished stages and the document of the state to continue from, if there is one."""
        now = machine.environment(self.processes, self.precision)
        existing = self.out / RUN
        if not existing.exists():
            self._before(self.config.stages[0])  # what it refuses leaves no run behind
            write_sealed_json(self.out / ENVIRONMENT, now)
            write_bytes(existing, to_yaml(self.config).encode())
            return {"done": [], "state": None}
        if not resume:
            raise UsageError(f"{self.out} holds a run already", "add --resume to continue it, or choose another --out")
        different = differences(load_config(existing), self.config)
        if different:
            raise UsageError(
                f"{existing} says other settings than this command: {different}",
                "repeat the command that started the run",
            )
        machine.require_same(self.out / ENVIRONMENT, now, self.reporter)
        for folder in (self.out, self.log.samples, *map(self._folder, self.config.stages)):
            remove_unfinished(folder)
        finished = [stage for stage in self.config.stages if (self._folder(stage) / checkpoint.DOCUMENT).is_file()]
        done = [stage for stage in self.config.stages if stage <= max(finished, default=0)]
        expected = partial(state_layout, self.supernet, _parameters(self.supernet))
        state = self.states.newest(expected, self.reporter)
        if state and state["stage"] in done:
            self.states.clear()
            state = None
        if state:
            self.log.truncate(state["stage"], state["step"])
        else:
            self.log.truncate(max(done, default=0), sys.maxsize)
        return {"done": done, "state": state}

    def _train_stage(self, stage: int, state: dict[str, Any] | None) -> None:
        plan = self.config.stage(stage)
        objective = self._objective(stage)
        if state is None:
            self._start_from(stage, objective)
        optimiser = self._optimiser(plan)
        if state:
            self._load_state(state, optimiser)
        first = state["step"] if state else 0
        facts = {name: state[name] if state else 0 for name in ("skipped", "in_a_row", "seconds", "peak_memory_bytes")}
        self.supernet.train()
        if objective.freeze_statistics:
            for module in self.supernet.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        shards = Shards(self.supernet, self.config.shards, self.processes)
        with self.interruption.held(), self.reporter.progress(objective.title, plan.steps, first) as advance:
            clock, crops, before = time.perf_counter(), 0, facts["seconds"] - time.perf_counter()
            for step in range(first, plan.steps):
                outcome = self._step(shards, optimiser, objective, stage, step, plan)
                self._count_skipped(outcome, facts, stage, step)
                crops += outcome.crops
                end = step + 1 == plan.steps
                due = end or (step + 1) % self.config.validate_every == 0
                if due and self.processes.first:
                    seconds = time.perf_counter() - clock
                    self._log(stage, step + 1, plan, outcome.losses, crops / seconds, facts["skipped"])
                    clock, crops = time.perf_counter(), 0
                saved = end or outcome.signal or (step + 1) % self.config.save_every == 0
                facts |= {
                    "seconds": round(before + time.perf_counter(), 2),
                    "peak_memory_bytes": max(facts["peak_memory_bytes"], machine.peak_memory(self.device)),
                }
                if saved and self.processes.first:
                    self.states.save(stage, step + 1, self._tensors(optimiser), facts)
                if due or saved:
                    self.processes.wait()
                if outcome.signal:
                    raise InterruptedRunError(
                        f"interrupted after step {step + 1} of stage {stage}, which is saved",
                        "start it again to continue",
                        128 + outcome.signal,
                    )
                advance(1, note=f"loss {outcome.losses['loss']:.4f}" if due or step % 10 == 0 else "")
        if self.processes.first:
            self._finish(stage, objective, facts)
        self.processes.wait()

    def _objective(self, stage: int) -> Objective:
        smooth = self.config.stage(stage).smooth
        loss = alpha_free_loss if self.config.alpha_free else partial(matting_loss, smooth=smooth)
        if stage < 3:
            return (WholeNetwork, RandomPaths)[stage - 1](self.space, loss)
        start = self._before(stage)
        assert start is not None, "TrainConfig saw to it"
        teacher = start.supernet.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        held_out = replace(self.config.held_out, composites=self.config.paths.prior_images)
        voters = held_out_composites(held_out, self.config.data.kinds, VOTES, self.device, self.reporter)
        prior = self._path_prior(start, voters)
        return PathLearning(self.space, loss, self.config.paths, teacher, prior, voters)

    def _path_prior(self, start: Checkpoint, voters: list[Batch]) -> PathPrior:
        """The votes of the network that enters stage 3; made once and kept in the run folder."""
        settings, digest = self.config.paths, start.document["weights"]["sha256"]
        if settings.uniform_prior or settings.gumbel_only:
            return PathPrior.flat(start.preset, self.space)
        made = self.processes.from_first(lambda: {"made": (self.out / pathprior.DOCUMENT).exists()})["made"]
        if not made:
            part = self.processes.rank, self.processes.count
            network, count = start.supernet, settings.prior_paths
            prior = estimate_prior(network, digest, voters, self.space, count, self.config.seed, part, self.reporter)
            self.processes.wait()
            self.processes.sum(torch.from_numpy(prior.votes))
            if self.processes.first:
                prior.save(self.out)
        self.processes.wait()
        return PathPrior.load(self.out, self.space, digest)

    def _step(
        self, shards: Shards, optimiser: torch.optim.Optimizer, objective: Objective, stage: int, step: int, plan: Stage
    ) -> Outcome:
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(plan, step, self.config.warmup) * group["rate"]
        names: list[str] = []
        shards.start()
        for shard in shards.mine():
            batch = self._batch(stage, step, shard)
            rounding = rounded(self.supernet) if self._rounds(stage, step) else nullcontext()
            autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")
            with rounding, magnitudes(self.supernet) as found, autocast:
                losses = objective(self.supernet, batch, np.random.default_rng([self.config.seed, stage, step, shard]))
            losses["magnitude"] = excess(found)
            losses["loss"] = losses["loss"] + self.config.magnitude_weight * losses["magnitude"]
            names = list(losses)
            asked = [float(self.interruption.number == number) for number in (signal.SIGINT, signal.SIGTERM)]
            shards.add(losses["loss"], [*asked, len(batch.image), *losses.values()])
        interrupt, terminate, crops, *sums = shards.finish()
        means = {name: total / shards.count for name, total in zip(names, sums, strict=False)}
        norm = nn.utils.clip_grad_norm_(self.supernet.parameters(), self.config.clip)
        skipped = not (math.isfinite(means["loss"]) and bool(torch.isfinite(norm)))
        if skipped:
            shards.restore()
        else:
            optimiser.step()
            self._average(step)
        number = signal.SIGTERM if terminate else signal.SIGINT if interrupt else 0
        return Outcome(means, int(crops), skipped, int(number))

    def _rounds(self, stage: int, step: int) -> bool:
        """Whether features are rounded in this step."""
        share = self.config.stage(stage).rounding
        return share > 0 and np.random.default_rng([self.config.seed, stage, step, ROUNDING]).random() < share

    def _batch(self, stage: int, step: int, shard: int) -> Batch:
        batch = self.batches(stage, step, shard)
        return batch._replace(image=batch.image.contiguous(memory_format=torch.channels_last))

    def _count_skipped(self, outcome: Outcome, facts: dict[str, Any], stage: int, step: int) -> None:
        """Count the steps that were skipped, and those in a row. Raises PartialFailureError if these are too many."""
        facts["in_a_row"] = facts["in_a_row"] + 1 if outcome.skipped else 0
        facts["skipped"] += outcome.skipped
        if outcome.skipped and facts["skipped"] == 1:
            self.reporter.warn(
                f"stage {stage}, step {step}: the loss or its gradient is not finite; such steps are skipped"
            )
        if facts["in_a_row"] == MOST_SKIPPED:
            raise PartialFailureError(
                f"the loss or its gradient was not finite in {MOST_SKIPPED} steps in a row up to step {step} of stage {stage}",
                f"train again with a lower learning rate (--set stage{stage}.learning_rate=...); the last saved state is kept",
            )

    @torch.no_grad()
    def _average(self, step: int) -> None:
        """Move the averaged weights and batch norm statistics; the decay warms up so that early noise is forgotten."""
        decay = min(self.config.ema, (1 + step) / (10 + step))
        live = self.supernet.state_dict()
        floats = [name for name, value in live.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.ema[name] for name in floats], [live[name] for name in floats], 1 - decay)
        others = [name for name, value in live.items() if not value.is_floating_point()]
        torch._foreach_copy_([self.ema[name] for name in others], [live[name] for name in others])

    def averaged(self) -> Supernet:
        """A copy of the network with the averaged weights, in evaluation mode."""
        network = Supernet(self.supernet.preset).to(self.device)
        network.load_state_dict(self.ema)
        return network.eval()

    def _optimiser(self, plan: Stage) -> torch.optim.Optimizer:
        """RAdam; no weight decay on biases and norms. The heads, which begin in stage 3, learn faster than the rest."""
        weights, others, head_weights, head_others = _parameter_groups(self.supernet)
        decay, rate = self.config.weight_decay, self.config.paths.head_rate
        groups = [
            {"params": weights, "weight_decay": decay, "rate": 1.0},
            {"params": others, "weight_decay": 0.0, "rate": 1.0},
            {"params": head_weights, "weight_decay": decay, "rate": rate},
            {"params": head_others, "weight_decay": 0.0, "rate": rate},
        ]
        return torch.optim.RAdam(
            groups, lr=plan.learning_rate, betas=self.config.betas, decoupled_weight_decay=True, foreach=True
        )

    def _before(self, stage: int) -> Checkpoint | None:
        """What a stage begins with: the averaged weights of the stage before, or else the model that the run starts from.

        Raises UsageError if that is a network of another preset and this is not stage 1, the only one that can teach fresh layers.
        """
        earlier = [number for number in self.config.stages if number < stage]
        if earlier:
            return checkpoint.load(self._folder(earlier[-1]))
        if not self.config.init:
            return None
        model = checkpoint.load(checkpoint.find(self.config.init))
        theirs, own = model.preset, self.supernet.preset
        if theirs != own and (stage != 1 or (theirs.prior, theirs.connect) != (own.prior, own.connect)):
            raise UsageError(
                f"{self.config.init} is a {theirs.label} network, this run trains {own.label}",
                "give --preset and --prior of the model, or start without --init"
                if stage == 1
                else "give --preset and --prior of the model, or begin with stage 1",
            )
        return model

    def _start_from(self, stage: int, objective: Objective) -> None:
        before = self._before(stage)
        if before is not None:
            own, theirs = self.supernet.state_dict(), before.supernet.state_dict()
            fitting = {name: value for name, value in theirs.items() if name in own and own[name].shape == value.shape}
            self.supernet.load_state_dict(fitting, strict=before.preset == self.supernet.preset)
            if len(fitting) < len(own):
                share = sum(value.numel() for value in fitting.values()) / sum(value.numel() for value in own.values())
                self.reporter.say(
                    f"{share:.0%} of the weights are those of {before.preset.label}, by name and shape; the rest starts fresh"
                )
        objective.begin(self.supernet.eval())
        self.ema = {name: value.clone() for name, value in self.supernet.state_dict().items()}

    def _log(
        self, stage: int, step: int, plan: Stage, losses: dict[str, float], crops_per_second: float, skipped: int
    ) -> None:
        network = self.averaged()
        paths = Path.all_bypass(self.space.units), Path.all_run(self.space.units)
        smallest, largest = (round(float(sads(network, self.held_out, path).mean()), 5) for path in paths)
        best = min((other["sad_largest"] for other in self.log.rows() if other["stage"] == stage), default=math.inf)
        if not largest <= ASTRAY * best:
            self.reporter.warn(
                f"stage {stage}, step {step}: SAD of the largest path is {largest:.3f}, and was {best:.3f} before; "
                f"if it does not recover, train again with a lower learning rate (--set stage{stage}.learning_rate=...)"
            )
        row = {
            "stage": stage,
            "step": step,
            **{name: round(value, 6) if math.isfinite(value) else None for name, value in losses.items()},
            "learning_rate": learning_rate(plan, step - 1, self.config.warmup),
            "skipped": skipped,
            "crops_per_second": round(crops_per_second, 2),
            "sad_largest": largest,
            "sad_smallest": smallest,
        }
        self.log.append(row)
        self.log.draw(stage, network, self.held_out[0], paths)
        self.reporter.detail(json.dumps(row))

    def _finish(self, stage: int, objective: Objective, spent: dict[str, Any]) -> None:
        """Write the stage's checkpoint: averaged weights, and the measured paths once paths were trained."""
        network = self.averaged()
        paths = search_paths(network, self.held_out, self.reporter) if stage > 1 else PathTable([])
        steps = self.config.stage(stage).steps
        self.log.summarise(
            stage, {"steps": steps, **{name: spent[name] for name in ("skipped", "seconds", "peak_memory_bytes")}}
        )
        self.log.plot(self.reporter)
        facts = {
            "stage": stage,
            "precision": self.precision,
            "training": to_yaml(self.config),
            "licence": "Apache-2.0",
            "data_licence": self._data_licence(),
            **objective.finish(self._folder(stage)),
        }
        checkpoint.save(self._folder(stage), network.cpu(), paths, facts)
        self.states.clear()

    def _data_licence(self) -> str:
        data = self.config.data
        own = [folder for folder in (*data.sets, data.foreground_folder, data.background_folder) if folder]
        return f"images of the user in {' and '.join(own)}" if own else "procedural images only"

    def _tensors(self, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
        return collect(self.supernet, self.ema, optimiser)

    def _load_state(self, state: dict[str, Any], optimiser: torch.optim.Optimizer) -> None:
        """Continue from a state that was examined."""
        self.ema = restore(self.states.tensors(state), self.supernet, optimiser)


def learning_rate(plan: Stage, step: int, warmup: int) -> float:
    """Linear rise, then cosine to 0."""
    rise = min(1.0, (step + 1) / max(1, min(warmup, plan.steps // 5)))
    return plan.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * step / plan.steps))


def _parameter_groups(network: Supernet) -> tuple[list[nn.Parameter], ...]:
    """Weights, biases and norms of the network, and the same of what chooses its path."""
    named = list(network.named_parameters())
    parts = [[p for name, p in named if chooses(name) == choosing] for choosing in (False, True)]
    return tuple([p for p in part if (p.dim() > 1) == weights] for part in parts for weights in (True, False))


def _parameters(network: Supernet) -> list[nn.Parameter]:
    """In the order of the optimiser."""
    return [parameter for group in _parameter_groups(network) for parameter in group]
