"""The check in a browser: the Python side against a script that plays the browser, and once the real one."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path as FilePath
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from export_samples import CHOICES, MODEL, SIZE
from platformdirs import user_cache_dir

from pam_export import export_folder, manifest, webpage
from pam_mobile.errors import InputError, IntegrityError, SetupError
from pam_mobile.model.supernet import Supernet

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

FAKE = """#!{python}
import json, sys
from urllib.request import Request, urlopen
import numpy as np
import onnxruntime
address = sys.argv[-1].removesuffix("/page.html")
get = lambda url: urlopen(address + url).read()
post = lambda url, body: urlopen(Request(address + url, body, method="POST"))
assert b"ort.wasm.min.mjs" in get("/page.html")
for job in json.loads(get("/jobs.json")):
    planes = [np.frombuffer(get(job[name]), np.float32).reshape(1, -1, job["height"], job["width"]) for name in ("image", "trimap")]
    session = onnxruntime.InferenceSession(get(job["model"]))
    (alpha,) = session.run(None, dict(zip(("image", "trimap"), planes)))
    {act}
"""
ANSWER = 'post(job["alpha"], alpha.tobytes())'


@pytest.fixture(scope="session")
def folder(supernet: Supernet, tmp_path_factory: pytest.TempPathFactory) -> FilePath:
    out = tmp_path_factory.mktemp("web") / "folder"
    export_folder(supernet, CHOICES[1:2], targets=["onnx"], sizes=[SIZE], out=out, model=MODEL)
    return out


@pytest.fixture
def library(tmp_path: FilePath) -> FilePath:
    """Empty files of the right names: the script that plays the browser needs no more."""
    for name in webpage.LIBRARY:
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def browser(tmp_path: FilePath, act: str) -> str:
    path = tmp_path / "browser"
    path.write_text(FAKE.format(python=sys.executable, act=act))
    path.chmod(0o755)
    return str(path)


def test_equal_answers_pass(folder: FilePath, library: FilePath, tmp_path: FilePath) -> None:
    (check,) = webpage.check_in_browser(folder, browser(tmp_path, ANSWER), library)
    assert check.passed, check.message
    assert check.max_abs < 1e-4
    assert check.file.endswith(".onnx")


@pytest.mark.parametrize(
    ("act", "message"),
    [
        ('post(job["alpha"], (alpha + 3e-4).astype(np.float32).tobytes())', "max 3.0e-04 (gate 1e-04)"),
        ('post(job["alpha"], alpha.tobytes()[4:])', "gave 16380 bytes"),
        ('post(job["error"], b"Error: no such operator")', "Error: no such operator"),
        ('post("/error", b"TypeError: no wasm")', "TypeError: no wasm"),
    ],
)
def test_other_answers_do_not(act: str, message: str, folder: FilePath, library: FilePath, tmp_path: FilePath) -> None:
    (check,) = webpage.check_in_browser(folder, browser(tmp_path, act), library)
    assert not check.passed
    assert message in check.message


def test_a_browser_that_gives_up(folder: FilePath, library: FilePath, tmp_path: FilePath) -> None:
    with pytest.raises(SetupError, match="ended with exit code 9 before it answered"):
        webpage.check_in_browser(folder, browser(tmp_path, "sys.exit(9)"), library)


def test_only_what_the_page_needs_is_served() -> None:
    with webpage.serving({"/a.wasm": b"12"}) as (address, _):
        with urlopen(f"{address}/a.wasm") as response:
            assert (response.read(), response.headers["Content-Type"]) == (b"12", "application/wasm")
        for path in ("/b", "/../../etc/passwd", "/"):
            with pytest.raises(HTTPError, match="404") as caught:
                urlopen(address + path)
            caught.value.close()
    assert address.startswith("http://127.0.0.1:")


def test_a_damaged_folder_reaches_no_browser(folder: FilePath, tmp_path: FilePath) -> None:
    damaged = FilePath(shutil.copytree(folder, tmp_path / "copy"))
    (path,) = damaged.glob("*.onnx")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(IntegrityError, match="SHA-256 is not the recorded one"):
        webpage.jobs_of(damaged)


def test_a_folder_without_onnx(supernet: Supernet, tmp_path: FilePath) -> None:
    manifest.write(tmp_path, manifest.document(supernet.preset, MODEL, [], []))
    with pytest.raises(InputError, match=r"holds no \.onnx"):
        webpage.jobs_of(tmp_path)


def test_missing_programs_are_named(
    folder: FilePath, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: FilePath
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert webpage.main([str(folder)]) == 3
    assert "no browser: none of chromium" in capsys.readouterr().err
    monkeypatch.setenv("PAM_HOME", str(tmp_path / "home"))
    with pytest.raises(webpage.MissingToolError, match="npm is not installed"):
        webpage.fetch_library()


def test_in_a_real_browser(
    folder: FilePath, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Runs where Chromium is installed and `python -m pam_export.webpage` was used before: tests fetch nothing."""
    monkeypatch.setenv("PAM_HOME", user_cache_dir("pam_mobile"))
    if not webpage.library_folder().exists():
        pytest.skip("onnxruntime-web is not in the cache folder: run python -m pam_export.webpage once")
    try:
        webpage.find_browser()
    except webpage.MissingToolError as error:
        pytest.skip(error.message)
    code = webpage.main([str(folder)])
    captured = capsys.readouterr()
    assert (code, captured.err) == (0, "")
    assert captured.out.startswith("ok  pam-mini-v3_b097_64x64_fp32.onnx  max ")
