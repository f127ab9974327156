"""Turn a finished run into a model that comes with the package.

    python -m pam_mobile.release RUN NAME

writes assets/models/NAME: weights, path prior and a card whose figures are measured here. Then the printed line goes to models.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path as FilePath

from . import checkpoint, config, models
from .budget import Budget
from .checkpoint import Checkpoint
from .cost import CostTable
from .data.synthetic import KINDS
from .evaluate import baselines, contenders, controls, heldout, report
from .evaluate.images import ImageSet
from .files import SEAL, read_sealed_json, write_bytes
from .model.subnet import parameter_count
from .path import Path
from .predict.matter import Matter
from .reporter import Reporter
from .train.pathprior import PathPrior, stored_prior
from .train.validate import change, sads

BUDGETS = ("40%", "50%", "60%", *controls.BUDGETS, "100%")
"""Those that a network cannot keep, because its smallest path costs more, are left out of its card."""
HALF_CHANGE = 0.002
"""Weights are stored as float16 if SAD changes by less than this share."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pam_mobile.release", description="Ship a trained model.")
    parser.add_argument("run")
    parser.add_argument("name")
    parser.add_argument("--count", type=int, default=heldout.COUNT, help="held-out composites per table")
    parser.add_argument("--size", type=int, default=heldout.SIZE, help="their height and width")
    parser.add_argument("--data-licence", default="", help="what the images of the training were, and their licences")
    parser.add_argument("--baselines", default="half,prior", help="rows beside the network's")
    wishes = parser.parse_args()
    folder = release(
        FilePath(wishes.run),
        wishes.name,
        wishes.count,
        wishes.size,
        wishes.baselines.split(","),
        Reporter(),
        data_licence=wishes.data_licence,
    )
    seal = read_sealed_json(folder / checkpoint.DOCUMENT, models.REMEDY)[SEAL]
    sys.stdout.write(f'add to SHIPPED in pam_mobile/models.py:\n    "{wishes.name}": "{seal}",\n')


def release(
    run: FilePath,
    name: str,
    count: int,
    size: int,
    rivals: Sequence[str],
    reporter: Reporter,
    home: FilePath = models.FOLDER,
    data_licence: str = "",
) -> FilePath:
    """Write the model's folder; returns it. Raises as `checkpoint.load` does."""
    source = checkpoint.find(str(run))
    found = checkpoint.load(source)
    prior = stored_prior(source, found.preset, found.document)
    drop = {"schema_version", "package", "preset", "weights", "paths", SEAL}
    facts = {key: value for key, value in found.document.items() if key not in drop}
    facts["data_licence"] = data_licence or facts["data_licence"]
    facts["weights_version"] = models.version(name)
    loss = _half_change(found, count, size, reporter)
    checkpoint.save(home / name, found.supernet, found.paths, facts, half=abs(loss) < HALF_CHANGE)
    if prior is not None:
        prior.save(home / name)
    card = _card(checkpoint.load(home / name), prior, name, loss, count, size, rivals, reporter)
    write_bytes(home / name / models.CARD, card.encode())
    return home / name


def _half_change(found: Checkpoint, count: int, size: int, reporter: Reporter) -> float:
    """Relative change of SAD on the largest path when the weights are rounded to float16."""
    batches = heldout.composites(count, size, reporter=reporter)
    path = Path.all_run(len(found.supernet.units))
    before = sads(found.supernet, batches, path)
    state = {name: value.clone() for name, value in found.supernet.state_dict().items()}
    found.supernet.load_state_dict(checkpoint.halved(state))
    after = sads(found.supernet, batches, path)
    found.supernet.load_state_dict(state)
    return change(after, before)[0]


def _card(
    found: Checkpoint,
    prior: PathPrior | None,
    name: str,
    loss: float,
    count: int,
    size: int,
    rivals: Sequence[str],
    reporter: Reporter,
) -> str:
    training = config.from_yaml(found.document["training"], "the model's training settings")
    unseen = [kind for kind in KINDS if kind not in training.data.kinds]
    budgets = _within_reach(CostTable.of(found.preset, size, size))
    tables = [_table(found, name, budgets, heldout.held_out_images(count, size, training.data.kinds), rivals, reporter)]
    if unseen:
        tables.append(_table(found, name, budgets, heldout.held_out_images(count, size, unseen), rivals, reporter))
    side = found.preset.reference
    table = CostTable.of(found.preset, side, side)
    parameters, cost = parameter_count(found.supernet), f"{table.smallest / 1e9:.3f} to {table.largest / 1e9:.3f}"
    weights = f"float16 (SAD changes by {loss:+.3%})" if found.document["weights"]["half"] else "float32"
    judged = ""
    if found.learned_paths:
        images = heldout.held_out_images(count, size, training.data.kinds, seed=1)
        wishes = [Budget.parse(text) for text in controls.BUDGETS]
        rows = controls.controls(found, images, wishes, prior, 0, reporter)
        judged = f"\n\n## Does it adapt to the image?\n\n{controls.to_text(images, rows)}"
    unseen_words = f" The second table shows {', '.join(unseen)}, which were never trained on." if unseen else ""
    return f"""\
# {name}

Generated by `python -m pam_mobile.release`; every figure was measured by that command.

| | |
|---|---|
| preset | {found.preset.label}, {parameters / 1e6:.2f} M parameters with all branches and heads |
| cost | {cost} GMACs at {side}x{side}, the colour prior's {table.prior / 1e9:.3f} included |
| weights | {weights}, SHA-256 `{found.document["weights"]["sha256"]}` |
| licence of the weights | {found.document["licence"]} |
| trained on | {found.document["data_licence"]} |
| made with | pam-mobile {found.document["package"]["version"]} |

Intended use: alpha mattes of photos with a trimap, on phones and small computers. It is a small network with few training images:
expect less than from large networks. Scores are on procedural composites, not on photos with measured mattes.{unseen_words}

{(chr(10) * 2).join(tables)}{judged}

## Training settings

```yaml
{found.document["training"].strip()}
```
"""


def _within_reach(table: CostTable) -> list[Budget]:
    budgets = [Budget.parse(text) for text in BUDGETS]
    return [budget for budget in budgets if budget.macs(table) >= table.smallest + table.planning]


def _table(
    found: Checkpoint,
    name: str,
    budgets: Sequence[Budget],
    images: ImageSet,
    rivals: Sequence[str],
    reporter: Reporter,
) -> str:
    matter = Matter(found, "cpu")
    rows = [contenders.of_model(matter, name, budget) for budget in budgets]
    entries = [*baselines.baselines(rivals, "cpu"), *rows]
    against = "prior" if "prior" in rivals else name
    return report.to_text(images, report.evaluate(entries, images, against, reporter), against)


if __name__ == "__main__":
    main()
