"""Talking to the zygote: training runs in processes that are killed, signalled, or starved of disk."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

ZYGOTE = Path(__file__).with_name("zygote.py")


class Forks:
    """Runs jobs in forked processes; one record of saved and loaded states and one log of messages for all of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        environment = {**os.environ, "PYTHONPATH": str(ZYGOTE.parents[1]), "OMP_NUM_THREADS": "1"}
        self.zygote = subprocess.Popen(
            [sys.executable, str(ZYGOTE)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(self, out: Path, **job: Any) -> int:
        """Exit code of one training run into `out`."""
        return self.together([{"out": str(out), **job}])[0]

    def together(self, jobs: list[dict[str, Any]]) -> list[int]:
        """Exit codes of runs at the same time."""
        assert self.zygote.stdin is not None
        assert self.zygote.stdout is not None
        rows = [{"log": str(self.folder / "log"), "record": str(self.folder / "record"), **job} for job in jobs]
        self.zygote.stdin.write(json.dumps(rows) + "\n")
        self.zygote.stdin.flush()
        return list(json.loads(self.zygote.stdout.readline()))

    def ranks(self, out: Path, count: int, jobs: list[dict[str, Any]] | None = None, **job: Any) -> list[int]:
        """Exit codes of `count` processes that train together."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        rows = []
        for rank in range(count):
            own = {
                "RANK": rank,
                "LOCAL_RANK": rank,
                "WORLD_SIZE": count,
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }
            environment = {name: str(value) for name, value in own.items()}
            rows.append({"out": str(out), **job, **(jobs[rank] if jobs else {}), "env": environment})
        return self.together(rows)

    def record(self, kind: str) -> dict[tuple[int, int], set[str]]:
        """(stage, step) to the hashes of the states that were saved, or loaded, there since the last call; forgets the record."""
        path = self.folder / "record"
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        found: dict[tuple[int, int], set[str]] = {}
        for name, stage, step, digest in rows:
            if name == kind:
                found.setdefault((stage, step), set()).add(digest)
        return found

    def forget(self) -> None:
        (self.folder / "record").unlink(missing_ok=True)
        (self.folder / "log").unlink(missing_ok=True)

    def messages(self) -> str:
        path = self.folder / "log"
        return path.read_text() if path.exists() else ""

    def close(self) -> None:
        assert self.zygote.stdin is not None
        assert self.zygote.stdout is not None
        self.zygote.stdin.close()
        self.zygote.wait(10)
        self.zygote.stdout.close()


def results(run: Path) -> dict[str, str]:
    """Hashes of everything that a run leaves, but for what depends on the time: speed, seconds, the order of starts."""
    hashes = {}
    for file in sorted(run.rglob("*")):
        name = file.relative_to(run).as_posix()
        if not file.is_file() or name in (".lock", "summary.json", "metrics.csv"):
            continue
        data = file.read_bytes()
        if name == "metrics.jsonl":
            rows = [json.loads(line) for line in data.decode().splitlines()]
            data = json.dumps([{k: v for k, v in row.items() if k != "crops_per_second"} for row in rows]).encode()
        hashes[name] = hashlib.sha256(data).hexdigest()
    return hashes
