"""Runs that are there under another name: rows that tables and sweeps share are trained once."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sysdpo.runs.files import SUMS, write_json, write_text
from sysdpo.runs.folder import RunFolder
from sysdpo.runs.identity import Identity

PLACES = ("*/*/*/seed=*", "*/*/sweeps/*/*")
"""Where runs lie below `outputs`: rows of tables, jobs of sweeps."""
NAMES = ("run_id", ".logged-*")
"""Files by which others know a run; one that is taken over has its own."""
RESULTS = ("metrics.json", "samples", "steps")
"""What an evaluation found: of no use to a run that is evaluated otherwise."""
LAST = ("config.yaml", "identity.json", "metrics.json", SUMS)


def find_equal(outputs: Path, own: Identity, judged_alike: bool) -> RunFolder | None:
    """A finished, whole run below `outputs` with the same training; None without one.

    Args:
        judged_alike: only a run with the same evaluation counts. Without it, such a one is preferred.
    """
    found = [RunFolder(file.parent) for place in PLACES for file in sorted(outputs.glob(f"{place}/identity.json"))]
    trained = [run for run in found if (held := run.identity) is not None and held.training == own.training]
    alike = [run for run in trained if run.identity == own]
    others = [] if judged_alike else [run for run in trained if run not in alike]
    return next((run for run in (*alike, *others) if run.metrics is not None and run.fault() is None), None)


def take_over(folder: RunFolder, source: RunFolder, config: Mapping[str, Any], own: Identity) -> None:
    """Fill a fresh folder with what an equal run holds; evaluated otherwise, with its weights alone.

    Killed on the way, the folder is fresh still, or an interrupted run with all of its updates.
    """
    metrics = source.metrics or {}
    left = shutil.ignore_patterns(*NAMES, *LAST, *(() if source.identity == own else RESULTS))

    def ignored(place: str, names: list[str]) -> set[str]:
        return left(place, names) if Path(place) == source.path else set()

    shutil.copytree(source.path, folder.path, dirs_exist_ok=True, ignore=ignored)
    if source.identity == own:
        write_text(folder.path / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(dict(config))))
        write_text(folder.path / "run_id", f"{folder.run_id(own)}\n")
        write_json(folder.path / "identity.json", vars(own))
        folder.finish(metrics)
