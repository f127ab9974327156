"""Training throughput on this machine: crops per second of whole steps, data included.

python export/bench/training.py         about a minute; writes export/results/training.csv
"""

from __future__ import annotations

import argparse
import csv
import platform
import statistics
import sys
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path as FilePath

import torch

from pam_export.manifest import git_state
from pam_mobile.config import Crop, Data, HeldOut, Stage, TrainConfig
from pam_mobile.reporter import Reporter
from pam_mobile.train.engine import Trainer
from pam_mobile.train.log import RunLog

RESULTS = FilePath(__file__).resolve().parents[1] / "results" / "training.csv"
WARM_UP, STEPS = 10, 30


def measure(config: TrainConfig) -> tuple[float, str]:
    """Crops per second, median of the intervals after the warm-up, and the precision that was used."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, FilePath(folder) / "run", Reporter())
        trainer.run()
        rows = RunLog(FilePath(folder) / "run").rows()
    return statistics.median(row["crops_per_second"] for row in rows[1:]), trainer.precision


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=FilePath, default=RESULTS)
    out = parser.parse_args().out
    base = TrainConfig(
        stages=(1,),
        stage1=Stage(steps=WARM_UP + STEPS, learning_rate=1e-3),
        data=Data(patches=48, backgrounds=24),
        held_out=HeldOut(composites=1, size=64),
        validate_every=WARM_UP,
    )
    rows = []
    for crop in (Crop(256, 8, 1.0), Crop(384, 4, 1.0)):
        for prior in (True, False):
            speed, precision = measure(replace(base, prior=prior, crops=(crop,)))
            rows.append(
                {
                    "case": f"train-tiny{'-prior' if prior else ''}-{crop.size}",
                    "crop": crop.size,
                    "batch": crop.batch,
                    "precision": precision,
                    "threads": torch.get_num_threads(),
                    "crops_per_second": speed,
                    "torch": torch.__version__.split("+")[0],
                    "cpu": platform.processor() or platform.machine(),
                    "date_utc": datetime.now(UTC).strftime("%Y-%m-%d"),
                    "commit": git_state()["git"],
                }
            )
            sys.stdout.write(f"{rows[-1]['case']}: {speed:.1f} crops/s\n")
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
