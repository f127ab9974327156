"""Failing system calls: the Nth call of `os.{open,write,fsync,replace,close}` raises, or the process dies there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

CALLS = ("open", "write", "fsync", "replace", "close")


@contextmanager
def before_each_call(act: Callable[[str, int], None]) -> Iterator[list[str]]:
    """Within the block, act(name, index) runs before every call of CALLS; yields the list of their names so far."""
    seen: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, _watched(name, getattr(os, name), seen, act))
        yield seen


def _watched(name: str, real: Callable[..., Any], seen: list[str], act: Callable[[str, int], None]) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        seen.append(name)
        try:
            act(name, len(seen) - 1)
        except OSError:
            if name == "close":  # Linux has closed it whatever it answers
                real(*args)
            raise
        return real(*args, **kwargs)

    return call


def fail_at(index: int, number: int, forever: bool = False) -> Callable[[str, int], None]:
    """An act that fails the call of that index, or all from it on, with an errno."""

    def act(name: str, at: int) -> None:
        if at == index or (forever and at > index):
            raise OSError(number, os.strerror(number))

    return act
