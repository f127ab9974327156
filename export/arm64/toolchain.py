"""What it takes to run a .pte on an emulated AArch64 processor, set up once in a cache folder.

From the distribution's packages: QEMU's user emulation and a cross compiler with its C and C++ libraries. From the package index: the
AArch64 builds of ExecuTorch and PyTorch, hashes checked, of which only the runtime's libraries and headers are unpacked.
From this folder: the runner, the counter and the stubs. Each step makes a folder whose name holds the hash of what goes into it;
it appears whole or not at all, so an interrupted set-up goes on where it was.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path as FilePath

import stubs
from cpu import Cpu, write_files

from pam_mobile.errors import SetupError

HERE = FilePath(__file__).resolve().parent
WHEELS = HERE / "wheels.txt"
CROSS = "aarch64-linux-gnu"
SYSTEM = FilePath(f"/usr/{CROSS}/lib")
EMULATOR, COMPILER, HOST_COMPILER = "qemu-aarch64", f"{CROSS}-g++", "gcc"
PACKAGES = {EMULATOR: "qemu-user", COMPILER: f"g++-{CROSS}", HOST_COMPILER: "gcc", "nm": "binutils"}
"""Debian's package of each program."""
PLATFORM, PYTHON = "manylinux_2_28_aarch64", "3.11"
HEADERS = re.compile(r"executorch/include/.+")
LIBRARIES = re.compile(
    r"executorch/extension/pybindings/_portable_lib[^/]*\.so|torch/lib/lib(torch_cpu|c10|arm_compute|arm_compute_graph|gomp|nvpl_)[^/]*"
)
NOT_NEEDED = re.compile(r"libc10_cuda\.so")
CONSUMERS = ("_portable_lib*.so", "libtorch_cpu.so", "libc10.so")
SYSTEM_LIBRARIES = ("libc.so.6", "libm.so.6", "libstdc++.so.6", "libgcc_s.so.1", "ld-linux-aarch64.so.1")


@dataclass(frozen=True)
class Toolchain:
    """A set-up that is complete. libraries: those of the wheels; build: runner, counter and stubs."""

    libraries: FilePath
    build: FilePath

    def command(self, cpu: Cpu, root: FilePath, counts: FilePath, arguments: Iterable[object]) -> list[str]:
        """The command line that runs the runner under emulation; root: made by `prepare` for the same processor."""
        search = os.pathsep.join(str(path) for path in (self.libraries, self.build, SYSTEM))
        plugin = f"{self.build / 'counter.so'},out={counts}"
        emulator = [EMULATOR, "-cpu", cpu.model, "-L", str(root), "-E", f"LD_LIBRARY_PATH={search}"]
        return [*emulator, "-plugin", plugin, str(self.build / "runner"), *map(str, arguments)]


def prepare(root: FilePath, cpu: Cpu) -> None:
    """Make `root` what the emulated program sees: the system's libraries and the files that describe one core of `cpu`."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "lib").symlink_to(SYSTEM)
    write_files(root, cpu)


def set_up(cache: FilePath, say: Callable[[str], None]) -> Toolchain:
    """The toolchain in `cache`, made if it is not there. Raises SetupError where that is impossible."""
    programs(say)
    pins = WHEELS.read_bytes()
    unpacked = _once(cache, "wheels", pins, lambda folder: _unpack(cache / "downloads", folder, say))
    sources = b"".join(
        p.read_bytes() for p in sorted(HERE.iterdir()) if p.name in ("runner.cpp", "counter.c", "stubs.py")
    )
    build = _once(cache, "build", pins + sources, lambda folder: _build(unpacked, folder, say))
    return Toolchain(unpacked / "lib", build)


def programs(say: Callable[[str], None]) -> None:
    """Install the distribution's packages where they are missing and this user may. Raises SetupError otherwise."""
    packages = [package for program, package in PACKAGES.items() if shutil.which(program) is None]
    if not packages:
        return
    install = f"apt-get install --no-install-recommends {' '.join(packages)}"
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        raise SetupError(f"emulation needs {', '.join(packages)}", f"as administrator of a Debian system: {install}")
    say(f"installing {', '.join(packages)}")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    _run(["apt-get", "update", "-q"], "fetching the list of packages", environment)
    _run([*install.split(), "-q", "-y"], "installing packages", environment)


def _once(cache: FilePath, name: str, content: bytes, make: Callable[[FilePath], None]) -> FilePath:
    """The folder of a step, made by `make` in a temporary folder unless it is complete; those of other contents are removed."""
    folder = cache / f"{name}-{hashlib.sha256(content).hexdigest()[:12]}"
    if folder.exists():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    for old in (*cache.glob(f"{name}-*"), *cache.glob(f".{name}-*")):
        shutil.rmtree(old)
    unfinished = FilePath(tempfile.mkdtemp(prefix=f".{name}-", dir=cache))
    make(unfinished)
    return unfinished.rename(folder)


def _unpack(downloads: FilePath, folder: FilePath, say: Callable[[str], None]) -> None:
    say("fetching the AArch64 builds of ExecuTorch and PyTorch (about 450 MB)")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--platform", PLATFORM, "--python-version", PYTHON, "--require-hashes"]
    # pip keeps what is in the folder and has the right hash.
    _run([*command, "-d", str(downloads), "-r", str(WHEELS)], "fetching the wheels")
    (folder / "lib").mkdir()
    for wheel in sorted(downloads.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if HEADERS.fullmatch(name):
                    archive.extract(name, folder)
                elif LIBRARIES.fullmatch(name) and not NOT_NEEDED.search(name):
                    with archive.open(name) as source, open(folder / "lib" / FilePath(name).name, "wb") as target:
                        shutil.copyfileobj(source, target)
    shutil.rmtree(downloads)


def _build(unpacked: FilePath, folder: FilePath, say: Callable[[str], None]) -> None:
    say("building runner, counter and stubs")
    libraries, include = unpacked / "lib", unpacked / "executorch" / "include"
    system = [SYSTEM / name for name in SYSTEM_LIBRARIES]
    consumers = [path for pattern in CONSUMERS for path in libraries.glob(pattern)]
    stubs.build(f"{CROSS}-gcc", stubs.missing(consumers, [*libraries.iterdir(), *system]), folder)
    counter = [HOST_COMPILER, "-O2", "-shared", "-fPIC", "-o", str(folder / "counter.so"), str(HERE / "counter.c")]
    _run(counter, "compiling counter.c")
    (runtime,) = libraries.glob("_portable_lib*.so")
    headers = [include, include / "executorch" / "runtime" / "core" / "portable_type" / "c10"]
    command = [COMPILER, "-std=c++20", "-O2", "-DC10_USING_CUSTOM_GENERATED_MACROS", *(f"-I{path}" for path in headers)]
    command += [str(HERE / "runner.cpp"), str(runtime), f"-L{libraries}", f"-Wl,-rpath-link,{libraries}:{folder}"]
    _run([*command, "-Wl,--allow-shlib-undefined", "-o", str(folder / "runner")], "compiling runner.cpp")


def _run(command: list[str], what: str, environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    if done.returncode:
        lines = [line for line in done.stdout.splitlines() if line.strip()]
        raise SetupError(f"{what} failed with exit code {done.returncode}", "\n".join(lines[-5:]))
