"""pam-mobile verify."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ..reporter import Reporter
from .common import Result, verb


@verb
def verify(reporter: Reporter, folder: Annotated[Path, typer.Argument(help="An export folder.")]) -> Result:
    """Check an export folder: every hash, then what its artifacts compute against their golden outputs."""
    from pam_export import verify_folder

    from ..errors import IntegrityError

    checks = verify_folder(folder, reporter)
    failed = [check for check in checks if not check.passed]
    if failed:
        raise IntegrityError(f"{folder}: {failed[0].file}: {failed[0].message}", "export it again")
    lines = [f"ok  {c.file}  max difference {c.max_abs:.1e}  {c.message}" for c in checks]
    return Result({"folder": str(folder), "passed": True, "checks": [asdict(c) for c in checks]}, "\n".join(lines))
