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
from cpu import CPUS, Cpu, write_files

from pam_mobile.errors import SetupError

HERE = FilePath(__file__).resolve().parent
WHEELS = HERE / "wheels.txt"
SOURCES = ("counter.c", "runner.cpp", "stubs.py")
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
    if not SYSTEM.is_dir():
        raise SetupError(f"the cross compiler's libraries are not in {SYSTEM}", "use a Debian system")
    unpacked, build = folders(cache)
    _once(unpacked, lambda folder: _unpack(cache / "downloads", folder, say))
    _once(build, lambda folder: _build(unpacked, folder, say))
    return Toolchain(unpacked / "lib", build)


def folders(cache: FilePath) -> tuple[FilePath, FilePath]:
    """Where the wheels' libraries and what is built of them are, if they are: the names hold the hash of their origins."""
    pins = WHEELS.read_bytes()
    sources = b"".join((HERE / name).read_bytes() for name in SOURCES)
    names = (("wheels", pins), ("build", pins + sources))
    unpacked, build = (cache / f"{name}-{hashlib.sha256(origin).hexdigest()[:12]}" for name, origin in names)
    return unpacked, build


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


def _once(folder: FilePath, make: Callable[[FilePath], None]) -> None:
    """Let `make` fill a temporary folder that becomes `folder`, unless that is there; those of other origins are removed."""
    if folder.exists():
        return
    cache, name = folder.parent, folder.name.partition("-")[0]
    cache.mkdir(parents=True, exist_ok=True)
    for old in (*cache.glob(f"{name}-*"), *cache.glob(f".{name}-*")):
        shutil.rmtree(old)
    unfinished = FilePath(tempfile.mkdtemp(prefix=f".{name}-", dir=cache))
    make(unfinished)
    unfinished.rename(folder)


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
    _try(Toolchain(libraries, folder))


def _try(toolchain: Toolchain) -> None:
    """Raise SetupError unless the runner starts under emulation with the counter; without arguments it explains itself."""
    cpu = next(iter(CPUS.values()))
    with tempfile.TemporaryDirectory(prefix="pam-arm64-") as name:
        prepare(FilePath(name) / "root", cpu)
        command = toolchain.command(cpu, FilePath(name) / "root", FilePath(name) / "counts", ())
        said = subprocess.run(command, capture_output=True, text=True).stderr
    if "usage: runner" not in said:
        lines = said.strip().splitlines() or ["it said nothing"]
        raise SetupError("the runner does not start under this emulator (QEMU 7.2 is known to work)", lines[-1])


def _run(command: list[str], what: str, environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    if done.returncode:
        lines = [line for line in done.stdout.splitlines() if line.strip()]
        raise SetupError(f"{what} failed with exit code {done.returncode}", "\n".join(lines[-5:]))
