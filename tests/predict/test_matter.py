"""Matter: any size, any input type, known pixels exact, budgets kept."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import picture_files

from pam_mobile.budget import Budget
from pam_mobile.cost import CostTable
from pam_mobile.errors import BudgetError, InputError, UsageError
from pam_mobile.predict import Matter
from pam_mobile.predict.matter import choose_device


@pytest.fixture(scope="module")
def matter(run_folder: Path) -> Matter:
    return Matter.load(run_folder, "cpu")


def scene(height: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8), rng.choice([0, 128, 255], (height, width)).astype(
        np.uint8
    )


@settings(max_examples=25)
@given(st.integers(1, 100), st.integers(1, 100), st.sampled_from(["80%", "90%", "100%", None]))
def test_alpha_has_the_photos_size_and_known_pixels_are_exact(
    matter: Matter, height: int, width: int, budget: str | None
) -> None:
    image, trimap = scene(height, width)
    alpha = matter.predict(image, trimap, budget)
    assert alpha.shape == (height, width)
    assert alpha.dtype == np.float32
    assert np.all((alpha >= 0) & (alpha <= 1))
    assert np.all(alpha[trimap == 255] == 1)
    assert np.all(alpha[trimap == 0] == 0)


def test_padding_does_not_reach_far_into_the_alpha() -> None:
    image, trimap = scene(96, 96)
    image, trimap = (
        cv2.GaussianBlur(image, (0, 0), 8),
        np.where(np.arange(96)[:, None] < 40, 255, np.where(np.arange(96) < 50, 128, 0)),
    )
    trimap = trimap.astype(np.uint8)
    prior = Matter.load("prior")
    whole, cropped = prior.predict(image, trimap), prior.predict(image[:90, :90], trimap[:90, :90])
    assert np.abs(whole[:60, :60] - cropped[:60, :60]).mean() < 0.02


def test_files_and_arrays_of_all_types_agree(matter: Matter, tmp_path: Path) -> None:
    image_file, trimap_file, _ = picture_files(tmp_path)
    image = cv2.cvtColor(cv2.imread(str(image_file)), cv2.COLOR_BGR2RGB)
    trimap = cv2.imread(str(trimap_file), cv2.IMREAD_GRAYSCALE)
    expected = matter.predict(image_file, str(trimap_file))
    for pixels in (image, image.astype(np.uint16) * 257, image / 255, (image / 255).astype(np.float32)):
        np.testing.assert_allclose(matter.predict(pixels, trimap), expected, atol=1e-4)


@pytest.mark.parametrize("name", ["run", "stage", "weights", "document"])
def test_a_model_can_be_named_in_every_documented_way(run_folder: Path, name: str) -> None:
    stage = run_folder / "stage2"
    places = {
        "run": run_folder,
        "stage": stage,
        "weights": stage / "model.safetensors",
        "document": stage / "checkpoint.json",
    }
    assert Matter.load(places[name], "cpu").name == "tiny+prior"


@settings(max_examples=40)
@given(st.integers(1, 2000), st.integers(1, 2000), st.floats(0.71, 1.2))
def test_a_plan_never_exceeds_its_budget(matter: Matter, height: int, width: int, share: float) -> None:
    assert matter.checkpoint is not None
    table = CostTable.of(matter.checkpoint.preset, height, width)
    plan = matter.plan(height, width, f"{share * table.largest / 1e9:.12f}G")
    assert plan.budget_macs is not None
    assert plan.macs <= plan.budget_macs
    assert plan.path is not None
    assert plan.macs == table.cost(plan.path)
    if plan.budget_macs >= table.largest:
        assert all(plan.path)


def test_budgets_below_the_smallest_path_are_refused(matter: Matter) -> None:
    with pytest.raises(BudgetError, match=r"below the smallest path at 64x64: smallest 0\.03\dG, largest 0\.04\dG"):
        matter.plan(64, 64, "10%")
    with pytest.raises(BudgetError, match="below the smallest path"):
        Matter.load("prior").plan(512, 512, "0.01G")


def test_the_prior_is_a_model_and_beats_a_half(tmp_path: Path) -> None:
    image, trimap, alpha = picture_files(tmp_path, 120, 150)
    truth = cv2.imread(str(alpha), cv2.IMREAD_GRAYSCALE) / 255
    unknown = cv2.imread(str(trimap), cv2.IMREAD_GRAYSCALE) == 128
    guess = Matter.load("prior").predict(image, trimap)
    assert np.abs(guess - truth)[unknown].mean() < 0.2 * np.abs(0.5 - truth)[unknown].mean()


def test_errors_name_the_files(matter: Matter, tmp_path: Path) -> None:
    image, trimap, _ = picture_files(tmp_path)
    small = tmp_path / "small.png"
    cv2.imwrite(str(small), np.full((10, 12), 128, np.uint8))
    with pytest.raises(InputError, match=r"small\.png.*x\.png"):
        matter.predict(image, small)
    with pytest.raises(InputError, match="no unknown pixel"):
        matter.predict(image, _write(tmp_path / "sure.png", np.full((45, 70), 255, np.uint8)))
    with pytest.raises(InputError, match="does not exist"):
        matter.predict(tmp_path / "missing.png", trimap)
    with pytest.raises(InputError, match="no model found at nowhere"):
        Matter.load("nowhere")
    with pytest.raises(InputError, match="shape"):
        matter.predict(np.zeros((5, 5), np.uint8), np.zeros((5, 5), np.uint8))


def _write(path: Path, pixels: np.ndarray) -> Path:
    cv2.imwrite(str(path), pixels)
    return path


def test_devices() -> None:
    assert choose_device("cpu").type == "cpu"
    with pytest.raises(UsageError, match="not known"):
        choose_device("tpu")


# How paths are chosen


def test_a_network_that_learned_to_choose_does_so_and_others_take_the_measured_path(run_folder: Path) -> None:
    assert Matter.load(run_folder, "cpu").selection == "planned"
    assert Matter.load(run_folder / "stage2", "cpu").selection == "fixed"
    assert Matter.load("prior", "cpu").selection == "fixed"
    with pytest.raises(UsageError, match="has not learned to choose") as error:
        Matter.load(run_folder / "stage2", "cpu", "planned")
    assert "--stages 1,2,3" in error.value.hint
    with pytest.raises(UsageError, match="selection 'best' is not known"):
        Matter.load(run_folder, "cpu", "best")


@settings(max_examples=25)
@given(st.sampled_from(["planned", "stepwise"]), st.integers(1, 100), st.integers(33, 100), st.integers(0, 120))
def test_a_chosen_path_and_its_heads_cost_at_most_the_budget(
    matters: dict[str, Matter], selection: str, height: int, width: int, percent: int
) -> None:
    matter = matters[selection]
    assert matter.checkpoint is not None
    table = CostTable.of(matter.checkpoint.preset, height, width)
    macs = table.smallest + percent * (table.largest - table.smallest) // 100
    image, trimap = scene(height, width, percent)
    pixels = image.astype(np.float32) / 255
    matte = matter.matte(pixels, trimap, Budget(Fraction(macs), relative=False))
    assert matte.plan.path is not None
    assert matte.plan.macs <= macs
    heads = matte.plan.macs - table.cost(matte.plan.path)
    assert heads in (0, table.planning if selection == "planned" else table.selection)
    assert heads or macs >= table.largest or macs < table.smallest + max(table.planning, table.selection)
    expected = matters["fixed"].network(*tensors(pixels, trimap), path=matte.plan.path)[0, 0, :height, :width]
    np.testing.assert_allclose(matte.alpha, expected.detach(), atol=2e-5)


def test_the_image_decides_the_path(matters: dict[str, Matter]) -> None:
    matter = matters["planned"]
    assert matter.checkpoint is not None
    head = matter.checkpoint.supernet.planning
    with torch.no_grad():
        head.logits.weight.mul_(300)
    paths = set()
    for seed in range(6):
        image, trimap = scene(64, 64, seed)
        bright = (image.astype(np.float32) / 255) ** (seed + 1)
        paths.add(matter.matte(bright, trimap, "90%").plan.path)
    with torch.no_grad():
        head.logits.weight.div_(300)
    assert len(paths) > 1


@pytest.fixture(scope="module")
def matters(run_folder: Path) -> dict[str, Matter]:
    return {selection: Matter.load(run_folder, "cpu", selection) for selection in ("fixed", "planned", "stepwise")}


def tensors(pixels: np.ndarray, trimap: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Padded as Matter pads them."""
    margin = [(0, -size % 32) for size in trimap.shape]
    image = np.pad(pixels, [*margin, (0, 0)], mode="symmetric")
    levels = np.pad(np.rint(trimap / 127.5) / 2, margin, mode="symmetric").astype(np.float32)
    return torch.from_numpy(image).permute(2, 0, 1)[None], torch.from_numpy(levels)[None, None]


@pytest.mark.parametrize(
    ("image", "trimap", "said"),
    [
        (np.zeros((8, 8)), np.zeros((8, 8), np.uint8), r"image has shape \(8, 8\)"),
        (np.zeros((0, 8, 3)), np.zeros((0, 8), np.uint8), r"image has shape \(0, 8, 3\)"),
        (np.full((8, 8, 3), 255.0), np.zeros((8, 8), np.uint8), "image is float64 with values from 255.0 to 255.0"),
        (np.full((8, 8, 3), np.nan), np.zeros((8, 8), np.uint8), "image is float64 with values from nan to nan"),
        (np.zeros((8, 8, 3), np.int64), np.zeros((8, 8), np.uint8), "image is int64"),
        (np.zeros((8, 8, 3), bool), np.zeros((8, 8), np.uint8), "image is bool"),
        (np.zeros((8, 8, 3)), np.zeros((8, 8)), "trimap is float64"),
        (np.zeros((8, 8, 3)), np.zeros((8, 8, 3), np.uint8), r"trimap has shape \(8, 8, 3\)"),
    ],
)
def test_arrays_that_are_no_pictures_are_refused(
    matter: Matter, image: np.ndarray, trimap: np.ndarray, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        matter.predict(image, trimap)
