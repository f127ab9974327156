"""Training: logs, checkpoints, exact resume, refusals, and that it learns."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from strategies import TINY_RUN

from pam_mobile import checkpoint
from pam_mobile.config import Crop, HeldOut, Stage, TrainConfig, differences
from pam_mobile.cost import CostTable
from pam_mobile.errors import InputError, IntegrityError, UsageError
from pam_mobile.model.presets import PRESETS
from pam_mobile.path import Path as NetworkPath
from pam_mobile.path import PathSpace
from pam_mobile.reporter import Reporter, Silent
from pam_mobile.train import engine
from pam_mobile.train.engine import Trainer, learning_rate
from pam_mobile.train.losses import matting_loss
from pam_mobile.train.stages import RandomPaths, WholeNetwork
from pam_mobile.train.validate import change, half_sads, held_out_composites, prior_sads, sads


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(folder).supernet.state_dict()


def test_a_run_leaves_checkpoints_logs_and_a_picture(run_folder: Path) -> None:
    rows = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    assert [(row["stage"], row["step"]) for row in rows] == [(1, 2), (1, 4), (2, 2), (2, 4), (3, 2), (3, 4)]
    table = list(csv.DictReader((run_folder / "metrics.csv").read_text().splitlines()))
    assert [int(row["step"]) for row in table] == [2, 4] * 3
    assert [row["choose"] != "" for row in table] == [False] * 4 + [True] * 2
    assert (run_folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert not (run_folder / "last").exists()
    assert checkpoint.find(str(run_folder)) == run_folder / "stage3"
    found = checkpoint.load(run_folder / "stage3")
    measured = {m.path for m in found.paths.measured}
    units = len(found.preset.units)
    assert {NetworkPath.all_run(units), NetworkPath.all_bypass(units)} < measured
    assert len(measured) >= 2 * units + 2
    assert found.document["data_licence"] == "procedural images only"


class Stop(BaseException):
    pass


@pytest.mark.parametrize("stop_after", [5, 11])
def test_resume_continues_exactly(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    done = 0
    step = Trainer._step

    def interrupted(self: Trainer, *args: object) -> object:
        nonlocal done
        done += 1
        if done > stop_after:
            raise Stop
        return step(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "_step", interrupted)
    with pytest.raises(Stop):
        Trainer(TINY_RUN, tmp_path / "run", Silent()).run()
    monkeypatch.setattr(Trainer, "_step", step)
    Trainer(TINY_RUN, tmp_path / "run", Silent()).run(resume=True)
    for stage in ("stage1", "stage2", "stage3"):
        expected, got = weights(run_folder / stage), weights(tmp_path / "run" / stage)
        assert all(torch.equal(expected[name], got[name]) for name in expected)
    drop = ("crops_per_second",)
    rows = [
        [
            {k: v for k, v in json.loads(line).items() if k not in drop}
            for line in (run / "metrics.jsonl").read_text().splitlines()
        ]
        for run in (run_folder, tmp_path / "run")
    ]
    assert rows[0] == rows[1]


def test_a_finished_run_is_not_trained_again(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "_step", lambda *_: pytest.fail("trained again"))
    assert Trainer(TINY_RUN, run_folder, Silent()).run(resume=True) == run_folder / "stage3"


def test_refusals_name_the_remedy(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds a run already") as error:
        Trainer(TINY_RUN, run_folder, Silent()).run()
    assert "--resume" in error.value.hint
    with pytest.raises(UsageError, match=r"other settings than this command: seed: 0, now 1$"):
        Trainer(replace(TINY_RUN, seed=1), run_folder, Silent()).run(resume=True)
    everything = TrainConfig(
        preset="phone", prior=False, stages=(1,), seed=1, held_out=HeldOut(4, 96), shards=2, clip=2.0
    )
    with pytest.raises(UsageError, match=r"preset: tiny, now phone; prior: True, now False; .*; \d+ more$") as error:
        Trainer(everything, run_folder, Silent()).run(resume=True)
    assert "held_out.composites: 2, now 4" in differences(TINY_RUN, replace(TINY_RUN, held_out=HeldOut(4, 64)))
    assert len(error.value.message) < 600
    assert differences(TINY_RUN, TINY_RUN) == ""
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="not a training run"):
        Trainer(TINY_RUN, tmp_path, Silent()).run()


@pytest.mark.parametrize("stages", [(1,), (3,)])
def test_a_run_starts_from_the_model_that_it_is_given(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stages: tuple[int, ...]
) -> None:
    entered: list[dict[str, torch.Tensor]] = []
    step = Trainer._step

    def noted(self: Trainer, *args: Any) -> Any:
        entered.append({name: value.clone() for name, value in self.supernet.state_dict().items()})
        return step(self, *args)

    monkeypatch.setattr(Trainer, "_step", noted)
    Trainer(replace(TINY_RUN, stages=stages, init=str(run_folder / "stage2")), tmp_path / "run", Silent()).run()
    second = weights(run_folder / "stage2")
    calibrated = [name for name in second if name.endswith((".semantics.mean", ".semantics.deviation"))]
    assert all(
        torch.equal(second[name], entered[0][name]) for name in second if 3 not in stages or name not in calibrated
    )


def test_every_stage_after_the_first_starts_from_the_one_before_it(run_folder: Path, tmp_path: Path) -> None:
    """Even where a stage is left out: the model that the run starts from is for its first stage."""
    config = replace(TINY_RUN, stages=(1, 3), init=str(run_folder / "stage2"))
    trainer = Trainer(config, tmp_path / "run", Silent())
    trainer.run()
    begun = trainer._before(3)
    assert begun is not None
    first = weights(tmp_path / "run" / "stage1")
    assert all(torch.equal(value, first[name]) for name, value in begun.supernet.state_dict().items())
    assert not torch.equal(
        first["net.encoder.stem.0.weight"], weights(run_folder / "stage2")["net.encoder.stem.0.weight"]
    )


def test_stage_1_takes_from_another_preset_what_fits(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(TINY_RUN, preset="tiny-twin", stages=(1,), init=str(run_folder / "stage2"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "tiny-twin", replace(PRESETS["tiny"], name="tiny-twin", decoder_channels=(16, 12)))
        trainer = Trainer(config, tmp_path / "run", Reporter())
        fresh = {name: value.clone() for name, value in trainer.supernet.state_dict().items()}
        before = trainer._before(1)
        assert before is not None
        trainer._start_from(1, WholeNetwork(trainer.space, matting_loss))
    model, begun = weights(run_folder / "stage2"), trainer.supernet.state_dict()
    fitting = {name for name, value in begun.items() if name in model and value.shape == model[name].shape}
    assert "net.encoder.stem.0.weight" in fitting
    assert "net.decoder.level1.0.0.weight" not in fitting
    for name, value in begun.items():
        assert torch.equal(value, (model if name in fitting else fresh)[name]), name
    assert "of the weights are those of tiny+prior, by name and shape; the rest starts fresh" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stages", "other", "name"), [((1,), {"prior": False}, "tiny"), ((3,), {"preset": "phone"}, "phone+prior")]
)
def test_a_model_that_cannot_be_started_from_is_refused_and_leaves_no_run(
    run_folder: Path, tmp_path: Path, stages: tuple[int, ...], other: dict[str, Any], name: str
) -> None:
    out = tmp_path / "run"
    config = replace(TINY_RUN, stages=stages, init=str(run_folder / "stage2"))
    with pytest.raises(UsageError, match=re.escape(f"is a tiny+prior network, this run trains {name}")):
        Trainer(replace(config, **other), out, Silent()).run()
    with pytest.raises(InputError, match="no model found at nowhere"):
        Trainer(replace(config, init="nowhere"), out, Silent()).run()
    assert not (out / "config.yaml").exists()
    assert Trainer(config, out, Silent()).run() == out / f"stage{stages[-1]}"


def test_a_changed_state_is_refused(run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    shutil.copytree(run_folder, out)
    shutil.rmtree(out / "stage2")
    shutil.rmtree(out / "stage3")
    trainer = Trainer(TINY_RUN, out, Silent())
    trainer.states.save(2, 2, trainer._tensors(trainer._optimiser(TINY_RUN.stage2)), {})
    (state,) = (out / "last").glob("*.safetensors")
    data = bytearray(state.read_bytes())
    data[-1] ^= 1
    state.write_bytes(data)
    with pytest.raises(IntegrityError, match="is damaged"):
        Trainer(TINY_RUN, out, Silent()).run(resume=True)


def test_stage_one_trains_the_run_branches_only_and_stage_two_the_connect_layers(run_folder: Path) -> None:
    torch.manual_seed(TINY_RUN.seed)
    start = engine.Supernet(engine.preset("tiny", prior=True)).state_dict()
    first, second = weights(run_folder / "stage1"), weights(run_folder / "stage2")

    def moved(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], part: str) -> bool:
        return any(not torch.equal(a[name], b[name]) for name in a if part in name)

    assert moved(start, first, ".blocks.")
    assert not moved(start, first, ".connect.")
    assert moved(first, second, ".connect.")
    assert not moved(start, second, ".head.semantics")


def test_stage_three_trains_the_heads_and_the_embedding(run_folder: Path) -> None:
    second, third = weights(run_folder / "stage2"), weights(run_folder / "stage3")
    for part in ("embedding.rows", "planning.logits", ".head.semantics", ".head.logits", ".connect.", ".blocks."):
        assert any(not torch.equal(second[name], third[name]) for name in second if part in name), part


def test_alpha_free_training_reads_no_alpha(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(TINY_RUN, stages=(1,), alpha_free=True)
    blank = Trainer._batch

    def without(self: Trainer, *args: int) -> object:
        batch = blank(self, *args)
        return batch._replace(alpha=batch.alpha * torch.nan, foreground=batch.foreground * torch.nan)

    monkeypatch.setattr(Trainer, "_batch", without)
    Trainer(config, tmp_path / "run", Silent()).run()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(row["ddc"] > 0 and row["skipped"] == 0 for row in rows)
    with pytest.raises(UsageError, match="no labels for stage 3"):
        replace(TINY_RUN, alpha_free=True)


def test_batch_norm_statistics_move_in_stage_one_only(run_folder: Path) -> None:
    fresh = engine.Supernet(engine.preset("tiny", prior=True)).state_dict()
    first, second, third = (weights(run_folder / f"stage{i}") for i in (1, 2, 3))
    names = [name for name in fresh if "running" in name]
    assert all(not torch.equal(fresh[name], first[name]) for name in names)
    assert all(torch.equal(first[name], second[name]) for name in names)
    assert all(torch.equal(first[name], third[name]) for name in names)


def test_stage_rules() -> None:
    space = PathSpace(CostTable.of(engine.preset("tiny"), 32, 32))
    assert WholeNetwork(space, matting_loss).path(np.random.default_rng(0)) == NetworkPath.all_run(9)
    drawn = [RandomPaths(space, matting_loss).path(np.random.default_rng(i)) for i in range(400)]
    assert np.mean([path == NetworkPath.all_run(9) for path in drawn]) == pytest.approx(0.25, abs=0.06)
    others = [list(path) for path in drawn if path != NetworkPath.all_run(9)]
    assert np.all(np.abs(np.mean(others, axis=0) - 0.5) < 0.1)


def test_learning_rate_rises_and_falls_to_zero() -> None:
    plan = Stage(steps=100, learning_rate=1.0)
    values = [learning_rate(plan, step, 10) for step in range(101)]
    assert values[0] == pytest.approx(0.1)
    assert max(values) > 0.95
    assert values[100] == pytest.approx(0, abs=1e-9)


def test_every_stage_rounds_its_loss_as_configured(tmp_path: Path) -> None:
    config = replace(TINY_RUN, stage1=Stage(4, 1e-3, smooth=0.2), stage2=Stage(4, 1e-3, smooth=0.02))
    trainer = Trainer(config, tmp_path / "run", Silent())
    alpha, data = (
        torch.full((2, 1, 64, 64), 0.3),
        held_out_composites(HeldOut(2, 64), ("solid",), 0, torch.device("cpu"))[0],
    )
    for stage, smooth in ((1, 0.2), (2, 0.02)):
        objective = trainer._objective(stage)
        assert isinstance(objective, WholeNetwork)
        assert objective.loss(alpha, data)["loss"] == matting_loss(alpha, data, smooth=smooth)["loss"]


def test_features_that_grow_are_punished_by_the_weight_that_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "excess", lambda found: found[0].sum() * 0 + 3.0)
    config = replace(TINY_RUN, stages=(1,), magnitude_weight=0.25)
    Trainer(config, tmp_path / "run", Silent()).run()
    for row in map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()):
        assert row["magnitude"] == 3.0
        assert row["loss"] == pytest.approx(row["l1"] + row["composition"] + 0.1 * row["laplacian"] + 0.75, abs=1e-4)


def test_training_beats_its_start_on_what_it_sees(tmp_path: Path) -> None:
    """Overfit one small bank: the network must improve on the prior it starts from."""
    config = replace(
        TINY_RUN,
        stages=(1,),
        stage1=Stage(steps=40, learning_rate=3e-3),
        crops=(Crop(64, 4, 1.0),),
        validate_every=40,
    )
    held_out = HeldOut(composites=6, size=64)
    seen = held_out_composites(held_out, TINY_RUN.data.kinds, 0, torch.device("cpu"))
    trainer = Trainer(config, tmp_path / "run", Silent())
    trainer._batch = lambda stage, step, shard: seen[0]  # type: ignore[method-assign]
    trainer.run()
    network = checkpoint.load(tmp_path / "run" / "stage1").supernet
    trained, prior = sads(network, seen, NetworkPath.all_run(9)).mean(), prior_sads(seen).mean()
    assert trained < 0.8 * prior < half_sads(seen).mean()


def test_training_that_goes_astray_is_told_once_per_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """SADs per stage: a rise within one is told, the drop or rise from stage to stage is not."""
    scores = iter([2.0, 2.2, 2.4, 2.0, 9.0, 9.0, 8.0, 9.1, 9.3, float("nan")])
    monkeypatch.setattr(
        engine, "sads", lambda network, batches, path: torch.tensor([next(scores) if all(path) else 5.0])
    )
    trainer = Trainer(TINY_RUN, tmp_path / "run", Reporter())
    trainer.ema = trainer.supernet.state_dict()
    trainer.held_out = held_out_composites(HeldOut(2, 64), ("solid",), 1, torch.device("cpu"))
    for stage, steps in ((1, 4), (2, 6)):
        for step in range(steps):
            trainer._log(stage, step + 1, TINY_RUN.stage1, {"loss": 0.1}, 1.0, 0)
    told = [line for line in capsys.readouterr().err.splitlines() if "warning: stage" in line]
    assert [line.split(":")[1].strip() for line in told] == ["stage 1, step 3", "stage 2, step 5", "stage 2, step 6"]
    assert "2.400, and was 2.000 before" in told[0]
    assert "--set stage2.learning_rate" in told[1]


def test_a_change_is_that_of_the_means_with_the_error_of_their_ratio() -> None:
    baseline = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert change(0.9 * baseline, baseline) == (pytest.approx(-0.1), pytest.approx(0.0, abs=1e-6))
    rng = np.random.default_rng(0)
    base = rng.gamma(2.0, size=400)
    score = base * rng.normal(0.95, 0.1, size=400)
    at = rng.integers(400, size=(2000, 400))
    bootstrap = (score[at].sum(1) / base[at].sum(1)).std()
    assert change(torch.tensor(score), torch.tensor(base)) == (
        pytest.approx(score.sum() / base.sum() - 1),
        pytest.approx(bootstrap, rel=0.1),
    )
