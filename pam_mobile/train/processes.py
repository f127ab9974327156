"""The processes that train one network together: one alone, or several started by torchrun on one or more machines."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import PamError, PartialFailureError, UsageError

STEP_SECONDS = 30
"""A process that is this late for the sum of a step's gradients counts as lost."""
PATIENCE = timedelta(days=1)
"""How long the others wait while the first one makes data, validates or saves. A process that dies is noticed at once."""

Document = dict[str, Any]


class Processes:
    """Rank, device and the collective operations of training. With one process every operation is the identity."""

    def __init__(self) -> None:
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        self.device = _device(self.local_rank)
        if self.count > 1 and not dist.is_initialized():
            dist.init_process_group("cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo", timeout=PATIENCE)
        self._steps = dist.new_group(timeout=timedelta(seconds=STEP_SECONDS)) if self.count > 1 else None

    @property
    def first(self) -> bool:
        """Whether this is the process that writes, logs and validates."""
        return self.rank == 0

    def sum(self, values: Tensor) -> None:
        """Add up `values` over all processes, in place. Raises PartialFailureError if one of them is lost."""
        if self.count > 1:
            with _lost():
                dist.all_reduce(values, group=self._steps)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            with _lost():
                dist.all_reduce(torch.zeros(1))

    def from_first(self, work: Callable[[], Document]) -> Document:
        """The JSON document that work() returns in the first process; a PamError that it raises there is raised everywhere."""
        if self.count == 1:
            return work()
        answer: Document = {}
        error: PamError | None = None
        if self.first:
            try:
                answer = {"answer": work()}
            except PamError as caught:
                error = caught
                answer = {"message": caught.message, "hint": caught.hint, "code": caught.code}
        answer = self._share(answer)
        if error:
            raise error
        if "code" in answer:
            lost = PamError(answer["message"], answer["hint"])
            lost.code = answer["code"]
            raise lost
        return dict(answer["answer"])

    def close(self) -> None:
        """Leave the group; the others notice."""
        if self.count > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def _share(self, document: Document) -> Document:
        text = json.dumps(document).encode()
        with _lost():
            length = torch.tensor([len(text)])
            dist.broadcast(length, 0)
            data = torch.zeros(int(length), dtype=torch.uint8)
            if self.first:
                data = torch.frombuffer(bytearray(text), dtype=torch.uint8)
            dist.broadcast(data, 0)
        return dict(json.loads(bytes(data.tolist())))


def _device(local_rank: int) -> torch.device:
    if torch.cuda.is_available():
        if local_rank >= torch.cuda.device_count():
            raise UsageError(
                f"process {local_rank} of this machine finds {torch.cuda.device_count()} GPUs",
                "start one process per GPU",
            )
        torch.cuda.set_device(local_rank)
        return torch.device("cuda", local_rank)
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


@contextmanager
def _lost() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise PartialFailureError(
            "another process of this run ended or does not answer", "start all of them again with --resume"
        ) from error
