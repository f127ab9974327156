"""The processors that are emulated, and the files by which a program finds out which one it runs on.

XNNPACK chooses its kernels by the core's part number, which its cpuinfo reads from /proc and /sys; the host's own files describe
another architecture and crash it. QEMU takes files from a folder of ours where they exist there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path as FilePath

ARM = 0x41
ARMV8 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
ARMV8_2 = f"{ARMV8} atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"


@dataclass(frozen=True)
class Cpu:
    """part: its number; model: QEMU's processor with the same instruction set."""

    name: str
    part: int
    model: str
    features: str


CPUS = {
    cpu.name: cpu
    for cpu in (
        Cpu("cortex-a53", 0xD03, "cortex-a53", ARMV8),
        Cpu("cortex-a72", 0xD08, "cortex-a72", ARMV8),
        Cpu("cortex-a73", 0xD09, "cortex-a72", ARMV8),
        Cpu("cortex-a75", 0xD0A, "cortex-a76", ARMV8_2),
        Cpu("cortex-a76", 0xD0B, "cortex-a76", ARMV8_2),
    )
}


def write_files(root: FilePath, cpu: Cpu) -> None:
    """Describe one core of `cpu` below `root`: one, because instructions are counted without locks."""
    for name, content in files(cpu).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n", encoding="ascii")


def files(cpu: Cpu) -> dict[str, str]:
    """Content of each file, by its path without the leading slash."""
    core = "sys/devices/system/cpu/cpu0"
    lines = {
        "processor": "0",
        "BogoMIPS": "38.40",
        "Features": cpu.features,
        "CPU implementer": f"{ARM:#x}",
        "CPU architecture": "8",
        "CPU variant": "0x0",
        "CPU part": f"{cpu.part:#x}",
        "CPU revision": "0",
    }
    return {
        "proc/cpuinfo": "\n".join(f"{key}\t: {value}" for key, value in lines.items()),
        **{f"sys/devices/system/cpu/{name}": "0" for name in ("possible", "present", "online", "kernel_max")},
        # Main ID register: implementer, variant 0, architecture "by features", part, revision 0.
        f"{core}/regs/identification/midr_el1": f"{ARM << 24 | 0xF << 16 | cpu.part << 4:#018x}",
        f"{core}/topology/core_id": "0",
        f"{core}/topology/core_siblings_list": "0",
        f"{core}/topology/physical_package_id": "0",
        f"{core}/cpufreq/cpuinfo_max_freq": "2000000",
    }
