"""Proof: what every artifact computes, against the supernet on the same path, before anything is published."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path as FilePath
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from pam_mobile.errors import IntegrityError
from pam_mobile.model.subnet import parameter_count
from pam_mobile.model.supernet import Supernet
from pam_mobile.reporter import Reporter

from . import manifest
from .artifact import PLANNED, Answer
from .build import Built
from .child import Job, Outcome, Question, run_isolated
from .parity import Case, Parity, cases, compare, worst
from .plan import Method, Plan
from .publish import forget
from .quality import judged_composites, sad
from .wrapper import network_of

REMEDY = "nothing was published"


@dataclass(frozen=True)
class Proof:
    """What was found out about an artifact.

    parity: None if nothing here can tell what it computes; sad_change: of compressed artifacts, the relative change of the SAD
    on held-out composites, the worst of its methods; golden: what PyTorch answers to the golden input, and params: parameters
    of the network, per method.
    """

    built: Built
    parity: Parity | None
    sad_change: float | None
    golden: tuple[Answer, ...]
    params: tuple[int, ...]


class Reference:
    """What PyTorch answers, computed once per path or budget and kept for all artifacts."""

    def __init__(self, supernet: Supernet) -> None:
        self.supernet = copy.deepcopy(supernet).float().cpu().eval()
        self.network = cache(lambda path: network_of(self.supernet, path))
        self._kept: dict[tuple[str, str, int], list[Answer]] = {}

    def params(self, method: Method) -> int:
        return parameter_count(self.network(method.path) if method.path else self.supernet)

    def answers(self, method: Method, what: str, inputs: Sequence[Case]) -> list[Answer]:
        """One answer per input. what: names the inputs."""
        key = (method.golden, what, method.size)
        if key not in self._kept:
            with torch.no_grad():
                self._kept[key] = [self._answer(method, case) for case in inputs]
        return self._kept[key]

    def _answer(self, method: Method, case: Case) -> Answer:
        if method.path:
            return Answer(self.network(method.path)(*case.inputs()))
        choose = self.supernet.plan if method.name == PLANNED else self.supernet.choose
        alpha, (path,) = choose(*case.inputs(), method.budget)
        return Answer(alpha, path)


def prove(built: Sequence[Built], folder: FilePath, supernet: Supernet, reporter: Reporter) -> list[Proof]:
    """Execute every artifact in a child per target and compare.

    What fails is removed from the folder. Raises IntegrityError naming the first that fails; the others are warnings.
    """
    reference = Reference(supernet)
    outcomes: dict[str, Outcome] = {}
    with reporter.progress("executing the artifacts", len(built)) as advance:
        for target in dict.fromkeys(item.plan.recipe.target for item in built):
            items = [item for item in built if item.plan.recipe.target == target]
            jobs = [Job(item.plan.recipe.key, folder / item.plan.name, _questions(item.plan)) for item in items]
            found = run_isolated(jobs, advance)
            outcomes |= {item.plan.name: outcome for item, outcome in zip(items, found, strict=True)}
    reporter.say("comparing them with PyTorch")
    proofs: list[Proof] = []
    refused: list[IntegrityError] = []
    for item in built:
        try:
            proofs.append(_judge(item, outcomes[item.plan.name], reference, reporter))
        except IntegrityError as error:
            forget(folder, item.plan.name)
            refused.append(error)
    for other in refused[1:]:
        reporter.warn(other.message)
    if refused:
        raise refused[0]
    return proofs


def _questions(p: Plan) -> list[Question]:
    """The parity cases for every method, then the composites for those that are judged by their SAD."""
    if not p.recipe.compared:
        return []
    stacked = {size: _stack(cases(size)) for size in p.sizes}
    questions = [Question(method.request, *stacked[method.size]) for method in p.methods]
    if p.recipe.gate.sad is not None:
        judged = {size: _stack([c.case for c in judged_composites(size)]) for size in p.sizes}
        questions += [Question(method.request, *judged[method.size]) for method in p.methods]
    return questions


def _stack(inputs: Sequence[Case]) -> tuple[Tensor, Tensor]:
    return torch.cat([c.image for c in inputs]), torch.cat([c.trimap for c in inputs])


def _judge(item: Built, outcome: Outcome, reference: Reference, reporter: Reporter) -> Proof:
    p, name, gate = item.plan, item.plan.name, item.plan.recipe.gate
    if outcome.error:
        raise IntegrityError(f"{name} cannot be run: {outcome.error}", REMEDY)
    expected = [reference.answers(method, "parity", cases(method.size)) for method in p.methods]
    golden = tuple(answers[0] for answers in expected)
    params = tuple(reference.params(method) for method in p.methods)
    if not p.recipe.compared:
        reporter.say(f"{name}: {p.recipe.how}")
        return Proof(item, None, None, golden, params)
    parities = []
    for method, answers, got in zip(p.methods, expected, outcome.answers, strict=False):
        for case, mine, its in zip(cases(method.size), answers, got, strict=True):
            if mine.path != its.path:
                raise IntegrityError(
                    f"{name} takes path {its.path} for {case.name} within {method.budget}, PyTorch takes {mine.path}",
                    REMEDY,
                )
        parities.append(compare([a.alpha for a in answers], [a.alpha for a in got], gate))
    parity = worst(parities)
    if not parity.passed:
        raise IntegrityError(f"{name} differs from PyTorch: {parity}", REMEDY)
    change = _sad_change(p, outcome, reference) if gate.sad is not None else None
    if change is not None and gate.sad is not None and not change <= gate.sad:
        raise IntegrityError(
            f"{name} is worse than the network: SAD {change:+.1%} on held-out composites, at most {gate.sad:+.1%} is allowed",
            f"{REMEDY}; export it with another --precision, or train on with --set stage2.rounding=0.5",
        )
    reporter.say(f"{name}: {parity}" + (f", SAD {change:+.2%}" if change is not None else ""))
    return Proof(item, parity, change, golden, params)


def _sad_change(p: Plan, outcome: Outcome, reference: Reference) -> float:
    """The worst relative change over the methods."""
    changes = []
    for method, got in zip(p.methods, outcome.answers[len(p.methods) :], strict=True):
        judged = judged_composites(method.size)
        answers = reference.answers(method, "judged", [c.case for c in judged])
        changes.append(sad([a.alpha for a in got], judged) / sad([a.alpha for a in answers], judged) - 1)
    return max(changes)


def write_golden(folder: FilePath, proofs: Sequence[Proof]) -> list[dict[str, Any]]:
    """Per size one input and what PyTorch makes of it, so that `verify` and the apps need no checkpoint.

    Returns the manifest's `golden`.
    """
    alphas: dict[int, dict[str, Tensor]] = {}
    for proof in proofs:
        for method, answer in zip(proof.built.plan.methods, proof.golden, strict=True):
            alphas.setdefault(method.size, {})[method.golden] = answer.alpha.contiguous()
    entries = []
    for size, tensors in alphas.items():
        name, case = manifest.golden_name(size), cases(size)[0]
        save_file({"image": case.image.contiguous(), "trimap": case.trimap.contiguous(), **tensors}, folder / name)
        entries += [{"size": size, **entry} for entry in manifest.file_entries(folder, folder / name)]
    return entries
