"""Every .onnx of an export folder in a browser, against its golden alpha: python -m pam_export.webpage DIR

A page from this machine runs onnxruntime-web (wasm, one thread) in headless Chromium and posts back what it computed. The
browser reaches no other host. onnxruntime-web comes once from npm, as package-lock.json says, into the cache folder.
Exit codes: 0 all equal, 3 npm or Chromium is missing, 5 a difference.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path as FilePath
from threading import Thread
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from pam_mobile.data.bank import cache_folder
from pam_mobile.errors import InputError, PamError, SetupError

from . import manifest
from .parity import Gate, compare
from .quiet import last_lines
from .verify import Check, check_files

WEB = FilePath(__file__).parent / "web"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
LIBRARY = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
TYPES = {".html": "text/html", ".json": "application/json", ".mjs": "text/javascript", ".wasm": "application/wasm"}
SECONDS_PER_JOB = 120


class MissingToolError(SetupError):
    """A program that the check needs is not installed."""

    code = 3


@dataclass(frozen=True)
class Job:
    """One .onnx and its golden tensors.  image: (1, 3, H, W) uint8; trimap: (1, 1, H, W) uint8; alpha: (1, 1, H, W)."""

    model: FilePath
    image: Tensor
    trimap: Tensor
    alpha: Tensor
    gate: Gate


def check_in_browser(folder: FilePath, browser: str, library: FilePath) -> list[Check]:
    """Run every .onnx of an export folder in a browser; one Check each.

    library: folder of onnxruntime-web. Raises as `verify_folder` does, InputError if there is no .onnx, SetupError if the
    browser does not run the page.
    """
    jobs = jobs_of(folder)
    with serving(site(jobs, library)) as (address, posts), _browsing(browser, f"{address}/page.html") as process:
        return [_judge(job, *_answer(number, posts, process)) for number, job in enumerate(jobs)]


def jobs_of(folder: FilePath) -> list[Job]:
    """The .onnx files of an export folder, whose hashes are checked first."""
    content = manifest.read(folder)
    check_files(folder, content)
    jobs = []
    for artifact in content["artifacts"]:
        if artifact["target"] == "onnx":
            (method,) = artifact["methods"]
            golden = load_file(folder / method["golden"]["file"])
            gate = Gate(**method["golden"]["tolerance"])
            alpha = golden[method["golden"]["alpha"]]
            jobs.append(Job(folder / artifact["name"], golden["image"], golden["trimap"], alpha, gate))
    if not jobs:
        raise InputError(f"{folder} holds no .onnx", "export with --to onnx")
    return jobs


def site(jobs: Sequence[Job], library: FilePath) -> dict[str, bytes]:
    """Everything that the page asks for, by path."""
    files = {"/page.html": (WEB / "page.html").read_bytes()}
    files |= {f"/ort/{name}": (library / name).read_bytes() for name in LIBRARY}
    described = []
    for number, job in enumerate(jobs):
        urls = {name: f"/{name}/{number}" for name in ("model", "image", "trimap", "alpha", "error")}
        height, width = job.image.shape[-2:]
        described.append({**urls, "height": height, "width": width})
        files[urls["model"]] = job.model.read_bytes()
        files[urls["image"]] = (job.image / 255).numpy().tobytes()
        files[urls["trimap"]] = (job.trimap / 255).numpy().tobytes()
    return files | {"/jobs.json": json.dumps(described).encode()}


Posts = queue.Queue[tuple[str, bytes]]


@contextmanager
def serving(files: Mapping[str, bytes]) -> Iterator[tuple[str, Posts]]:
    """Serve files on this machine only; yields the address and the queue of what is posted, as path and body."""
    posts: Posts = queue.Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.path in files
            self._respond(200 if known else 404, files.get(self.path, b""))

        def do_POST(self) -> None:
            posts.put((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self._respond(200, b"")

        def _respond(self, code: int, body: bytes) -> None:
            self.send_response(code)
            self.send_header("Content-Type", TYPES.get(FilePath(self.path).suffix, "application/octet-stream"))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", posts
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def _browsing(browser: str, address: str) -> Iterator[subprocess.Popen[bytes]]:
    """A headless browser at an address, with a fresh profile; yields its process, whose output is a file."""
    flags = "--headless --disable-gpu --no-first-run --disable-background-networking --disable-component-update"
    flags += " --disable-sync --disable-quic --disable-dev-shm-usage" + (" --no-sandbox" if os.geteuid() == 0 else "")
    with tempfile.TemporaryDirectory(prefix="pam-browser-", ignore_cleanup_errors=True) as profile:
        command = [browser, *flags.split(), f"--user-data-dir={profile}"]
        command += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", address]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _answer(number: int, posts: Posts, process: subprocess.Popen[bytes]) -> tuple[bytes, str]:
    """The alpha of a job as bytes, or what went wrong. Raises SetupError if the browser gives up."""
    end = time.monotonic() + SECONDS_PER_JOB
    while time.monotonic() < end:
        try:
            path, body = posts.get(timeout=0.2)
        except queue.Empty:
            if process.poll() is None:
                continue
            raise SetupError(
                f"the browser ended with exit code {process.returncode} before it answered",
                "start it by hand to see why",
            ) from None
        if path == f"/alpha/{number}":
            return body, ""
        return b"", body.decode(errors="replace")
    raise SetupError(f"the browser did not answer within {SECONDS_PER_JOB} s", "try again on a less busy machine")


def _judge(job: Job, alpha: bytes, error: str) -> Check:
    if error or len(alpha) != 4 * job.alpha.numel():
        return Check(job.model.name, False, float("inf"), error or f"gave {len(alpha)} bytes")
    got = torch.frombuffer(bytearray(alpha), dtype=torch.float32).reshape(job.alpha.shape)
    parity = compare([job.alpha], [got], job.gate)
    return Check(job.model.name, parity.passed, parity.max_abs, str(parity))


def find_browser() -> str:
    """A Chromium on the PATH. Raises MissingToolError."""
    for name in BROWSERS:
        if found := shutil.which(name):
            return found
    raise MissingToolError(f"no browser: none of {', '.join(BROWSERS)} is installed", "apt-get install chromium")


def library_folder() -> FilePath:
    """Where onnxruntime-web is kept; another folder for another package-lock.json."""
    lock = hashlib.sha256((WEB / "package-lock.json").read_bytes()).hexdigest()[:12]
    return cache_folder() / f"web-{lock}" / "node_modules" / "onnxruntime-web" / "dist"


def fetch_library() -> FilePath:
    """`library_folder`, filled by npm if it is not there. Raises MissingToolError without npm, SetupError if npm fails."""
    library = library_folder()
    if library.exists():
        return library
    npm = shutil.which("npm")
    if npm is None:
        raise MissingToolError("npm is not installed", "apt-get install npm")
    root = library.parents[2]
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as name:
        folder = FilePath(name) / "web"
        folder.mkdir()
        for file in ("package.json", "package-lock.json"):
            shutil.copy(WEB / file, folder)
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SetupError("npm could not fetch onnxruntime-web", last_lines(done.stderr))
        folder.rename(root)
    return library


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m pam_export.webpage", description="Run every .onnx in a browser.")
    parser.add_argument("folder", type=FilePath, help="an export folder")
    folder = parser.parse_args(arguments).folder
    try:
        checks = check_in_browser(folder, find_browser(), fetch_library())
    except PamError as error:
        sys.stderr.write(f"error: {error.message}\n{error.hint}\n")
        return error.code
    for check in checks:
        sys.stdout.write(f"{'ok' if check.passed else 'FAILED'}  {check.file}  {check.message}\n")
    return 0 if all(check.passed for check in checks) else 5


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
