"""One zygote and one uninterrupted run for all tests of a session that kill training."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from forks import Forks, results


@dataclass(frozen=True)
class Reference:
    """What an uninterrupted run saved and left."""

    states: dict[tuple[int, int], set[str]]
    results: dict[str, str]
    calls: int
    """System calls of CALLS in it."""
    seconds: float


@pytest.fixture(scope="session")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    forks = Forks(tmp_path_factory.mktemp("forks"))
    yield forks
    forks.close()


@pytest.fixture
def forks(zygote: Forks) -> Forks:
    zygote.forget()
    return zygote


@pytest.fixture(scope="session")
def reference(zygote: Forks, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return measure(zygote, tmp_path_factory.mktemp("reference"))


def measure(forks: Forks, folder: Path) -> Reference:
    """An uninterrupted run: once to fill the cache of generated material, once to look at it."""
    for name in ("warm-up", "run"):
        forks.forget()
        start = time.monotonic()
        assert forks.run(folder / name) == 0, forks.messages()
        seconds = time.monotonic() - start
    ((_, calls),) = forks.record("calls")
    return Reference(forks.record("saved"), results(folder / "run"), calls, seconds)


def same_states(forks: Forks, reference: Reference) -> int:
    """Assert that everything saved and loaded since the last look is what the uninterrupted run had there; returns the loads."""
    for kind in ("saved", "loaded"):
        for place, digests in forks.record(kind).items():
            assert digests == reference.states[place], (kind, place)
    loads = sum(len(digests) for digests in forks.record("loaded").values())
    forks.forget()
    return loads
