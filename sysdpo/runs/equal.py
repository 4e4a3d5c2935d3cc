"""Runs that are there under another name: rows that tables and sweeps share are trained once."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sysdpo.runs.files import SUMS
from sysdpo.runs.folder import RunFolder
from sysdpo.runs.identity import Identity

PLACES = ("*/*/*/seed=*", "*/*/sweeps/*/*")
"""Where runs lie below `outputs`: rows of tables, jobs of sweeps."""
NAMES = ("run_id", ".logged-*")
"""Files by which others know a run; one that is taken over has its own."""
RESULTS = ("samples", "steps")
"""What an evaluation found: of no use to a run that is evaluated otherwise."""
LAST = ("config.yaml", "identity.json", "metrics.json", SUMS)
"""What makes a folder a run, and a run a finished one: written when all else is there."""


def find_equal(outputs: Path, own: Identity, judged_alike: bool) -> RunFolder | None:
    """A finished, whole run below `outputs` with the same training; None without one.

    Args:
        judged_alike: only a run with the same evaluation counts. Without it, such a one is preferred.
    """
    found = [RunFolder(file.parent) for place in PLACES for file in sorted(outputs.glob(f"{place}/identity.json"))]
    trained = [(run, held) for run in found if (held := run.identity) is not None and held.training == own.training]
    alike_first = sorted(trained, key=lambda each: each[1] != own)
    return next((run for run, held in alike_first if (held == own or not judged_alike) and run.fault() is None), None)


def take_over(folder: RunFolder, source: RunFolder, config: Mapping[str, Any], own: Identity) -> None:
    """Fill a fresh folder with what an equal run holds; evaluated otherwise, with its weights alone.

    Killed on the way, the folder is fresh still, or an interrupted run with all of its updates.
    """
    alike = source.identity == own
    left = shutil.ignore_patterns(*NAMES, *LAST, *(() if alike else RESULTS))

    def ignored(place: str, names: list[str]) -> set[str]:
        return left(place, names) if Path(place) == source.path else set()

    shutil.copytree(source.path, folder.path, dirs_exist_ok=True, ignore=ignored)
    if alike:
        folder.describe(config, own, folder.run_id(own))
        folder.finish(source.metrics or {})
