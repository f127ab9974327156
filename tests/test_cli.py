"""The command line as a user meets it: answers, --json, errors of one or two lines, exit codes, nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from strategies import TINY_RUN, picture_files

from pam_mobile import cli
from pam_mobile.commands import doctor
from pam_mobile.config import TrainConfig, to_yaml
from pam_mobile.errors import UsageError

VERBS = (
    "quickstart",
    "train",
    "eval",
    "predict",
    "export",
    "verify",
    "bench",
    "data check",
    "data pack",
    "info",
    "doctor",
)


@dataclass
class Answer:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def pam(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["pam-mobile", *map(str, arguments)])
        handler = signal.getsignal(signal.SIGTERM)
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        signal.signal(signal.SIGTERM, handler)
        captured = capsys.readouterr()
        return Answer(int(exit_.value.code or 0), captured.out, captured.err)

    return run


def test_help_is_instant_and_imports_no_torch() -> None:
    code = (
        "import sys, pam_mobile.cli as c; sys.argv = ['pam-mobile', '--help']\ntry: c.main()\nexcept SystemExit: pass\n"
    )
    code += "print([m for m in ('torch', 'cv2', 'numpy', 'coremltools', 'executorch') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"
    assert all(verb.split()[0] in run.stdout for verb in VERBS)


def test_every_verb_has_help_and_the_shared_options(pam: Any) -> None:
    for verb in VERBS:
        answer = pam(*verb.split(), "--help")
        assert answer.code == 0
        assert "--json" in answer.out
        assert "--verbose" in answer.out


def test_predict_writes_alpha_and_cutout(pam: Any, run_folder: Path, tmp_path: Path) -> None:
    image, trimap, _ = picture_files(tmp_path)
    alpha, cutout = tmp_path / "a.png", tmp_path / "c.png"
    answer = pam(
        "predict",
        image,
        "--trimap",
        trimap,
        "--model",
        run_folder,
        "--budget",
        "80%",
        "--alpha",
        alpha,
        "--cutout",
        cutout,
        "--json",
    )
    assert answer.code == 0
    document = answer.json
    assert document["macs"] <= 0.8 * pam("info", run_folder, "--size", 96, "--json").json["macs_largest"]
    assert cv2.imread(str(alpha), cv2.IMREAD_UNCHANGED).shape == (45, 70)
    assert cv2.imread(str(cutout), cv2.IMREAD_UNCHANGED).shape == (45, 70, 4)
    assert pam("predict", image, "--trimap", trimap, "--alpha", alpha, "--bits", 16).code == 0
    assert cv2.imread(str(alpha), cv2.IMREAD_UNCHANGED).dtype == np.uint16


def test_a_budget_above_the_largest_path_runs_the_largest_and_says_so(
    pam: Any, run_folder: Path, tmp_path: Path
) -> None:
    image, trimap, _ = picture_files(tmp_path)
    answer = pam(
        "predict", image, "--trimap", trimap, "--model", run_folder, "--budget", "99G", "--alpha", tmp_path / "a.png"
    )
    assert answer.code == 0
    assert "above the largest path" in answer.err


def test_eval_prints_a_row_per_budget(pam: Any, run_folder: Path, tmp_path: Path) -> None:
    picture_files(tmp_path)
    answer = pam("eval", "--model", run_folder, "--data", tmp_path, "--budgets", "80%,100%", "--json")
    assert [row["budget"] for row in answer.json["rows"]] == ["80%", "100%", ""]
    assert all(row["over_budget"] == 0 for row in answer.json["rows"])
    text = pam("eval", "--data", tmp_path, "--baselines", "half").out
    assert "SAD against prior" in text
    assert [line.split("|")[1].strip() for line in text.splitlines()[-2:]] == ["prior", "half"]


def test_eval_on_held_out_composites_puts_models_and_baselines_in_one_table(pam: Any, run_folder: Path) -> None:
    stage1 = run_folder / "stage1"
    options = ("--model", run_folder, "--model", stage1, "--budgets", "80%,100%", "--baselines", "half")
    held_out = ("--data", "held-out", "--count", 3, "--size", 64, "--kinds", "fur,hair", "--seed", 2)
    document = pam("eval", *held_out, *options, "--json").json
    settings = {"data": "held-out", "count": 3, "size": 64, "kinds": ["fur", "hair"], "seed": 2, "against": "prior"}
    assert settings.items() <= document.items()
    names = [(row["model"], row["budget"]) for row in document["rows"]]
    both = [(str(model), budget) for model in (run_folder, stage1) for budget in ("80%", "100%")]
    assert names == [*both, ("half", ""), ("prior", "")]
    assert [row["against"] is None for row in document["rows"]] == [False] * 5 + [True]
    assert all(row["images"] == 3 and row["sad_standard_error"] > 0 for row in document["rows"])
    own = pam("eval", *held_out, *options, "--against", stage1, "--json").json["rows"]
    assert [row["against"] is None for row in own] == [False, False, True, True, True]
    assert [row["sad"] for row in own] == [row["sad"] for row in document["rows"][:5]]


def test_eval_refuses_what_does_not_belong_together(pam: Any, tmp_path: Path) -> None:
    picture_files(tmp_path)
    assert (
        "--size, --kinds only works with --data held-out"
        in pam("eval", "--data", tmp_path, "--size", 64, "--kinds", "fur").err
    )
    assert "moss is no kind of matte" in pam("eval", "--data", "held-out", "--kinds", "moss").err
    assert "there is no row 'half'" in pam("eval", "--data", "held-out", "--against", "half").err
    assert "baseline 'zero' is not known" in pam("eval", "--data", tmp_path, "--baselines", "zero").err


def test_eval_says_how_to_install_what_a_baseline_needs(
    pam: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture_files(tmp_path)
    monkeypatch.setitem(sys.modules, "pymatting", None)
    answer = pam("eval", "--data", tmp_path, "--baselines", "half,knn")
    assert (answer.code, answer.out) == (4, "")
    assert answer.err.splitlines() == [
        "error: baseline knn needs PyMatting, which is not installed",
        "  pip install 'pam-mobile[baselines]'",
    ]


def test_info_of_presets_prior_and_model(pam: Any, run_folder: Path) -> None:
    assert {row["preset"] for row in pam("info", "--json").json["presets"]} >= {"full", "phone", "tiny", "tiny+prior"}
    assert "no parameters" in pam("info", "prior").out
    document = pam("info", run_folder, "--json").json
    assert document["parameters"] == pytest.approx(1.2e6, rel=0.02)
    assert all(row["macs"] <= document["macs_largest"] * int(row["budget"][:-1]) / 100 for row in document["budgets"])


def test_info_of_a_preset_says_what_its_units_cost_and_which_paths_fit(pam: Any) -> None:
    document = pam("info", "--preset", "phone-wide", "--json").json
    assert document["parameters"] == pytest.approx(3.37e6, rel=0.02)
    assert document["ratio"] == pytest.approx(document["macs_largest"] / document["macs_smallest"], abs=1e-4)
    assert document["ratio"] > 2.5
    deltas = [unit["macs_run"] - unit["macs_bypass"] for unit in document["unit_list"]]
    assert sum(deltas) == document["macs_largest"] - document["macs_smallest"]
    assert [unit["stride"] for unit in document["unit_list"] if unit["dense"]] == [2, 1]
    counts = [row["paths"] for row in document["feasible"]]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (1, document["paths"])
    text = pam("info", "--preset", "tiny", "--prior", "--size", 256).out
    assert "tiny+prior: 1.2" in text
    assert "at 256x256" in text
    assert pam("info", "prior", "--preset", "tiny").code == 2
    assert "--prior only works with --preset" in pam("info", "--prior").err
    assert "--size -1 is no size" in pam("info", "prior", "--size", -1).err
    assert "choose one of full, phone, phone-wide, tiny" in pam("info", "--preset", "huge").err


def test_eval_controls(pam: Any, run_folder: Path) -> None:
    rest = ("--data", "held-out", "--count", 2, "--size", 64, "--budgets", "90%", "--controls")
    command = ("eval", "--model", run_folder, *rest)
    document = pam(*command, "--json").json
    assert {row["control"] for row in document["rows"]} >= {"best fixed path", "network, planned", "oracle"}
    for option in (("--selection", "fixed"), ("--baselines", "half"), ("--against", "half")):
        answer = pam(*command, *option)
        assert answer.code == 2
        assert "do not go with it" in answer.err
    assert "device 'tpu' is not known" in pam(*command, "--device", "tpu").err
    assert "has not learned to choose paths" in pam("eval", "--model", run_folder / "stage2", *rest).err
    assert "the same network twice" in pam(*command, "--model", run_folder).err


def test_eval_controls_of_networks_of_several_seeds(pam: Any, run_folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(run_folder, tmp_path / "other")
    rest = ("--data", "held-out", "--count", 2, "--size", 64, "--budgets", "90%", "--controls")
    command = ("eval", "--model", run_folder, "--model", other, *rest)
    document = pam(*command, "--json").json
    assert list(document["networks"]) == [str(run_folder), str(other)]
    assert [row["against_fixed"]["standard_error"] for row in document["over_networks"]] == [0.0] * 6
    assert "mean over 2 networks" in pam(*command).out


def test_doctor(pam: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pam("doctor", "--json").json["versions"]["torch"]
    assert "torch" in pam("doctor").out
    for mode, said in (("torch", "PAM_KERNELS=torch asks for it"), ("fast", "PAM_KERNELS")):
        monkeypatch.setenv("PAM_KERNELS", mode)
        assert said in pam("doctor", "--json").json["operators"]


def test_doctor_knows_the_extras_of_the_package() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    wanted = {
        extra: tuple(re.split(r"[<>=;]", need)[0] for need in needs)
        for extra, needs in project["optional-dependencies"].items()
        if extra != "dev"
    }
    assert wanted == doctor.EXTRAS


def test_train_runs_resumes_and_refuses(pam: Any, tmp_path: Path) -> None:
    settings = tmp_path / "run.yaml"
    settings.write_text(to_yaml(TINY_RUN))
    command = (
        "train",
        "--preset",
        "tiny",
        "--stages",
        "1,2",
        "--out",
        tmp_path / "run",
        "--config",
        settings,
        "--steps",
        "2,1",
    )
    assert pam(*command, "--json").json["checkpoint"].endswith("stage2")
    again = pam(*command)
    assert again.code == 2
    assert "--resume" in again.err
    resumed = pam(*command, "--resume")
    assert resumed.code == 0
    assert "trained already" in resumed.err


def test_train_on_own_folders(pam: Any, tmp_path: Path) -> None:
    picture_files(tmp_path, 120, 150)
    settings = tmp_path / "run.yaml"
    settings.write_text(to_yaml(TINY_RUN))
    folders = ("--fg", tmp_path / "image", "--alpha", tmp_path / "alpha", "--bg", tmp_path / "image")
    answer = pam("train", "--out", tmp_path / "run", "--config", settings, "--steps", "1,1", *folders)
    assert answer.code == 0, answer.err
    document = json.loads((tmp_path / "run" / "stage2" / "checkpoint.json").read_text())
    assert "images of the user" in document["data_licence"]


def test_a_config_holds_where_no_option_is_given(pam: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[TrainConfig] = []

    def stop(self: object, config: TrainConfig, *_: object) -> None:
        seen.append(config)
        raise UsageError("seen", "stop here")

    monkeypatch.setattr("pam_mobile.train.engine.Trainer.__init__", stop)
    (tmp_path / "a.yaml").write_text("preset: phone\nprior: false\nseed: 5\nstages: [1, 2]\n")
    command = ("train", "--out", tmp_path / "run", "--config", tmp_path / "a.yaml")
    pam(*command)
    assert (seen[0].preset, seen[0].prior, seen[0].seed, seen[0].stages) == ("phone", False, 5, (1, 2))
    pam(*command, "--preset", "full", "--prior", "--seed", "0", "--stages", "1")
    assert (seen[1].preset, seen[1].prior, seen[1].seed, seen[1].stages) == ("full", True, 0, (1,))
    pam("train", "--out", tmp_path / "run")
    assert seen[2] == TrainConfig()


LONG = "n" * 300 + ".png"


def bad_inputs(tmp_path: Path, run: Path) -> dict[str, tuple[tuple[object, ...], int, str]]:
    """name: (arguments, exit code, what the message must name)."""
    image, trimap, _ = picture_files(tmp_path)
    broken, small, sure = tmp_path / "broken.png", tmp_path / "small.png", tmp_path / "sure.png"
    broken.write_bytes(image.read_bytes()[:-200])
    cv2.imwrite(str(small), np.full((9, 9), 128, np.uint8))
    cv2.imwrite(str(sure), np.zeros((45, 70), np.uint8))
    flipped, mixed = tmp_path / "flipped", tmp_path / "mixed"
    for copy in (flipped, mixed):
        shutil.copytree(run / "stage2", copy)
    weights = flipped / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 4
    weights.write_bytes(data)
    out = ("--alpha", tmp_path / "out.png", "--cutout", tmp_path / "cut.png")
    good = ("--trimap", trimap, *out)
    return {
        "truncated image": (("predict", broken, *good), 3, "broken.png"),
        "missing image": (("predict", tmp_path / "none.png", *good), 3, "none.png"),
        "trimap of another size": (("predict", image, "--trimap", small, *out), 3, "small.png"),
        "trimap without unknown": (("predict", image, "--trimap", sure, *out), 3, "sure.png"),
        "budget too small": (("predict", image, *good, "--model", run, "--budget", "10%"), 6, "smallest"),
        "budget nonsense": (("predict", image, *good, "--model", run, "--budget", "lots"), 2, "lots"),
        "no such model": (("predict", image, *good, "--model", tmp_path / "no"), 3, "no model found"),
        "flipped bit": (("predict", image, *good, "--model", flipped), 5, "model.safetensors"),
        "budget empty": (("predict", image, *good, "--model", run, "--budget", ""), 2, "budget ''"),
        "alpha over the photo": (("predict", image, "--trimap", trimap, "--alpha", image), 2, "is the photo itself"),
        "cut-out over the trimap": (
            (
                "predict",
                image,
                "--trimap",
                trimap,
                *out[:2],
                "--cutout",
                tmp_path / "alpha" / ".." / "trimap" / "x.png",
            ),
            2,
            "is --trimap itself",
        ),
        "two outputs in one": (("predict", image, *good[:4], "--cutout", out[1]), 2, "is --alpha itself"),
        "name too long": (("predict", tmp_path / LONG, *good), 3, "File name too long"),
        "alpha's name too long": (("predict", image, *good[:2], "--alpha", tmp_path / LONG), 4, "File name too long"),
        "data of a name too long": (("eval", "--data", tmp_path / LONG), 3, "File name too long"),
        "folder of a name too long": (("data", "check", tmp_path / LONG), 3, "File name too long"),
        "run of a name too long": (("train", "--out", tmp_path / LONG), 3, "File name too long"),
        "wrong suffix": (("predict", image, "--trimap", trimap, "--alpha", tmp_path / "out.jpg"), 2, "out.jpg"),
        "wrong bits": (("predict", image, *good, "--bits", "12"), 2, "12"),
        "wrong device": (("predict", image, *good, "--device", "abacus"), 2, "abacus"),
        "unknown option": (("predict", image, "--nonsense"), 2, "--nonsense"),
        "unknown preset": (("train", "--preset", "huge", "--out", tmp_path / "r"), 2, "huge"),
        "steps for no stage": (
            ("train", "--stages", "1", "--steps", "3,4", "--out", tmp_path / "r"),
            2,
            "2 numbers for 1 stages",
        ),
        "stage three": (("train", "--stages", "3", "--out", tmp_path / "r"), 2, "knows many paths"),
        "setting misspelt": (("train", "--out", tmp_path / "r", "--set", "stage1.stepz=3"), 2, "stepz"),
        "no data set": (("train", "--out", tmp_path / "r", "--data", tmp_path / "none"), 3, "none"),
        "no data": (("eval", "--data", tmp_path / "none"), 3, "none"),
        "no target": (("export", "--model", run, "--to", "fridge", "--out", tmp_path / "e"), 2, "fridge"),
        "odd size": (("export", "--model", run, "--sizes", "100", "--out", tmp_path / "e"), 2, "100"),
        "export too small": (("export", "--model", run, "--budgets", "5%", "--out", tmp_path / "e"), 6, "smallest"),
        "nothing to verify": (("verify", tmp_path / "none"), 3, "none"),
    }


def test_bad_input_is_answered_in_two_lines_with_its_code_and_leaves_nothing(
    pam: Any, run_folder: Path, tmp_path: Path
) -> None:
    cases = bad_inputs(tmp_path, run_folder)
    before = _contents(tmp_path)
    for name, (arguments, code, text) in cases.items():
        answer = pam(*arguments)
        assert answer.code == code, (name, answer)
        errors = [line for line in answer.err.splitlines() if not re.search(r"(\.\.\.|: done in [\d.]+ s)$", line)]
        assert errors[0].startswith("error: "), (name, answer.err)
        assert len(errors) <= 2, (name, answer.err)
        assert text in answer.err, (name, answer.err)
        assert "Traceback" not in answer.err + answer.out
        assert answer.out == ""
        assert _contents(tmp_path) == before, name


def _contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_without_arguments_the_help_is_all_there_is(pam: Any) -> None:
    for group in ((), ("data",)):
        answer = pam(*group)
        assert (answer.code, answer.err) == (2, "")
        assert "Commands" in answer.out


def test_names_that_are_no_text_work_and_are_shown_escaped(pam: Any, tmp_path: Path) -> None:
    image, trimap, _ = picture_files(tmp_path)
    photo, alpha = (tmp_path / os.fsdecode(name) for name in (b"photo\xff.png", b"alpha\xff.png"))
    image.rename(photo)
    answer = pam("predict", photo, "--trimap", trimap, "--model", "prior", "--alpha", alpha)
    assert answer.code == 0, answer.err
    assert alpha.is_file()
    assert "alpha\\udcff.png: alpha by prior" in answer.out
    answer = pam("predict", tmp_path / os.fsdecode(b"no\xff.png"), "--trimap", trimap, "--alpha", alpha)
    assert (answer.code, answer.err.splitlines()[0]) == (3, f"error: {tmp_path}/no\\udcff.png does not exist")


def test_a_full_disk_behind_stdout_is_an_error() -> None:
    for arguments in (("info",), ("--help",)):
        with open("/dev/full", "w") as full:
            run = _python_m(*arguments, stdout=full)
        assert run.stderr.splitlines() == [
            "error: cannot write the answer: No space left on device",
            "  free space, or send it elsewhere",
        ]
        assert run.returncode == 4


def test_a_closed_pipe_is_silent() -> None:
    for arguments in (("info",), ("--help",)):
        reader, writer = os.pipe()
        os.close(reader)
        run = _python_m(*arguments, stdout=writer)
        os.close(writer)
        assert run.stderr == ""
        assert run.returncode == (128 + signal.SIGPIPE if arguments == ("info",) else 1), "typer's own answer is 1"


def _python_m(*arguments: str, stdout: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pam_mobile", *arguments]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True)


def test_a_path_that_the_system_refuses_is_no_internal_error(pam: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, code in ((errno.EACCES, 3), (errno.ENOSPC, 4)):
        error = OSError(number, os.strerror(number), "/some/place")
        monkeypatch.setattr("pam_mobile.commands.doctor._torch", lambda error=error: _raise(error))
        answer = pam("doctor")
        assert answer.code == code
        assert answer.err.startswith(f"error: /some/place: {os.strerror(number)}\n")
    monkeypatch.setattr("pam_mobile.commands.doctor._torch", lambda: _raise(OSError("no file is to blame")))
    assert pam("doctor").code == 1


def test_too_little_memory_is_no_internal_error(pam: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for ask in (lambda: np.empty(2**60, np.uint8), lambda: torch.empty(2**60, dtype=torch.uint8)):
        monkeypatch.setattr("pam_mobile.commands.doctor._torch", ask)
        answer = pam("doctor")
        assert answer.code == 4
        assert answer.err.splitlines() == [
            "error: there is not enough memory for this",
            "  take smaller images or sizes, or a machine with more",
        ]


def _raise(error: Exception) -> None:
    raise error


def test_errors_as_json(pam: Any, tmp_path: Path) -> None:
    answer = pam("predict", tmp_path / "no.png", "--trimap", "t.png", "--alpha", "a.png", "--json")
    assert answer.json.keys() == {"code", "message", "hint"}
    assert answer.json["code"] == answer.code == 3
    assert pam("predict", "--json").json["code"] == 2


def test_an_internal_error_is_not_a_traceback(pam: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pam_mobile.commands.doctor._torch", lambda: 1 / 0)
    quiet, loud = pam("doctor"), pam("doctor", "-v")
    assert quiet.code == loud.code == 1
    assert "Traceback" not in quiet.err
    assert "ZeroDivisionError" in quiet.err
    assert "Traceback" in loud.err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_training_with_its_code_and_the_run_resumes(tmp_path: Path, number: int, code: int) -> None:
    settings = tmp_path / "run.yaml"
    settings.write_text(to_yaml(TINY_RUN))
    command = [sys.executable, "-m", "pam_mobile", "train", "--out", str(tmp_path / "run"), "--config", str(settings)]
    long = [*command, "--steps", "100000,1", "--set", "save_every=5"]
    # A shell ignores Ctrl-C in what it starts in the background, and children inherit that: undo it, wherever the tests run.
    process = subprocess.Popen(
        long,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 90
    while not list((tmp_path / "run" / "last").glob("state-*.json")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "Traceback" not in err
    assert out == ""
    states = {path.stem: path for path in (tmp_path / "run" / "last").iterdir()}
    assert max(states) == f"state-1-{int(err.split('after step ')[1].split()[0]):08d}"
    assert err.splitlines()[-1] == f"  continue: pam-mobile {' '.join(long[3:])} --resume"


def test_how_a_run_on_several_machines_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from pam_mobile.commands.train import _continuation

    monkeypatch.setattr("sys.argv", ["pam-mobile", "train", "--out", "a b"])
    assert _continuation() == "continue: pam-mobile train --out 'a b' --resume"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert _continuation() == "continue: torchrun --nproc-per-node 2 -m pam_mobile train --out 'a b' --resume"
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert "on every machine again, with --resume" in _continuation()


def test_an_interrupted_export_says_how_it_goes_on(pam: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pam_mobile.commands.export.export_checkpoint", interrupted)
    answer = pam("export", "--model", "tiny-v2", "--out", tmp_path / "a b")
    assert answer.code == 130
    assert answer.err.splitlines() == [
        "error: interrupted; nothing was published, what is complete is kept",
        f"  continue: pam-mobile export --model tiny-v2 --out '{tmp_path}/a b'",
    ]
