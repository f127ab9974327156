"""The quickstart from end to end with few steps and small inputs; the second run trains and exports nothing again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import pytest
from strategies import TINY_RUN

from pam_mobile.commands import quickstart as module
from pam_mobile.commands.common import Result
from pam_mobile.config import to_yaml
from pam_mobile.errors import SetupError, UsageError
from pam_mobile.files import locked
from pam_mobile.reporter import Silent
from pam_mobile.train.engine import Trainer


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SIZE", 64)
    monkeypatch.setattr(module, "COMPOSITES", 4)
    monkeypatch.setattr(module, "RUNS", 2)
    monkeypatch.setattr(module, "quickstart_config", lambda: replace(TINY_RUN, prior=False))


@pytest.mark.usefixtures("small")
def test_quickstart_does_the_main_job_and_the_second_run_is_quick(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("executorch")
    pytest.importorskip("coremltools")
    pytest.importorskip("skimage")
    result: Result = module.job(Silent(), tmp_path, fresh=False)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report == result.document
    assert [row["budget"] for row in report["budgets"]] == ["80%", "90%", "100%"]
    macs = [row["macs"] for row in report["budgets"]]
    assert macs == sorted(set(macs))
    assert macs[0] <= 0.8 * macs[2]
    assert macs[1] <= 0.9 * macs[2]
    for row in report["budgets"]:
        assert row["files"]["executorch"]["max_difference"] <= 1e-4
        assert row["milliseconds"] > 0
        assert row["sad"] > 0
        assert row["sad_fixed"] > 0
        assert 1 <= row["paths_chosen"] <= 4
    assert report["budgets"][2]["sad"] == report["budgets"][2]["sad_fixed"], "the largest budget leaves no choice"
    assert cv2.imread(str(tmp_path / "picture.png")).shape[1] == 1200
    assert len(list((tmp_path / "photo").glob("*.png"))) == 6
    assert "pam-mobile predict" in result.text
    assert result.text in (tmp_path / "report.md").read_text()

    monkeypatch.setattr(Trainer, "_step", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(module, "export_checkpoint", lambda *_: pytest.fail("exported again"))
    again = module.job(Silent(), tmp_path, fresh=False).document
    assert [row["sad"] for row in again["budgets"]] == [row["sad"] for row in report["budgets"]]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("fresh", [False, True])
def test_what_the_quickstart_did_not_make_is_never_deleted(tmp_path: Path, fresh: bool) -> None:
    pytest.importorskip("executorch")
    pytest.importorskip("skimage")
    for place in ("export/code.py", "photo/mine.png"):
        (tmp_path / place).parent.mkdir()
        (tmp_path / place).write_bytes(b"mine")
    with pytest.raises(SetupError, match=r"export holds code\.py, which no export wrote"):
        module.job(Silent(), tmp_path, fresh)
    assert (tmp_path / "export" / "code.py").read_bytes() == b"mine"
    (tmp_path / "export").rename(tmp_path / "train")
    with pytest.raises(UsageError, match="train is not empty and not a training run"):
        module.job(Silent(), tmp_path, fresh)
    assert (tmp_path / "train" / "code.py").read_bytes() == b"mine"
    assert (tmp_path / "photo" / "mine.png").read_bytes() == b"mine"


@pytest.mark.usefixtures("small")
def test_a_run_of_other_settings_is_deleted_only_if_that_is_asked_for(tmp_path: Path) -> None:
    pytest.importorskip("executorch")
    pytest.importorskip("skimage")
    run = tmp_path / "train"
    run.mkdir()
    (run / "config.yaml").write_text(to_yaml(replace(TINY_RUN, seed=7)))
    (run / "weights").write_bytes(b"of days")
    with pytest.raises(UsageError, match="holds a run of other settings") as refusal:
        module.job(Silent(), tmp_path, fresh=False)
    assert "--fresh" in refusal.value.hint
    assert (run / "weights").exists()
    with locked(run), pytest.raises(UsageError, match="in use by process"):
        module._forget(tmp_path)
    assert (run / "weights").exists()
    module._forget(tmp_path)
    assert not run.exists()
