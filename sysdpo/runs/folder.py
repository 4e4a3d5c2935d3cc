"""Run folders: `outputs/<experiment>/<scale>/<method>/seed=<n>/`, finished once `metrics.json` is there.

`SHA256SUMS`, written last, says what the results were: a file that was cut short, swapped or lost since is found, and
the command that made the run restores it.
"""

import json
import logging
import os
import platform
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from secrets import token_hex
from typing import Any

from omegaconf import OmegaConf
from PIL import Image

from sysdpo.errors import SettingError
from sysdpo.runs.files import SUMS, damage, remove, write_json, write_jsonl, write_sums, write_text
from sysdpo.runs.identity import Identity, identity
from sysdpo.runs.locks import Busy, FolderLock, lock_file

__all__ = ["RunFolder", "environment", "find_runs", "read_jsonl", "read_picture", "survey", "write_json", "write_jsonl"]

log = logging.getLogger(__name__)

IMAGE = re.compile(r"[\w-][\w.-]{0,200}\.(png|jpe?g|webp)", re.ASCII | re.IGNORECASE)
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
STEPS = "steps"
UNSERVED = "unserved.json"
PACKAGES = ("sysdpo", "torch", "transformers", "peft", "trl", "diffusers", "numpy")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file whose writer may have been killed: a torn last one does not count; [] without a file.

    Who goes on with such a file writes what was read with `write_jsonl` first.

    Raises:
        SettingError: a whole line is none of ours.
    """
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
    except ValueError as error:
        raise SettingError(f"{path}: is damaged (not UTF-8).") from error
    rows = []
    for number, line in enumerate(text.split("\n")[:-1], 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise SettingError(f"{path}, line {number}: is damaged (no JSON).") from error
        if not isinstance(row, dict):
            raise SettingError(f"{path}, line {number}: is damaged (no JSON object).")
        rows.append(row)
    return rows


def read_picture(file: Path) -> Image.Image | None:
    """A picture in RGB; None, and a line in the log, if it is broken."""
    try:
        with Image.open(file) as image:
            return image.convert("RGB")
    except Exception as error:  # whatever a decoder says of foreign bytes
        log.warning("%s: cannot be read as a picture (%s); left out", file, type(error).__name__)
        return None


def environment() -> dict[str, str]:
    """The machine and the packages of this process, by name."""
    facts = {"python": platform.python_version(), "platform": platform.platform()}
    facts |= {"cpu": _cpu(), "cpu cores": str(os.cpu_count())}
    for package in PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed"
    return facts


def _cpu() -> str:
    """The processor's name, where the system tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


@dataclass(frozen=True)
class RunFolder:
    """One row of a table under one seed."""

    path: Path
    _lock: FolderLock = field(default_factory=FolderLock, init=False, repr=False, compare=False)

    @property
    def metrics(self) -> dict[str, Any] | None:
        """The results; None of a run that has none, or whose file is damaged."""
        return self._mapping("metrics.json")

    @property
    def kept_untrained(self) -> bool:
        """Whether it trained, and validation kept what there was before."""
        return (self.metrics or {}).get("best_step") == 0

    @property
    def config(self) -> dict[str, Any] | None:
        file = self.path / "config.yaml"
        try:
            content = OmegaConf.to_container(OmegaConf.load(file)) if file.exists() else None
        except Exception as error:  # YAML has as many errors as faces
            log.warning("%s: is damaged (%s)", file, type(error).__name__)
            return None
        return {str(k): v for k, v in content.items()} if isinstance(content, dict) and content else None

    @property
    def environment(self) -> dict[str, str]:
        """Where the run was made, as it said when it was opened; {} for one that did not."""
        return self._mapping("environment.json") or {}

    @property
    def budget(self) -> dict[str, Any] | None:
        """What the run has cost, by `sysdpo.experiment.budget`; None of a run that does not say."""
        return self._mapping("budget.json")

    @property
    def credit(self) -> list[dict[str, Any]]:
        """Each component's share of the margin of training pairs, by `sysdpo.experiment.credit`."""
        return read_jsonl(self.path / "samples" / "credit.jsonl")

    def _mapping(self, name: str) -> dict[str, Any] | None:
        file = self.path / name
        if not file.exists():
            return None
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            content = None
        if not isinstance(content, dict) or not content:
            log.warning("%s: is damaged; it counts as absent", file)
            return None
        return content

    @property
    def samples(self) -> list[dict[str, Any]]:
        return read_jsonl(self.path / "samples" / "evaluation.jsonl")

    @property
    def history(self) -> list[dict[str, Any]]:
        return read_jsonl(self.path / "metrics.jsonl")

    def step_folder(self, step: int) -> Path:
        """What a kept checkpoint was judged to be, and the samples behind it."""
        return self.path / STEPS / f"step={step}"

    @property
    def judged_steps(self) -> list[dict[str, Any]]:
        """Lines as in `history`, of checkpoints that were judged after training."""
        lines = []
        for path in sorted((self.path / STEPS).glob("step=*/metrics.json")):
            metrics = self._mapping(str(path.relative_to(self.path))) or {}
            cells = {name: cell for name, cell in metrics.items() if isinstance(cell, dict) and "value" in cell}
            line: dict[str, Any] = {"step": int(path.parent.name.removeprefix("step="))}
            for name, cell in cells.items():
                line[f"evaluation/{name}"] = cell["value"]
                if cell.get("se") is not None:
                    line[f"evaluation/{name}/se"] = cell["se"]
            lines.append(line)
        return lines

    def image(self, value: Any, name: str = "") -> Path | None:
        """The picture in `samples/` that the value of a sample's field names; None if it names none.

        Text may end like a file name, or be one: only fields that held pictures count, and only files that the run
        itself drew.
        """
        if not isinstance(value, str) or not IMAGE.fullmatch(value):
            return None
        fields = self.pictured
        if fields is not None and name and name not in fields:
            return None
        file = self.path / "samples" / value
        return file if file.is_file() and not file.is_symlink() else None

    @property
    def pictured(self) -> list[str] | None:
        """The fields of the samples that name pictures; None where the run does not say."""
        found = (self._mapping("samples/pictures.json") or {}).get("fields")
        return [str(name) for name in found] if isinstance(found, list) else None

    # ---- whole or not ----------------------------------------------------------------------------------------------

    def fault(self, pictures: bool = True) -> str | None:
        """What is wrong with a finished run's files, in words; None if nothing is.

        Args:
            pictures: read the samples' pictures too.
        """
        if self.metrics is None or ((self.path / "config.yaml").exists() and self.config is None):
            return "metrics.json or config.yaml is damaged"
        if not (self.path / SUMS).exists():  # of an earlier version, or killed before the last file
            return None
        if (wrong := damage(self.path, () if pictures else PICTURES)) is not None:
            return wrong
        for folder in sorted((self.path / "adapters").glob("*/")) if pictures else ():
            if (wrong := damage(folder)) is not None:
                return f"adapters/{folder.name}: {wrong}"
        return None

    @property
    def identity(self) -> Identity | None:
        """Of the run that the folder holds; what its config says of one of an earlier version; None of none."""
        known = self._mapping("identity.json") or {}
        if isinstance(known.get("training"), str) and isinstance(known.get("evaluation"), str):
            return Identity(known["training"], known["evaluation"])
        return identity(self.config) if self.config is not None else None

    def is_finished(self, own: Identity) -> bool:
        if self.metrics is None or self.identity != own:
            return False
        if (wrong := self.fault()) is not None:
            log.warning("%s: %s; the run goes on from its last checkpoint to restore it", self.path, wrong)
            return False
        return True

    def finish(self, metrics: Mapping[str, Any]) -> None:
        """The results, and the checksums by which they are known later."""
        remove(self.path / SUMS)
        write_json(self.path / "metrics.json", metrics)
        files = [self.path / name for name in ("config.yaml", "identity.json", "metrics.json", "metrics.jsonl")]
        files += [*(self.path / "samples").rglob("*"), *(self.path / "adapters").glob(f"*/{SUMS}")]
        write_sums(self.path, [str(file.relative_to(self.path)) for file in files if file.is_file()])

    @property
    def unserved(self) -> tuple[str, str] | None:
        """(data set, reason) where the data could not serve this row; None of a run that has been opened since."""
        found = self._mapping(UNSERVED)
        return (str(found.get("dataset")), str(found.get("reason"))) if found else None

    def note_unserved(self, dataset: str, reason: str) -> None:
        write_json(self.path / UNSERVED, {"dataset": dataset, "reason": reason})

    def run_id(self, own: Identity) -> str:
        """The name by which others know the run: kept while it goes on or is judged anew, new for another training."""
        file = self.path / "run_id"
        if file.exists() and (held := self.identity) is not None and held.training == own.training:
            known = file.read_bytes().decode("ascii", "replace").strip()
            if re.fullmatch(r"[0-9a-zA-Z_-]{1,64}", known):
                return known
            log.warning("%s: is damaged; the run gets a new name", file)
        return token_hex(8)

    # ---- who writes ------------------------------------------------------------------------------------------------

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep the folder to this process; the system frees it if the process is killed.

        Raises:
            SettingError: another process has it.
        """
        try:
            with lock_file(self.path, wait=False):
                self._lock.take(self.path)  # who deletes the lock's file has not freed the folder
                try:
                    yield
                finally:
                    self._lock.free()
        except Busy:
            raise SettingError(
                f"{self.path}: another process is at this run; wait for it, or write elsewhere with outputs=…"
            ) from None

    def open(self, config: Mapping[str, Any], own: Identity, run_id: str | None = None, device: str = "") -> None:
        """Make the folder ready for a run: go on with one of the same training, put another aside.

        The results of the same training under another evaluation are put aside too; its weights stay.
        `environment.json` says where the run is made; it is no part of what decides its numbers.
        """
        if (held := self.identity) is not None and held.training != own.training:
            self._set_aside()
        elif held is not None and held.evaluation != own.evaluation:
            self._set_results_aside()
        remove(self.path / UNSERVED)
        self.describe(config, own, run_id)
        opened = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        write_json(self.path / "environment.json", {"opened": opened, "device": device, **environment()})

    def describe(self, config: Mapping[str, Any], own: Identity, run_id: str | None = None) -> None:
        """Write down which run the folder holds, and by which name others know it."""
        write_text(self.path / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(dict(config))))
        if run_id is not None:
            write_text(self.path / "run_id", f"{run_id}\n")
        write_json(self.path / "identity.json", vars(own))

    def _set_aside(self) -> None:
        """Keep a run of another training beside this one: a result is never lost."""
        self.path.rename(self._beside())
        if self._lock.is_taken:
            self._lock.take(self.path)

    def _set_results_aside(self) -> None:
        """Keep what another judge found beside this run, which loses it; it stays trained."""
        (self.path / SUMS).unlink(missing_ok=True)
        for logged in self.path.glob(".logged-*"):
            logged.unlink()
        if not (self.path / "metrics.json").exists():
            return
        target = self._beside()
        target.mkdir()
        for name in ("config.yaml", "identity.json"):
            if (self.path / name).exists():
                shutil.copy2(self.path / name, target)
        for name in ("metrics.json", "samples"):
            if (self.path / name).exists():
                (self.path / name).rename(target / name)

    def _beside(self) -> Path:
        number = 1
        while (target := self.path.with_name(f".{self.path.name}.superseded-{number}")).exists():
            number += 1
        return target


def find_runs(root: Path, method: str) -> Iterator[tuple[int, RunFolder]]:
    """(seed, run) of every finished run of a method under `outputs/<experiment>/<scale>`."""
    yield from survey(root, method)[0].items()


def survey(root: Path, method: str) -> tuple[dict[int, RunFolder], list[str]]:
    """The finished runs of a method by seed, and a line for each folder that looks like a run and is left out."""
    runs: dict[int, RunFolder] = {}
    notes = []
    for path in sorted((root / method).glob("seed=*")):
        seed = path.name.removeprefix("seed=")
        run = RunFolder(path)
        if not re.fullmatch(r"0|[1-9][0-9]{0,18}", seed) or not path.is_dir():
            notes.append(f"{method}/{path.name} is no run folder (seed=<number>); it is left out.")
        elif not (path / "metrics.json").exists():
            continue
        elif (wrong := run.fault(pictures=False)) is not None:
            notes.append(f"{method}/{path.name}: {wrong}; the run is left out. The command that made it restores it.")
        else:
            runs[int(seed)] = run
            if (wrong := damage(path) if (path / SUMS).exists() else None) is not None:
                notes.append(f"{method}/{path.name}: {wrong}; the picture is left out.")
    return dict(sorted(runs.items())), notes
