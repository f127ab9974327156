"""Settings are checked by name and kind, and survive YAML."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, asdict
from pathlib import Path as FilePath
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pam_mobile.config import Crop, Data, Stage, TrainConfig, from_dict, load, override, to_yaml
from pam_mobile.errors import InputError, PamError, UsageError

positive = st.floats(1e-9, 1e3)
decays = st.floats(0, 0.9999)
configs = st.builds(
    TrainConfig,
    preset=st.text(st.characters(codec="utf-8", categories=("L", "N")), min_size=1, max_size=8),
    prior=st.booleans(),
    stages=st.sampled_from([(1,), (2,), (1, 2)]),
    stage1=st.builds(Stage, steps=st.integers(1, 10**7), learning_rate=positive, smooth=positive),
    crops=st.lists(
        st.builds(Crop, st.integers(1, 16).map(lambda n: 32 * n), st.integers(1, 64), positive), min_size=1, max_size=3
    ).map(tuple),
    data=st.builds(
        Data, patches=st.integers(1, 10**6), foreground_folder=st.sampled_from(["", "a b/c: d", "Ä#", "no", "1"])
    ),
    seed=st.integers(0, 2**63 - 1),
    precision=st.sampled_from(["auto", "fp32", "bf16"]),
    betas=st.tuples(decays, decays),
)


@given(configs)
def test_yaml_round_trip(config: TrainConfig) -> None:
    assert from_dict(yaml.safe_load(to_yaml(config)), "x") == config


def test_yaml_file_round_trip(tmp_path: FilePath) -> None:
    config = TrainConfig(preset="phone", data=Data(foreground_folder="Vordergründe"))
    (tmp_path / "a.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert load(tmp_path / "a.yaml") == config


def test_what_a_file_leaves_out_is_the_default(tmp_path: FilePath) -> None:
    (tmp_path / "a.yaml").write_text("seed: 3\ndata: {patches: 5}\n")
    assert load(tmp_path / "a.yaml") == TrainConfig(seed=3, data=Data(patches=5))


def test_configs_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        TrainConfig().seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"sead": 1}, "extra fields found (sead)"),
        ({"data": {"patchs": 3}}, "extra fields found (patchs) @ $.data"),
        ({"seed": "x"}, "expected int @ $.seed"),
        ({"seed": 1.5}, "expected int @ $.seed"),
        ({"seed": True}, "expected int @ $.seed"),
        ({"seed": None}, "expected int @ $.seed"),
        ({"prior": "off"}, "expected bool @ $.prior"),
        ({"prior": 1}, "expected bool @ $.prior"),
        ({"preset": 3}, "expected str @ $.preset"),
        ({"clip": "much"}, "@ $.clip"),
        ({"clip": [1.0]}, "expected float @ $.clip"),
        ({"stages": "12"}, "@ $.stages"),
        ({"stages": 1}, "@ $.stages"),
        ({"betas": [0.5]}, "@ $.betas"),
        ({"stage1": 3}, "@ $.stage1"),
        ({"stage1": {"steps": 5}}, "required field missing @ $.stage1.learning_rate"),
        ({"crops": [[64, 2, 1.0]]}, "@ $.crops[0]"),
        ({"crops": [{"size": 64, "batch": "two", "share": 1.0}]}, "expected int @ $.crops[0].batch"),
    ],
)
def test_a_fault_is_named_with_its_place(values: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        from_dict(values, "my.yaml")
    assert caught.value.message.startswith("my.yaml: ")
    assert said in caught.value.message


def test_all_faults_are_named_at_once() -> None:
    with pytest.raises(InputError) as caught:
        from_dict({"sead": 1, "clip": "much", "data": {"patchs": 1}}, "my.yaml")
    assert all(word in caught.value.message for word in ("sead", "clip", "patchs"))


def test_whole_numbers_and_text_serve_as_fractions() -> None:
    config = from_dict(yaml.safe_load("clip: 2\nweight_decay: 1e-3\nbetas: [0, 1e-1]"), "x")
    assert (config.clip, config.weight_decay, config.betas) == (2.0, 0.001, (0.0, 0.1))
    assert type(config.clip) is float


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("stage2.steps=0", "a stage's steps=0"),
        ("stage1.learning_rate=-1e-3", "a stage's learning_rate=-0.001"),
        ("stage2.smooth=0", "a stage's smooth=0.0"),
        ("stage1.learning_rate=.nan", "a stage's learning_rate=nan"),
        ("crops=[]", "crops is empty"),
        ("crops=[{size: 40, batch: 2, share: 1}]", "a crop's size=40"),
        ("crops=[{size: 0, batch: 2, share: 1}]", "a crop's size=0"),
        ("crops=[{size: 32, batch: 0, share: 1}]", "a crop's batch=0"),
        ("crops=[{size: 32, batch: 2, share: 0}]", "a crop's share=0"),
        ("held_out.size=100", "held_out.size=100"),
        ("held_out.composites=0", "held_out.composites=0"),
        ("data.size=63", "data.size=63"),
        ("data.patches=0", "data.patches=0"),
        ("data.backgrounds=0", "data.backgrounds=0"),
        ("data.kinds=hair,wool", "data.kinds=hair,wool"),
        ("data.style=collage", "data.style=collage"),
        ("data.procedural=1", "data.procedural=1"),
        ("paths.candidates=0", "paths.candidates=0"),
        ("paths.prior_images=0", "paths.prior_images=0"),
        ("paths.prior_paths=0", "paths.prior_paths=0"),
        ("paths.temperature=0", "paths.temperature=0"),
        ("shards=0", "shards=0"),
        ("seed=-1", "seed=-1"),
        ("validate_every=0", "validate_every=0"),
        ("save_every=0", "save_every=0"),
        ("weight_decay=-1e-3", "weight_decay=-0.001"),
        ("ema=1", "ema=1.0"),
        ("betas=0.9,1.5", "betas=1.5"),
        ("clip=0", "clip=0.0"),
    ],
)
def test_a_value_that_no_run_could_use_is_refused_before_there_is_one(assignment: str, said: str) -> None:
    """Wherever it is nested, in its own words and with what to use instead."""
    with pytest.raises(UsageError) as caught:
        override(TrainConfig(), [assignment])
    assert caught.value.message.startswith(f"--set: {said}")
    assert caught.value.hint.startswith(("use ", "name at least"))


def test_two_foregrounds_can_only_be_combined_where_there_are_two() -> None:
    for style in ("naive", "rcf", "triplet", "quadruplet"):
        with pytest.raises(UsageError, match=r"data\.patches=1"):
            override(TrainConfig(), ["data.patches=1", f"data.style={style}"])
        override(TrainConfig(), ["data.patches=2", f"data.style={style}"])
    override(TrainConfig(), ["data.patches=1", "data.style=single"])


@pytest.mark.parametrize(
    ("assignment", "name", "value"),
    [("stages=1,2", "stages", (1, 2)), ("stages=2", "stages", (2,)), ("betas=0.5, 0.9", "betas", (0.5, 0.9))],
)
def test_a_list_may_do_without_brackets(assignment: str, name: str, value: object) -> None:
    assert getattr(override(TrainConfig(), [assignment]), name) == value


def test_a_text_is_not_the_list_of_its_letters() -> None:
    assert override(TrainConfig(), ["data.sets=/data/a"]).data.sets == ("/data/a",)
    assert override(TrainConfig(), ["data.sets=/data/a,AM-2k:/b"]).data.sets == ("/data/a", "AM-2k:/b")
    for value in ("/data/a", [1], 3):
        with pytest.raises(InputError, match=r"@ \$\.data\.sets"):
            from_dict({"data": {"sets": value}}, "my.yaml")


@pytest.mark.parametrize("stages", [(4,), (1, 4), (), (2, 1), (1, 1), (0,)])
def test_stages_that_cannot_run_are_refused(stages: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="cannot be run") as caught:
        TrainConfig(stages=stages)
    assert "3 (path learning)" in caught.value.hint


@pytest.mark.parametrize("stages", [(3,), (1, 3)])
def test_path_learning_needs_a_network_of_stage_two_wherever_it_is_asked_for(
    stages: tuple[int, ...], tmp_path: FilePath
) -> None:
    (tmp_path / "a.yaml").write_text(f"stages: {list(stages)}\n")
    asks = (
        lambda: TrainConfig(stages=stages),
        lambda: load(tmp_path / "a.yaml"),
        lambda: override(TrainConfig(), [f"stages={list(stages)}"]),
    )
    for ask in asks:
        with pytest.raises(PamError, match="needs a network that knows many paths") as caught:
            ask()
        assert "--init" in caught.value.hint
    assert TrainConfig(stages=stages, init="runs/mine").stages == stages


@pytest.mark.parametrize("precision", ["fp16", "BF16", "", "float32"])
def test_an_unknown_precision_is_refused_with_the_known_ones(precision: str) -> None:
    for ask in (lambda: TrainConfig(precision=precision), lambda: from_dict({"precision": precision}, "x")):
        with pytest.raises(PamError, match="precision=") as caught:
            ask()
        assert "auto, fp32 or bf16" in caught.value.hint


# --set a.b=value


def test_set_replaces_one_value_each_and_keeps_the_others() -> None:
    config = override(
        TrainConfig(seed=5), ["stage1.steps=7", "data.foreground_folder=a=b", "prior=false", "betas=[0.5, 1e-1]"]
    )
    want = asdict(TrainConfig(seed=5))
    want["stage1"]["steps"] = 7
    want["data"]["foreground_folder"] = "a=b"
    want.update(prior=False, betas=(0.5, 0.1))
    assert asdict(config) == want


def test_set_of_nothing_changes_nothing() -> None:
    assert override(TrainConfig(seed=5), []) == TrainConfig(seed=5)


@pytest.mark.parametrize(
    ("assignment", "meant"),
    [
        ("stage1.step=3", "stage1.steps"),
        ("sead=1", "seed"),
        ("data.patchs=1", "data.patches"),
        ("presicion=fp32", "precision"),
    ],
)
def test_a_misspelt_setting_is_guessed(assignment: str, meant: str) -> None:
    with pytest.raises(UsageError, match="is not a setting") as caught:
        override(TrainConfig(), [assignment])
    assert caught.value.hint == f"did you mean {meant}?"


@pytest.mark.parametrize(
    "assignment", ["zzz=1", "seed.a=1", "seed.a.b=1", "data.zzz.patches=1", "=1", ".=1", "stage1.=2"]
)
def test_what_is_not_a_setting_is_refused(assignment: str) -> None:
    with pytest.raises(UsageError, match="is not a setting") as caught:
        override(TrainConfig(), [assignment])
    assert caught.value.hint


def test_a_setting_far_from_all_others_gets_the_list_of_all() -> None:
    with pytest.raises(UsageError) as caught:
        override(TrainConfig(), ["zzz=1"])
    assert "seed" in caught.value.hint
    assert "stage2.learning_rate" in caught.value.hint


@pytest.mark.parametrize(
    ("assignment", "said"),
    [("seed", "a value is missing"), ("seed=[", "not YAML"), ("seed=a", "$.seed"), ("seed=", "$.seed")],
)
def test_a_value_that_does_not_fit_is_refused_in_words(assignment: str, said: str) -> None:
    with pytest.raises(PamError) as caught:
        override(TrainConfig(), [assignment])
    assert said in caught.value.message


# Files that are no configuration


@pytest.mark.parametrize("data", [b"", b"3", b"- a", b"seed: [", b"\xff\xfe", b"a: !!python/object:os.system x"])
def test_a_file_that_is_no_table_of_settings_is_an_input_error(tmp_path: FilePath, data: bytes) -> None:
    (tmp_path / "a.yaml").write_bytes(data)
    with pytest.raises(InputError, match=r"a\.yaml") as caught:
        load(tmp_path / "a.yaml")
    assert "\n" not in caught.value.message


def test_the_message_names_the_line_that_is_no_yaml(tmp_path: FilePath) -> None:
    (tmp_path / "a.yaml").write_text("seed: 3\nstages: [1,\npreset: {")
    with pytest.raises(InputError, match=r"cannot read .*a\.yaml: line 3: expected"):
        load(tmp_path / "a.yaml")


def test_a_missing_file_is_an_input_error(tmp_path: FilePath) -> None:
    with pytest.raises(InputError, match="cannot read"):
        load(tmp_path / "a.yaml")
