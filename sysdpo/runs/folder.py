"""Run folders: `outputs/<experiment>/<scale>/<method>/seed=<n>/`, finished once `metrics.json` is there."""

import json
import os
import platform
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from secrets import token_hex
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from sysdpo.errors import SettingError

IMAGE = re.compile(r"[\w./-]{1,200}\.(png|jpe?g|webp)", re.ASCII | re.IGNORECASE)
PACKAGES = ("sysdpo", "torch", "transformers", "peft", "trl", "diffusers", "numpy")


def write_json(path: Path, content: Any) -> None:
    _write(path, json.dumps(content, indent=2) + "\n")


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    _write(path, "".join(json.dumps(row) + "\n" for row in rows))


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file whose writer may have been killed: a torn last one does not count; [] without a file.

    Who goes on with such a file writes what was read with `write_jsonl` first.
    """
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


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

    @property
    def metrics(self) -> dict[str, Any] | None:
        file = self.path / "metrics.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None

    @property
    def config(self) -> dict[str, Any] | None:
        file = self.path / "config.yaml"
        return OmegaConf.to_container(OmegaConf.load(file)) if file.exists() else None  # type: ignore[return-value]

    @property
    def environment(self) -> dict[str, str]:
        """Where the run was made, as it said when it was opened; {} for one that did not."""
        file = self.path / "environment.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}

    @property
    def samples(self) -> list[dict[str, Any]]:
        return read_jsonl(self.path / "samples" / "evaluation.jsonl")

    @property
    def history(self) -> list[dict[str, Any]]:
        return read_jsonl(self.path / "metrics.jsonl")

    def image(self, value: Any) -> Path | None:
        """The image file that a sample names, relative to `samples/` or to the run; None if it names none."""
        if not isinstance(value, str) or not IMAGE.fullmatch(value):
            return None  # an answer may end like a file, and be too long for a name
        return next((file for folder in ("samples", ".") if (file := self.path / folder / value).is_file()), None)

    def is_finished(self, config: Mapping[str, Any]) -> bool:
        return self.metrics is not None and self.config == config

    def run_id(self, config: Mapping[str, Any]) -> str:
        """The name by which others know the run of this config: kept when it goes on, new for another config."""
        file = self.path / "run_id"
        return file.read_text(encoding="utf-8").strip() if self.config == config and file.exists() else token_hex(8)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep the folder to this process; the system frees it if the process is killed.

        Raises:
            SettingError: another process has it.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path.with_name(f".{self.path.name}.lock"), timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise SettingError(
                f"{self.path}: another process is at this run; wait for it, or write elsewhere with outputs=…"
            ) from None
        try:
            yield
        finally:
            lock.release()

    def open(self, config: Mapping[str, Any], run_id: str | None = None, device: str = "") -> None:
        """Make the folder ready for a run of `config`: go on with one of the same config, put another aside.

        `environment.json` says where the run is made; it stays out of the config, which decides what is repeated.
        """
        if self.config is not None and self.config != config:
            self._set_aside()
        _write(self.path / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(dict(config))))
        opened = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        write_json(self.path / "environment.json", {"opened": opened, "device": device, **environment()})
        if run_id is not None:
            (self.path / "run_id").write_text(f"{run_id}\n", encoding="utf-8")

    def _set_aside(self) -> None:
        """Keep a run of another config beside this one: a result is never lost."""
        number = 1
        while (target := self.path.with_name(f".{self.path.name}.superseded-{number}")).exists():
            number += 1
        self.path.rename(target)


def find_runs(root: Path, method: str) -> Iterator[tuple[int, RunFolder]]:
    """(seed, run) of every finished run of a method under `outputs/<experiment>/<scale>`."""
    by_seed = {int(path.name.removeprefix("seed=")): RunFolder(path) for path in root.glob(f"{method}/seed=*")}
    for seed, run in sorted(by_seed.items()):
        if run.metrics is not None:
            yield seed, run
