"""int8 for XNNPACK: weights per channel, activations per tensor, ranges from calibration images.

Not all of a matting network stands it. The colour prior inverts matrices, the masks of known pixels must be exact, and a last
convolution in int8 would give the matte steps: these stay float32. Of the rest, those convolutions stay float32 that hurt the
matte most for their work, until the loss is small: found by measuring units and levels one by one, and then the convolutions of the
worst. So do concatenations whose common scale hurts (concatenations.py).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from pam_mobile.model.prior import ColourPrior
from pam_mobile.model.trunk import Decoder, Encoder, MattingNet
from pam_mobile.train.rounding import LEVELS, round_between

from . import concatenations
from .artifact import Pair, Part
from .parity import unknown_difference
from .scalars import lift_scalars

PROBES = 3
"""Calibration images on which the loss is simulated."""
LIMIT = 0.004
"""Mean difference of alpha over the unknown pixels that the simulated quantisation may cause: one level of 8 bits."""
NEGLIGIBLE = 10
"""A layer that alone causes less than one in so many parts of the limit is not worth keeping in float32."""
HEAD = "head"


@dataclass(frozen=True)
class Sensitivity:
    """losses: what rounding a unit, a level or a layer alone does to alpha, the mean difference over the unknown pixels.

    floats: the layers that have to stay float32; loss: what rounding all other convolutions together does.
    """

    losses: Mapping[str, float]
    floats: tuple[str, ...]
    loss: float


@dataclass(frozen=True)
class Quantised:
    """The quantised graph of a part, and what was measured on the way."""

    graph: fx.GraphModule
    fixed: tuple[str, ...]
    sensitivity: Sensitivity


def quantise(module: nn.Module, inputs: Pair, calibration: Sequence[Pair], limit: float = LIMIT) -> Quantised:
    """A graph of `module` with quantised operations. module: rewritten by `for_xnnpack`; calibration: at least one pair."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    found = sensitive(module, calibration, limit)
    fixed = tuple(always_float(module))
    program = torch.export.export(module, inputs)
    program = torch.export.export(lift_scalars(program.module(check_guards=False)), inputs)
    graph = program.module(check_guards=False)
    keep = stays_float({*fixed, *found.floats}, _own_operations(module))
    rest = {node for node in graph.graph.nodes if not keep(node)}
    joins = concatenations.losses(graph, calibration[:PROBES], rest)
    apart = [join for join in joins if join.loss > limit]
    nodes = {join.node for join in apart}
    prepared = prepare_pt2e(graph, _quantizer(lambda node: keep(node) or node in nodes))
    for pair in calibration:
        prepared(*pair)
    losses = {**found.losses, **{join.name: join.loss for join in joins}}
    floats = (*found.floats, *(join.name for join in apart))
    return Quantised(convert_pt2e(prepared), fixed, replace(found, floats=floats, losses=losses))


def report(parts: Sequence[Part], quantised: Sequence[Quantised]) -> dict[str, Any]:
    """What the manifest's `backend` tells of the quantisation: per part the float layers and the measured losses."""
    return {
        "calibration": [{"images": len(p.calibration), "size": p.inputs[0].shape[-1]} for p in parts],
        "float_layers": {p.name: [*q.fixed, *q.sensitivity.floats] for p, q in zip(parts, quantised, strict=True)},
        "simulated_loss": {p.name: q.sensitivity.loss for p, q in zip(parts, quantised, strict=True)},
        "layer_loss": {p.name: dict(q.sensitivity.losses) for p, q in zip(parts, quantised, strict=True)},
    }


def sensitive(module: nn.Module, calibration: Sequence[Pair], limit: float = LIMIT) -> Sensitivity:
    """Which convolutions have to stay float32, by a simulation that rounds inputs and weights. module: batch norm folded."""
    simulation = Simulation(module, calibration[:PROBES])
    members = groups(module)
    rest = [name for names in members.values() for name in names]
    losses = {group: simulation.loss(names) for group, names in members.items()}
    floats: list[str] = []
    loss = simulation.loss(rest)

    def harm(name: str) -> float:
        """Loss per multiply-add: what stays float32 should cost little time."""
        return losses[name] / sum(simulation.macs[member] for member in members.get(name, [name]))

    for group in sorted(members, key=harm, reverse=True):
        if loss <= limit:
            break
        if losses[group] <= limit / NEGLIGIBLE:
            continue
        alone = {name: simulation.loss([name]) for name in members[group]}
        losses |= alone
        for name in sorted(alone, key=harm, reverse=True):
            if loss > limit and alone[name] > limit / NEGLIGIBLE:
                floats.append(name)
                rest.remove(name)
                loss = simulation.loss(rest)
    return Sensitivity(losses, tuple(floats), loss)


def groups(module: nn.Module) -> dict[str, list[str]]:
    """The convolutions of every unit and level of the matting network inside `module`, without its last one."""
    found = {}
    for name, part in module.named_modules():
        if isinstance(part, Encoder | Decoder):
            for key, child in part.named_children():
                for leaf in (f"{key}.{i}" for i in range(len(child))) if isinstance(child, nn.ModuleList) else [key]:
                    found[f"{name}.{leaf}"] = _convolutions(part.get_submodule(leaf), f"{name}.{leaf}")
    return {group: names for group, names in found.items() if names and not group.endswith(f".{HEAD}")}


def _convolutions(module: nn.Module, prefix: str) -> list[str]:
    return [f"{prefix}.{name}".strip(".") for name, part in module.named_modules() if isinstance(part, nn.Conv2d)]


def always_float(module: nn.Module) -> list[str]:
    """Names of the colour prior and of the last convolution."""
    priors = [name for name, part in module.named_modules() if isinstance(part, ColourPrior)]
    heads = [f"{name}.{HEAD}" for name, part in module.named_modules() if isinstance(part, Decoder)]
    return priors + heads


class Simulation:
    """Convolutions with inputs and weights rounded to 8 bits, in eager mode: cheap, and close to what int8 does to the matte.

    macs: multiply-adds of every convolution on one image.
    """

    def __init__(self, module: nn.Module, pairs: Sequence[Pair]) -> None:
        self.module, self.pairs = module, pairs
        self.ranges: dict[nn.Module, tuple[float, float]] = {}
        self.macs: dict[str, int] = {}
        self.names = {part: name for name, part in module.named_modules() if isinstance(part, nn.Conv2d)}
        with _hooked(self.names, self._observe, after=True):
            self.expected = [module(*pair) for pair in pairs]

    def loss(self, names: Iterable[str]) -> float:
        """Mean absolute difference of alpha over the unknown pixels when the convolutions `names` are rounded."""
        chosen = [cast(nn.Conv2d, self.module.get_submodule(name)) for name in names]
        weights = [conv.weight.data for conv in chosen]
        try:
            for conv in chosen:
                conv.weight.data = round_per_channel(conv.weight.data)
            with _hooked(chosen, self._round):
                got = [self.module(*pair) for pair in self.pairs]
        finally:
            for conv, weight in zip(chosen, weights, strict=True):
                conv.weight.data = weight
        return unknown_difference(self.expected, got, self.pairs)

    def _observe(self, conv: nn.Conv2d, args: tuple[Tensor], result: Tensor) -> None:
        self.macs[self.names[conv]] = conv.weight[0].numel() * result[0].numel()
        low, high = self.ranges.get(conv, (0.0, 0.0))
        self.ranges[conv] = (min(low, float(args[0].min())), max(high, float(args[0].max())))

    def _round(self, conv: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        return (round_between(args[0], *self.ranges[conv]),)


@contextmanager
def _hooked(convolutions: Iterable[nn.Module], hook: Callable[..., Any], after: bool = False) -> Iterator[None]:
    with ExitStack() as stack:
        for conv in convolutions:
            handle = conv.register_forward_hook(hook) if after else conv.register_forward_pre_hook(hook)
            stack.callback(handle.remove)
        yield


def round_per_channel(weight: Tensor) -> Tensor:
    """Weights (out, in, kh, kw) rounded to the 255 symmetric levels of each output channel."""
    step = weight.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-9) / (LEVELS // 2)
    return (weight / step).round() * step


def _own_operations(module: nn.Module) -> set[str]:
    """Names of the modules whose own operations, not those of their children, stay float32: masks and blending."""
    return {name for name, part in module.named_modules() if isinstance(part, MattingNet)}


def stays_float(whole: Collection[str], own: Collection[str]) -> Callable[[fx.Node], bool]:
    """Selector of graph nodes. whole: modules with all that is below; own: modules without what is below."""

    def select(node: fx.Node) -> bool:
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        return bool(stack) and (stack[-1][0] in own or any(name in whole for name, _ in stack))

    return select


def _quantizer(keep: Callable[[fx.Node], bool]) -> Any:
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as xnnpack
    from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

    class Quantizer(xnnpack.XNNPACKQuantizer):
        """XNNPACK's, which asks the filter about everything but concatenations."""

        def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
            self._annotate_for_quantization_config(model)
            for node in model.graph.nodes:
                if node.op == "call_function" and keep(node):
                    node.meta.pop(Q_ANNOTATION_KEY, None)
            xnnpack.propagate_annotation(model)
            return model

    quantizer = Quantizer().set_global(xnnpack.get_symmetric_quantization_config(is_per_channel=True))
    return quantizer.set_filter_function(lambda node: node.op != "call_function" or not keep(node))
