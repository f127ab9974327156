"""Files lowered ahead of time: whole inside their delegate, told by their facts, and the rewrite that Vulkan needs."""

from __future__ import annotations

import sys
from pathlib import Path as FilePath

import pytest
import torch
from export_samples import SIZE, single
from torch import Tensor, nn

from pam_export import aot, executorch
from pam_export.parity import cases
from pam_export.rewrite import split_batches
from pam_export.scalars import lift_scalars
from pam_export.wrapper import network_of, wrap
from pam_mobile.errors import IntegrityError, SetupError
from pam_mobile.model.supernet import Supernet
from pam_mobile.path import Path

BUILDS = {"coreml": aot.build_coreml, "vulkan": aot.build_vulkan}
DELEGATES = {"coreml": b"CoreMLBackend", "vulkan": b"VulkanBackend"}
INFO = {"path": "010", "macs": (7, 8)}


class Pairwise(nn.Module):
    """Convolves two images at once, as the colour prior does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3, padding=1, stride=2)

    def forward(self, image: Tensor, trimap: Tensor) -> Tensor:
        first, second = self.conv(torch.cat([image, image * trimap])).split(1)
        return first[:, :1] - 2 * second[:, 1:]


class Strange(nn.Module):
    def forward(self, image: Tensor, trimap: Tensor) -> Tensor:
        return torch.asinh(image * trimap)


@pytest.mark.parametrize("target", BUILDS)
def test_the_whole_network_is_one_delegate_of_the_right_kind(
    target: str, supernet: Supernet, tmp_path: FilePath
) -> None:
    network, path = wrap(network_of(supernet, Path.parse("010"))), tmp_path / "ahead.pte"
    backend = BUILDS[target](single(network, cases(SIZE)[0].inputs()), path, INFO)
    assert (backend["name"], backend["leftovers"], backend["delegates"]) == (target, 0, 1)
    assert backend["delegated_ops"] == backend["total_ops"] > 50
    data = path.read_bytes()
    assert {kind: name in data for kind, name in DELEGATES.items()} == {kind: kind == target for kind in DELEGATES}
    assert executorch.facts(path) == {"path": "010", "macs": "7,8"}


@pytest.mark.parametrize("target", BUILDS)
def test_what_the_delegate_does_not_take_is_named(target: str, tmp_path: FilePath) -> None:
    backend = {"coreml": "CoreML", "vulkan": "Vulkan"}[target]
    with pytest.raises(IntegrityError, match=rf"{backend} left 1 operations .*asinh.* x1$") as caught:
        BUILDS[target](single(Strange(), cases(32)[0].inputs()), tmp_path / "no.pte", {})
    assert "--target executorch" in caught.value.hint
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("split", [True, False])
def test_vulkan_takes_convolutions_of_several_images_only_when_they_are_split(
    split: bool, tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = single(Pairwise(), cases(32)[0].inputs())
    if split:
        assert aot.build_vulkan(parts, tmp_path / "pair.pte", {})["leftovers"] == 0
    else:
        monkeypatch.setattr(aot, "split_batches", lambda program: program)
        with pytest.raises(IntegrityError, match=r"aten\.convolution"):
            aot.build_vulkan(parts, tmp_path / "pair.pte", {})


def test_splitting_batches_changes_no_number() -> None:
    module, inputs = Pairwise().eval(), (torch.rand(1, 3, 12, 10), torch.rand(1, 1, 12, 10))
    with torch.no_grad():
        traced = torch.export.export(module, inputs)
        program = torch.export.export(lift_scalars(traced.module(check_guards=False)), inputs)
        rewritten = split_batches(program)
        torch.testing.assert_close(rewritten.module()(*inputs), module(*inputs))
    convs = [n for n in rewritten.graph.nodes if n.target == torch.ops.aten.conv2d.default]
    assert [tuple(n.args[0].meta["val"].shape) for n in convs] == [(1, 3, 12, 10)] * 2


def test_a_missing_coremltools_is_told_with_the_remedy(
    supernet: Supernet, tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "coremltools", None)
    parts = single(Pairwise(), cases(32)[0].inputs())
    with pytest.raises(SetupError, match="needs coremltools") as caught:
        aot.build_coreml(parts, tmp_path / "no.pte", {})
    assert "pip install" in caught.value.hint
