"""pam-mobile quickstart: the main job from one end to the other. It stands on the other verbs' functions and adds none of its own."""

from __future__ import annotations

import importlib.util
import json
import shutil
import statistics
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import PamError, SetupError, UsageError
from ..files import refuse_if_locked, write_bytes
from ..reporter import Reporter
from .common import Result, verb
from .export import export_checkpoint

if TYPE_CHECKING:
    from torch import Tensor

    from ..checkpoint import Checkpoint
    from ..config import TrainConfig
    from ..data.compose import Batch

OPAQUE = ("hair", "fur", "leaves", "lace", "solid")
"""Smoke and glass take longer than this to learn (docs/findings.md)."""
BUDGETS = ["80%", "90%", "100%"]
START = "tiny-v2"
"""What is trained on: a small network, whatever `predict` takes."""
SIZE = 512
COMPOSITES, COMPOSITE_SIZE = 64, 384
RUNS = 20
TRIMAP = Path(__file__).parents[1] / "assets" / "astronaut_trimap.png"


@verb
def quickstart(
    reporter: Reporter,
    out: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("runs/quickstart"),
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Delete what an earlier quickstart left in --out and train again.")
    ] = False,
) -> Result:
    """The main job in a few minutes: training from the shipped weights, paths for three budgets, export, a photo cut out."""
    return job(reporter, out, fresh)


def job(reporter: Reporter, out: Path, fresh: bool) -> Result:
    """All steps in order; what an earlier run finished is taken over."""
    from pam_export.publish import check_destination

    from .. import checkpoint

    start = time.monotonic()
    photo = _photo()
    check_destination(out / "export")  # before minutes of training
    if fresh:
        _forget(out)
    found = checkpoint.load(_train(out / "train", reporter))
    manifest = _export(found, out / "export", reporter)
    with reporter.progress("measuring SAD and milliseconds", 1 + len(BUDGETS)) as advance:
        composites = _held_out()
        baselines = _baselines(composites)
        advance()
        rows = []
        for budget in BUDGETS:
            rows.append(_row(found, manifest, out, budget, composites, baselines["prior alone"]))
            advance(note=budget)
    report = {
        "size": SIZE,
        "parameters": _parameters(found),
        "baselines": {name: float(scores.mean()) for name, scores in baselines.items()},
        "budgets": rows,
        "prior": _prior(found),
        "photo": _cut_out(found, photo, out, reporter),
        "seconds": round(time.monotonic() - start, 1),
    }
    text = _text(report, out)
    write_bytes(out / "report.json", (json.dumps(report, indent=2) + "\n").encode())
    write_bytes(out / "report.md", (text + "\n").encode())
    return Result(report, text)


def _forget(out: Path) -> None:
    """Delete an earlier run and its export; the export was found to be one, and a folder without a run is left to the trainer.

    Raises UsageError if a process trains there.
    """
    from ..checkpoint import RUN

    refuse_if_locked(out / "train")
    if (out / "train" / RUN).is_file():
        shutil.rmtree(out / "train")
    shutil.rmtree(out / "export", ignore_errors=True)


def quickstart_config() -> TrainConfig:
    """A few minutes of training on two CPU cores, from the weights that come with the package."""
    from ..config import Crop, HeldOut, PathLearningSettings, Stage, TrainConfig

    base = TrainConfig()
    return replace(
        base,
        stages=(2, 3),
        init=START,
        data=replace(base.data, patches=600, backgrounds=300, kinds=OPAQUE),
        stage2=Stage(steps=120, learning_rate=5e-4),
        stage3=Stage(steps=60, learning_rate=5e-4),
        paths=PathLearningSettings(prior_images=8, prior_paths=6),
        crops=(Crop(256, 4, 0.75), Crop(384, 2, 0.25)),
        held_out=HeldOut(composites=12, size=256),
        validate_every=60,
        save_every=60,
    )


def _photo() -> Path:
    """The portrait of Eileen Collins (NASA, public domain) that comes with scikit-image."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise SetupError(
            "the quickstart's photo comes with scikit-image, which is missing", "pip install 'pam-mobile[demo]'"
        )
    return Path(spec.origin).parent / "data" / "astronaut.png"


def _train(folder: Path, reporter: Reporter) -> Path:
    """Train, or continue what an interrupted quickstart began.

    Raises UsageError for a run of other settings: it may be the user's own.
    """
    from ..checkpoint import RUN
    from ..config import to_yaml
    from ..train.engine import Trainer

    config = quickstart_config()
    if (folder / RUN).exists() and (folder / RUN).read_text() != to_yaml(config):
        raise UsageError(
            f"{folder} holds a run of other settings: an older version's quickstart, or another training",
            "choose another --out, or add --fresh to delete that run and train again",
        )
    return Trainer(config, folder, reporter).run(resume=folder.exists())


def _export(found: Checkpoint, folder: Path, reporter: Reporter) -> dict[str, Any]:
    """Export, or take the export that is there if it is whole and of these weights."""
    from pam_export import manifest as manifests
    from pam_export.verify import check_files

    if (folder / "manifest.json").exists():
        try:
            content = manifests.read(folder)
            check_files(folder, content)
            if content["model"]["weights_sha256"] == found.document["weights"]["sha256"]:
                reporter.say(f"{folder} is exported already")
                return content
        except PamError as error:
            reporter.warn(f"exporting again: {error.message}")
    return export_checkpoint(found, BUDGETS, ["executorch", "coreml"], [SIZE], folder, reporter)


def _parameters(found: Checkpoint) -> int:
    from ..model.subnet import parameter_count

    return parameter_count(found.supernet)


def _held_out() -> list[Batch]:
    """Composites for the report; none of their mattes was trained on or used to choose paths."""
    from ..evaluate.heldout import composites

    return composites(COMPOSITES, COMPOSITE_SIZE, quickstart_config().data.kinds)


def _baselines(batches: list[Batch]) -> dict[str, Tensor]:
    from ..train.validate import half_sads, prior_sads

    return {"unknown = 0.5": half_sads(batches), "prior alone": prior_sads(batches)}


def _row(
    found: Checkpoint, manifest: dict[str, Any], out: Path, budget: str, composites: list[Batch], prior: Tensor
) -> dict[str, Any]:
    from ..budget import Budget
    from ..evaluate.report import Change
    from ..path import Path as NetworkPath
    from ..train.validate import chosen_sads, sads

    artifacts = {a["target"]: a for a in manifest["artifacts"] if a["methods"][0]["budget"]["text"] == budget}
    pte, (method,) = artifacts["executorch"], artifacts["executorch"]["methods"]
    fixed = sads(found.supernet, composites, NetworkPath.parse(method["path"]))
    scores, chosen = chosen_sads(found.supernet, composites, Budget.parse(budget))
    return {
        "budget": budget,
        "path": method["path"],
        "macs": method["macs"],
        "parameters": method["params"],
        "sad": float(scores.mean()),
        "sad_fixed": float(fixed.mean()),
        "paths_chosen": len(set(chosen)),
        "against_prior": asdict(Change.of(scores.tolist(), prior.tolist())),
        "milliseconds": _milliseconds(out / "export" / pte["files"][0]["path"]),
        "files": {
            target: {
                "name": a["name"],
                "bytes": sum(file["bytes"] for file in a["files"]),
                "max_difference": a["parity"]["max_abs"],
                "how": a["parity"]["how"],
            }
            for target, a in artifacts.items()
        },
    }


def _milliseconds(pte: Path) -> float:
    """Median time of one .pte inference on this machine, with ExecuTorch's default number of threads."""
    import torch

    from pam_export.artifact import Request
    from pam_export.executorch import load
    from pam_export.quiet import quiet

    image = torch.randint(0, 256, (1, 3, SIZE, SIZE), dtype=torch.uint8)
    trimap = torch.full((1, 1, SIZE, SIZE), 128, dtype=torch.uint8)
    with quiet("timing ExecuTorch"):
        run = load(pte)
        times = []
        for _ in range(RUNS + 3):
            start = time.perf_counter()
            run(image, trimap, Request())
            times.append(time.perf_counter() - start)
    return round(statistics.median(times[3:]) * 1000, 2)


def _prior(found: Checkpoint) -> dict[str, float]:
    """The colour prior's share: MACs, and milliseconds in PyTorch, which can run it alone."""
    import torch

    from ..cost import CostTable
    from ..predict.matter import PriorMatting

    prior = PriorMatting().eval()
    image, trimap = torch.rand(1, 3, SIZE, SIZE), torch.full((1, 1, SIZE, SIZE), 0.5)
    times = []
    with torch.inference_mode():
        for _ in range(RUNS + 3):
            start = time.perf_counter()
            prior(image, trimap)
            times.append(time.perf_counter() - start)
    macs = CostTable.of(found.preset, SIZE, SIZE).prior
    return {"macs": macs, "milliseconds_eager": round(statistics.median(times[3:]) * 1000, 2)}


def _cut_out(found: Checkpoint, photo_file: Path, out: Path, reporter: Reporter) -> dict[str, Any]:
    """Cut the photo out at every budget; write alphas, cut-outs and one picture of all."""
    from ..imageio import read_photo, read_trimap, write_grey, write_rgba
    from ..predict.foreground import estimate_foreground
    from ..predict.matter import Matter
    from .picture import contact_sheet

    matter = Matter(found, "cpu")
    photo = read_photo(photo_file)
    height, width = photo.pixels.shape[:2]
    trimap = read_trimap(TRIMAP, (height, width), str(photo_file))
    folder = out / "photo"
    alphas, files = {}, []
    with reporter.progress(f"cutting out {photo_file.name}", len(BUDGETS)) as advance:
        for budget in BUDGETS:
            matte = matter.matte(photo.pixels, trimap, budget)
            alpha, plan = matte.alpha, matte.plan
            foreground = estimate_foreground(photo.pixels, alpha)
            name = f"{budget.rstrip('%'):0>3}"
            write_grey(folder / f"alpha_{name}.png", alpha)
            write_rgba(folder / f"cutout_{name}.png", foreground, alpha)
            files += [str(folder / f"alpha_{name}.png"), str(folder / f"cutout_{name}.png")]
            alphas[f"alpha, budget {budget}, {plan.macs / 1e9:.2f} GMACs"] = alpha
            advance()
    contact_sheet(out / "picture.png", photo.pixels, trimap, alphas, foreground)
    return {
        "photo": photo_file.name,
        "credit": "NASA, public domain",
        "picture": str(out / "picture.png"),
        "files": files,
    }


def _text(report: dict[str, Any], out: Path) -> str:
    from ..evaluate.report import Change
    from ..tables import markdown_table

    header = (
        "budget",
        "fixed path",
        "GMACs",
        "parameters",
        ".pte",
        ".mlpackage",
        "SAD fixed",
        "SAD chosen",
        "against the prior",
        "paths",
        "ms (.pte)",
        "max diff .pte",
        "max diff .mlpackage",
    )
    rows = [
        (
            row["budget"],
            row["path"],
            f"{row['macs'] / 1e9:.3f}",
            f"{row['parameters'] / 1e6:.3f} M",
            f"{row['files']['executorch']['bytes'] / 1e6:.2f} MB",
            f"{row['files']['coreml']['bytes'] / 1e6:.2f} MB",
            f"{row['sad_fixed']:.3f}",
            f"{row['sad']:.3f}",
            str(Change(**row["against_prior"])),
            row["paths_chosen"],
            row["milliseconds"],
            f"{row['files']['executorch']['max_difference']:.1e}",
            f"{row['files']['coreml']['max_difference']:.1e}",
        )
        for row in report["budgets"]
    ]
    rows += [
        (name, "-", "-", "-", "-", "-", f"{sad:.3f}", f"{sad:.3f}", "-", "-", "-", "-", "-")
        for name, sad in report["baselines"].items()
    ]
    prior = report["prior"]
    return f"""\
{markdown_table(header, rows)}

SAD / 1000 over the unknown pixels, mean over {COMPOSITES} held-out procedural composites of
{COMPOSITE_SIZE}x{COMPOSITE_SIZE} pixels ({", ".join(OPAQUE)}). Fixed: on the budget's best measured path, which is
exported. Chosen: on the path that the network chooses for each image within the budget; how many different
ones; and the change against the prior alone with its standard error over the composites.
GMACs and ms at {SIZE}x{SIZE}; ms on the CPU of this machine. One supernet of {report["parameters"] / 1e6:.3f} M parameters
serves all budgets. The colour prior is part of every row: {prior["macs"] / 1e9:.3f} GMACs,
{prior["milliseconds_eager"]} ms alone in PyTorch.

look at   {out / "picture.png"}   (photo: NASA, public domain, from scikit-image)
curves    {out / "train" / "curves.png"}
artifacts {out / "export"}
took      {report["seconds"]:.0f} s

next:
  pam-mobile predict PHOTO --trimap TRIMAP --model {out / "train"} --budget 80% --alpha alpha.png --cutout cutout.png
  pam-mobile verify {out / "export"}
  pam-mobile info {out / "train"}
  pam-mobile train --preset tiny --stages 1,2,3 --out runs/mine      (longer training; --fg --alpha --bg for your own images)
  pam-mobile export --model runs/mine --budgets 80%,90%,100% --to executorch,coreml --sizes 512 --out runs/mine/export"""
