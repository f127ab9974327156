"""Models that come with the package: pinned, loadable, and made by a command that measures what it says."""

from __future__ import annotations

import json
from pathlib import Path as FilePath

import pytest
import torch

from pam_mobile import checkpoint, models
from pam_mobile.cost import CostTable
from pam_mobile.errors import IntegrityError
from pam_mobile.files import SEAL, read_sealed_json, write_sealed_json
from pam_mobile.model.presets import preset
from pam_mobile.predict import Matter
from pam_mobile.release import _within_reach, release
from pam_mobile.reporter import Silent


@pytest.fixture(scope="module")
def released(run_folder: FilePath, tmp_path_factory: pytest.TempPathFactory) -> FilePath:
    home = tmp_path_factory.mktemp("models")
    return release(run_folder, "mine-v4", 3, 64, ["half", "prior"], Silent(), home, data_licence="drawn by hand, CC0")


def test_the_folder_holds_what_is_pinned_and_nothing_else() -> None:
    found = {place.name for place in models.FOLDER.iterdir()} if models.FOLDER.exists() else set()
    assert found == set(models.SHIPPED)
    for name in models.SHIPPED:
        assert checkpoint.find(name) == models.FOLDER / name
        loaded = checkpoint.load(checkpoint.find(name))
        assert loaded.learned_paths
        assert loaded.document.get("weights_version", 0) == models.version(name)
        card = (models.FOLDER / name / models.CARD).read_text()
        assert name in card
        assert not [line for line in card.splitlines() if ": /" in line], "paths of the machine that trained it"
        assert ": /" not in loaded.document["training"]
        size = sum(file.stat().st_size for file in (models.FOLDER / name).iterdir())
        assert size < 15 * 2**20


def test_a_release_is_the_run_in_float16_with_a_card_of_measured_figures(
    released: FilePath, run_folder: FilePath
) -> None:
    before, after = checkpoint.load(run_folder / "stage3"), checkpoint.load(released)
    assert after.document["weights"]["half"]
    for name, value in before.supernet.state_dict().items():
        expected = value.half().float() if value.is_floating_point() and value.dim() > 1 else value
        assert torch.equal(after.supernet.state_dict()[name], expected)
    assert after.document["training"] == before.document["training"]
    assert after.learned_paths
    assert after.document["weights_version"] == 4
    card = (released / models.CARD).read_text()
    assert after.document["weights"]["sha256"] in card
    assert "Does it adapt to the image?" in card
    assert "| trained on | drawn by hand, CC0 |" in card
    assert "| prior" in card
    halved = (released / checkpoint.WEIGHTS).stat().st_size / (
        run_folder / "stage3" / checkpoint.WEIGHTS
    ).stat().st_size
    assert 0.45 < halved < 0.6


@pytest.mark.parametrize(
    ("name", "number"), [("tiny-v2", 2), ("a-v1-v12", 12), ("mine", 0), ("2", 0), ("tiny-v", 0), ("tiny-v2b", 0)]
)
def test_a_name_ends_with_its_version(name: str, number: int) -> None:
    assert models.version(name) == number


def test_a_card_has_the_budgets_that_the_network_can_keep() -> None:
    def shares(name: str) -> list[str]:
        return [str(budget) for budget in _within_reach(CostTable.of(preset(name, prior=True), 384, 384))]

    assert shares("phone-wide") == ["40%", "50%", "60%", *shares("tiny")]
    assert shares("tiny") == ["75%", "80%", "85%", "90%", "95%", "100%"]


def test_large_statistics_survive_a_release_in_float16(run_folder: FilePath, tmp_path: FilePath) -> None:
    found = checkpoint.load(run_folder / "stage3")
    variance = found.supernet.net.encoder.down16[1].running_var
    variance.fill_(1e6)
    checkpoint.save(tmp_path, found.supernet, found.paths, {"stage": 3}, half=True)
    assert (checkpoint.load(tmp_path).supernet.net.encoder.down16[1].running_var == 1e6).all()


def test_a_shipped_model_is_found_by_name_and_refused_when_changed(
    released: FilePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    seal = read_sealed_json(released / checkpoint.DOCUMENT, "")[SEAL]
    monkeypatch.setattr(models, "FOLDER", released.parent)
    monkeypatch.setattr(models, "SHIPPED", {"mine-v4": seal})
    assert models.default() == "mine-v4"
    assert Matter.load("mine-v4", "cpu").selection == "planned"
    document = json.loads((released / checkpoint.DOCUMENT).read_text())
    original = (released / checkpoint.DOCUMENT).read_bytes()
    write_sealed_json(released / checkpoint.DOCUMENT, {k: v for k, v in document.items() if k != SEAL} | {"stage": 2})
    with pytest.raises(IntegrityError, match="is not the released mine-v4"):
        checkpoint.find("mine-v4")
    (released / checkpoint.DOCUMENT).write_bytes(original)


def test_without_a_shipped_model_the_prior_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "SHIPPED", {})
    assert models.default() == "prior"
