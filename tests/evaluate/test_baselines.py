"""Baselines: their names, what PyMatting is given and gives, and what is said where it is missing or fails."""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import pytest

from pam_mobile.errors import InputError, SetupError, UsageError
from pam_mobile.evaluate.baselines import BASELINES, baselines
from pam_mobile.evaluate.heldout import held_out_images
from pam_mobile.evaluate.images import Sample
from pam_mobile.evaluate.report import evaluate
from pam_mobile.predict import Matter
from pam_mobile.reporter import Silent


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """A module of PyMatting's call signature that keeps what it was given and answers 0.25, a little out of range at one pixel."""
    calls: list[tuple[str, np.ndarray, np.ndarray]] = []

    def solver(name: str) -> object:
        def solve(image: np.ndarray, trimap: np.ndarray) -> np.ndarray:
            calls.append((name, image, trimap))
            sys.stdout.write("PERFORMANCE WARNING\n")
            alpha = np.full(trimap.shape, 0.25)
            alpha[0, 0] = 1.0 + 1e-6
            return alpha

        return solve

    module = ModuleType("pymatting")
    for name in ("estimate_alpha_cf", "estimate_alpha_knn"):
        setattr(module, name, solver(name))
    monkeypatch.setitem(sys.modules, "pymatting", module)
    return calls


def _sample(levels: tuple[int, ...] = (0, 128, 255)) -> Sample:
    rng = np.random.default_rng(0)
    trimap = np.array(levels, np.uint8)[np.arange(63).reshape(7, 9) % len(levels)]
    return Sample("s", rng.random((7, 9, 3), dtype=np.float32), trimap, rng.integers(0, 256, (7, 9), dtype=np.uint8))


@pytest.mark.parametrize(("name", "solver"), [("closed-form", "estimate_alpha_cf"), ("knn", "estimate_alpha_knn")])
def test_pymatting_gets_doubles_and_exact_levels(
    fake: list[tuple[str, np.ndarray, np.ndarray]], name: str, solver: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sample = _sample()
    answer = baselines([name])[0].answer(sample)
    ((called, image, trimap),) = fake
    assert called == solver
    assert (image.dtype, trimap.dtype) == (np.float64, np.float64)
    assert np.array_equal(image, sample.photo)
    assert np.array_equal(trimap, np.select([sample.trimap == 0, sample.trimap == 255], [0.0, 1.0], 0.5))
    assert answer.alpha[0, 0] == 1
    assert (answer.alpha.ravel()[1:] == 0.25).all()
    assert (answer.macs, answer.defaulted) == (None, False)
    assert capsys.readouterr().out == "", "what PyMatting prints is none of the verb's answer"


@pytest.mark.parametrize("levels", [(0, 128), (128, 255), (128,)])
def test_without_known_foreground_or_background_there_is_no_answer(
    fake: list[tuple[str, np.ndarray, np.ndarray]], levels: tuple[int, ...]
) -> None:
    answer = baselines(["knn"])[0].answer(_sample(levels))
    assert fake == []
    assert answer.defaulted
    assert (answer.alpha == 0.5).all()


def test_a_solver_that_fails_names_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def solve(image: np.ndarray, trimap: np.ndarray) -> np.ndarray:
        raise ValueError("did not converge\nafter 10000 iterations")

    module = ModuleType("pymatting")
    module.estimate_alpha_cf = solve  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pymatting", module)
    with pytest.raises(InputError, match=r"^s: baseline closed-form fails: did not converge$"):
        baselines(["closed-form"])[0].answer(_sample())


@pytest.mark.parametrize("name", ["closed-form", "knn"])
def test_without_pymatting_the_line_that_installs_it_is_said(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, "pymatting", None)
    with pytest.raises(SetupError, match=f"baseline {name} needs PyMatting, which is not installed") as caught:
        baselines(["half", name])
    assert caught.value.hint == "pip install 'pam-mobile[baselines]'"
    assert caught.value.code == 4
    assert len(baselines(["half", "prior"], "cpu")) == 2


def test_an_unknown_baseline_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="baseline 'cf' is not known") as caught:
        baselines(["half", "cf"])
    assert caught.value.hint == f"choose among {', '.join(BASELINES)}"


def test_half_answers_half_and_the_prior_is_the_model_without_a_network() -> None:
    half, prior = baselines(["half", "prior"], "cpu")
    sample = _sample()
    assert (half.answer(sample).alpha == 0.5).all()
    matter = Matter.load("prior", "cpu")
    matte = matter.matte(sample.photo, sample.trimap)
    answer = prior.answer(sample)
    assert np.array_equal(answer.alpha, matte.alpha)
    assert (answer.macs, answer.path) == (matte.plan.macs, "")


def test_the_real_pymatting_halves_the_error_of_no_answer() -> None:
    pytest.importorskip("pymatting")
    contenders = baselines(["half", "closed-form", "knn"])
    half, closed, knn = evaluate(contenders, held_out_images(4, 64, ("hair", "fur")), "half", Silent())
    assert closed.sad < 0.5 * half.sad
    assert knn.sad < 0.5 * half.sad
