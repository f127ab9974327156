"""One export that all tests share."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path as FilePath

import pytest
import torch
from adaptive_samples import choosy
from export_samples import CHOICES, MODEL, SIZE, lively, mini

from pam_export import export_folder
from pam_mobile.model.supernet import Supernet


@contextmanager
def one_thread() -> Iterator[None]:
    """The networks here are so small that threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def supernet() -> Supernet:
    with one_thread():
        return lively(mini(), SIZE)


@pytest.fixture(scope="session")
def prior_supernet() -> Supernet:
    with one_thread():
        return lively(mini(prior=True), SIZE)


@pytest.fixture(scope="session")
def chooser() -> Supernet:
    with one_thread():
        return choosy()


@pytest.fixture(scope="session")
def prior_chooser() -> Supernet:
    with one_thread():
        return choosy(prior=True)


@pytest.fixture(scope="session")
def exported(supernet: Supernet, tmp_path_factory: pytest.TempPathFactory) -> FilePath:
    """Three paths for both targets. Copy it before changing it."""
    out = tmp_path_factory.mktemp("export") / "folder"
    with one_thread():
        export_folder(supernet, CHOICES, targets=["executorch", "coreml"], sizes=[SIZE], out=out, model=MODEL)
    return out


@pytest.fixture(scope="session")
def exported_others(supernet: Supernet, tmp_path_factory: pytest.TempPathFactory) -> FilePath:
    """One path as .pt and .onnx."""
    out = tmp_path_factory.mktemp("export") / "others"
    with one_thread():
        export_folder(supernet, CHOICES[2:], targets=["torchscript", "onnx"], sizes=[SIZE], out=out, model=MODEL)
    return out


@pytest.fixture
def copied(exported: FilePath, tmp_path: FilePath) -> Callable[[], FilePath]:
    def copy() -> FilePath:
        return FilePath(shutil.copytree(exported, tmp_path / "copy"))

    return copy
