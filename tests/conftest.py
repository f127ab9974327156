"""Shared fixtures. Uninitialised memory is made visible: torch.empty returns NaN in every test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels run on the CPU; must be set before anything imports triton

settings.register_profile("default", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("default")


@pytest.fixture(autouse=True)
def _nan_filled_empty() -> Iterator[None]:
    before = torch.utils.deterministic.fill_uninitialized_memory, torch.are_deterministic_algorithms_enabled()
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=False)
    torch.manual_seed(0)
    yield
    torch.utils.deterministic.fill_uninitialized_memory = before[0]
    torch.use_deterministic_algorithms(before[1])


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Networks this small only lose time to a second thread, and much of it beside another busy process."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test reads or writes the user's cache; what is generated once serves all tests of a session."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PAM_HOME", str(home))
        patch.setenv("NO_COLOR", "1")
        yield home


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of a few steps through all stages. Copy it before changing it."""
    from strategies import TINY_RUN

    from pam_mobile.reporter import Silent
    from pam_mobile.train.engine import Trainer

    out = tmp_path_factory.mktemp("runs") / "run"
    Trainer(TINY_RUN, out, Silent()).run()
    return out
