"""Processes for the survival tests: imports torch once, runs no operation of it, and forks a child per training run.

Reads one JSON line per request, a list of jobs that run at the same time, and answers with the list of their exit codes (negative: the
signal that ended them). A fork after multi-threaded operations could hang, hence this process of its own.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy.random  # noqa: F401
import torch
import torch._dynamo  # what training imports late, once for all children
from faults import before_each_call
from safetensors.torch import save as serialise
from strategies import TINY_RUN

from pam_mobile.commands.common import Terminated, _terminate
from pam_mobile.config import Crop, Data, HeldOut, PathLearningSettings, Stage, TrainConfig
from pam_mobile.errors import PamError
from pam_mobile.files import read_sealed_json
from pam_mobile.model.presets import PRESETS
from pam_mobile.reporter import Silent
from pam_mobile.train import engine, processes, validate
from pam_mobile.train.engine import Trainer
from pam_mobile.train.log import RunLog
from pam_mobile.train.runstate import RunState

MICRO = replace(
    PRESETS["tiny"],
    name="micro",
    stem=4,
    channels=(4, 8, 8, 8, 8),
    encoder_convs=(0, 0),
    encoder_units=(1, 1, 1),
    ppm=1,
    decoder_units=(1, 1, 1),
    decoder_channels=(4, 4),
    decoder_convs=(0, 0, 0),
    budget_step=20_000_000,
    prior=True,
)
RUN: TrainConfig = replace(
    TINY_RUN,
    stage1=Stage(steps=4, learning_rate=1e-3),
    stage2=Stage(steps=4, learning_rate=1e-3),
    stage3=Stage(steps=4, learning_rate=1e-3),
    paths=PathLearningSettings(candidates=2, prior_images=2, prior_paths=2),
    crops=(Crop(32, 2, 1.0),),
    data=Data(patches=6, backgrounds=4, size=64),
    held_out=HeldOut(composites=2, size=64),
    validate_every=2,
    save_every=2,
)


def main() -> None:
    for line in sys.stdin:
        jobs = json.loads(line)
        children = [_start(job) for job in jobs]
        codes = [_wait(pid, job) for pid, job in zip(children, jobs, strict=True)]
        sys.stdout.write(json.dumps(codes) + "\n")
        sys.stdout.flush()


def _start(job: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        sys.stdin.close()
        log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = _run(job)
    except PamError as error:
        os.write(2, f"{error.message} / {error.hint}\n".encode())
        code = error.code
    except KeyboardInterrupt:
        code = 130
    except Terminated:
        code = 143
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _wait(pid: int, job: dict[str, Any]) -> int:
    """Exit code of a child; signals it after the given seconds. One that takes a minute is killed and counts as hung: -1000."""
    planned = sorted((at, number) for at, number in job.get("signals", []))
    start = time.monotonic()
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        now = time.monotonic() - start
        while planned and planned[0][0] <= now:
            os.kill(pid, planned.pop(0)[1])
        if now > job.get("deadline", 60):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return -1000
        time.sleep(0.002)


def _run(job: dict[str, Any]) -> int:
    time.sleep(job.get("delay", 0))
    os.environ.update(job.get("env", {}))
    signal.signal(signal.SIGTERM, _terminate)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(job.get("threads", 1))
    engine.preset = lambda *_: MICRO  # type: ignore[assignment]
    validate.PROPOSALS = 2
    processes.STEP_SECONDS = job.get("step_seconds", processes.STEP_SECONDS)
    RunLog.plot = lambda self, reporter: None  # type: ignore[method-assign]
    plans = {k: Stage(**v) if isinstance(v, dict) else v for k, v in job.get("config", {}).items()}
    config = replace(RUN, **{k: tuple(v) if k == "stages" else v for k, v in plans.items()})
    if plant := job.get("plant"):
        PLANTS[plant["what"]](plant)
    record = Path(job["record"])

    def note(kind: str, stage: int, step: int, sha256: str) -> None:
        with open(record, "a") as file:
            file.write(json.dumps([kind, stage, step, sha256]) + "\n")

    save, load = RunState.save, Trainer._load_state

    def noted_save(self: RunState, stage: int, step: int, tensors: Any, facts: Any) -> None:
        save(self, stage, step, tensors, facts)
        document = read_sealed_json(self.folder / f"state-{stage}-{step:08d}.json", "")
        note("saved", stage, step, document["sha256"])

    def noted_load(self: Trainer, state: dict[str, Any], optimiser: Any) -> None:
        load(self, state, optimiser)
        data = serialise({name: t.detach().contiguous() for name, t in self._tensors(optimiser).items()})
        note("loaded", state["stage"], state["step"], hashlib.sha256(data).hexdigest())

    RunState.save, Trainer._load_state = noted_save, noted_load  # type: ignore[method-assign]
    trainer = Trainer(config, Path(job["out"]), Silent())

    def act(name: str, at: int) -> None:
        if at == job.get("kill_at_call"):
            os.kill(os.getpid(), signal.SIGKILL)
        if at >= job.get("full_from_call", 1 << 60):
            raise OSError(errno.ENOSPC, "No space left on device")

    with before_each_call(act) as calls:
        trainer.run(job.get("resume", False))
    note("calls", 0, len(calls), "")
    return 0


def _die_in(plant: dict[str, Any]) -> None:
    """SIGKILL, or another signal once or twice, in the named place, in the process of the given rank, at the given step of stage 1."""
    if os.environ.get("RANK", "0") != str(plant["rank"]):
        return
    owner, name = {
        "forward": (engine.WholeNetwork, "__call__"),
        "all-reduce": (processes.Processes, "sum"),
        "wait": (processes.Processes, "wait"),
        "save": (RunState, "save"),
        "step": (Trainer, "_step"),
    }[plant["place"]]
    real, left = getattr(owner, name), plant["step"]

    def dying(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        if not left:
            for _ in range(plant.get("times", 1)):
                os.kill(os.getpid(), plant.get("signal", signal.SIGKILL))
            time.sleep(plant.get("sleep", 0))
        left -= 1
        return real(*args, **kwargs)

    setattr(owner, name, dying)


def _not_finite(plant: dict[str, Any]) -> None:
    """The loss, or only its gradient, is not finite in the given calls of one rank."""
    if os.environ.get("RANK", "0") != str(plant.get("rank", 0)):
        return
    real, calls = engine.matting_loss, 0

    def poisoned(alpha: torch.Tensor, *rest: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls in plant["calls"]:
            alpha = _InfiniteGradient.apply(alpha) if plant["kind"] == "gradient" else alpha * float("nan")
        return real(alpha, *rest, **more)

    engine.matting_loss = poisoned  # type: ignore[assignment]


class _InfiniteGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return grads[0] * float("inf")


def _forget(plant: dict[str, Any]) -> None:
    """A planted bug: the state lacks a part."""
    real = Trainer._load_state

    def forgetful(self: Trainer, state: dict[str, Any], optimiser: Any) -> None:
        before = {name: value.clone() for name, value in self.ema.items()}
        real(self, state, optimiser)
        if plant["part"] == "ema":
            self.ema = before
        else:
            optimiser.state.clear()

    Trainer._load_state = forgetful  # type: ignore[method-assign]


def _deaf(plant: dict[str, Any]) -> None:
    """A planted bug: every process keeps its own gradients."""
    processes.Processes.sum = lambda self, values: None  # type: ignore[method-assign]


PLANTS = {"deaf": _deaf, "die": _die_in, "not finite": _not_finite, "forget": _forget}

if __name__ == "__main__":
    main()
