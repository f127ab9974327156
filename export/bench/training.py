"""Training throughput on this machine: crops per second of whole steps, and what the data cost of it.

python export/bench/training.py         about three minutes; writes export/results/training.csv
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path as FilePath

import torch

from pam_export.rows import machine, origin, write
from pam_mobile.config import Crop, Data, HeldOut, Stage, TrainConfig
from pam_mobile.reporter import Reporter
from pam_mobile.train.engine import Trainer
from pam_mobile.train.log import RunLog
from pam_mobile.train.shards import Shards

RESULTS = FilePath(__file__).resolve().parents[1] / "results" / "training.csv"
WARM_UP, STEPS = 10, 30


def measure(config: TrainConfig) -> tuple[float, str]:
    """Crops per second, median of the intervals after the warm-up, and the precision that was used."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, FilePath(folder) / "run", Reporter())
        trainer.run()
        rows = RunLog(FilePath(folder) / "run").rows()
    return statistics.median(row["crops_per_second"] for row in rows[1:]), trainer.precision


def data_ratio(config: TrainConfig) -> float:
    """Seconds of a step that composes its batch over those of a step on a batch made before: 1 means that data cost nothing.

    Both kinds take turns in one run, so that a busy machine slows both; medians.
    """
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, FilePath(folder) / "run", Reporter(-1))
        trainer._prepare_data()
        optimiser, objective = trainer._optimiser(config.stage1), trainer._objective(1)
        shards = Shards(trainer.supernet.train(), 1, trainer.processes)
        compose, fixed = trainer._batch, trainer._batch(1, 0, 0)
        seconds: dict[bool, list[float]] = {True: [], False: []}
        for step in range(WARM_UP + 2 * STEPS):
            with_data = step % 2 == 0
            trainer._batch = compose if with_data else lambda *_: fixed  # type: ignore[method-assign]
            start = time.perf_counter()
            trainer._step(shards, optimiser, objective, 1, step, config.stage1)
            if step >= WARM_UP:
                seconds[with_data].append(time.perf_counter() - start)
    return statistics.median(seconds[True]) / statistics.median(seconds[False])


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
            config = replace(base, prior=prior, crops=(crop,))
            speed, precision = measure(config)
            rows.append(
                {
                    "case": f"train-tiny{'-prior' if prior else ''}-{crop.size}",
                    "crop": crop.size,
                    "batch": crop.batch,
                    "precision": precision,
                    "threads": torch.get_num_threads(),
                    "crops_per_second": speed,
                    "data_ratio": round(data_ratio(config), 3),
                    "torch": torch.__version__.split("+")[0],
                    "cpu": machine(),
                    **origin(),
                }
            )
            sys.stdout.write(
                f"{rows[-1]['case']}: {speed:.1f} crops/s, a step with data takes {rows[-1]['data_ratio']} of one without\n"
            )
    write(out, rows)


if __name__ == "__main__":
    main()
