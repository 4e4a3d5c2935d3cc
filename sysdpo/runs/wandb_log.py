"""Weights & Biases beside the run folder: one run a job, offline unless asked otherwise."""

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sysdpo.errors import SettingError, nearest
from sysdpo.runs.folder import RunFolder, read_picture

LONGEST = 128
"""Characters of a name that W&B takes."""
MODES = ("offline", "online", "disabled")


class Logger(Protocol):
    """Follows a run while it goes on; `metrics.jsonl` is written with or without one."""

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Take one line of `metrics.jsonl`: `step`, and `component` where they are trained one after the other."""
        ...

    def finish(self, succeeded: bool = True) -> None:
        """End the run, after a crash too; nothing is logged after it."""
        ...


class Silent:
    """No logger."""

    def log(self, metrics: Mapping[str, Any]) -> None:
        pass

    def finish(self, succeeded: bool = True) -> None:
        pass


class WandbLogger:
    """A W&B run of its own for one row of a table under one seed.

    Args:
        project: in W&B; `mode`: offline, online (needs an account) or disabled.
        folder: offline runs lie under `folder/wandb`.
        group: what the dashboard groups by; `tags`: what it filters by.
        run_folder: its figures, samples and adapters become part of the run when it ends well.
        config: the resolved config.
        run_id: by which W&B knows the run: one that goes on after an interruption is the same run; None: a new one.
        data: folder or file of the data set, which becomes an artifact; one larger than `max_artifact_mb` (MB of
            10^6 bytes) by its path only.
    """

    def __init__(
        self,
        project: str,
        mode: str,
        folder: str | Path,
        group: str,
        tags: Sequence[str],
        run_folder: str | Path,
        config: Mapping[str, Any],
        run_id: str | None = None,
        data: str | Path | None = None,
        max_artifact_mb: float = 200,
    ) -> None:
        if mode not in MODES:
            raise SettingError(f"logger.mode: {nearest(mode, MODES)}")
        os.environ.setdefault("WANDB_SILENT", "true")
        _leave_the_parents_service()
        import wandb

        self.wandb, self.files = wandb, RunFolder(Path(run_folder))
        self.data, self.max_artifact_mb = Path(data) if data else None, max_artifact_mb
        Path(folder).mkdir(parents=True, exist_ok=True)
        start = partial(
            wandb.init,
            project=project,
            mode=mode,  # type: ignore[arg-type]
            dir=str(folder),
            group=group,
            name=_short("/".join(self.files.path.parts[-2:])),
            id=run_id,
            resume="allow" if run_id else None,
            tags=list(tags),
            config=dict(config),
            reinit="create_new",  # a multirun has several jobs in one process: never two in one run
            settings=wandb.Settings(console="off"),
        )
        self.run = _started(start)
        # not W&B's own counter: components trained one after the other each count from 1
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def log(self, metrics: Mapping[str, Any]) -> None:
        prefix = f"{metrics['component']}/" if "component" in metrics else ""
        rest = {f"{prefix}{key}": value for key, value in metrics.items() if key not in ("step", "component")}
        self.run.log({"step": metrics["step"], **rest})

    def finish(self, succeeded: bool = True) -> None:
        exit_code = 1
        try:
            if succeeded:
                self._save_results()
                exit_code = 0
        finally:
            self.run.finish(exit_code=exit_code)

    def _save_results(self) -> None:
        file = self.files.path / "metrics.json"
        results = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}  # damaged: no success
        for name, value in results.items():
            self.run.summary[name] = value
        samples = self.files.samples
        if samples:
            columns: list[Any] = list(samples[0])
            rows = [[self._value(record.get(column), column) for column in columns] for record in samples]
            self.run.log({"samples": self.wandb.Table(columns=columns, data=rows)})
        self._save_credit()
        adapters = self.files.path / "adapters"
        if adapters.is_dir():
            name = f"{self.run.group}-{'-'.join(self.files.path.parts[-2:])}-adapters"
            artifact = self.wandb.Artifact(_artifact_name(name), type="model")
            artifact.add_dir(str(adapters))
            self.run.log_artifact(artifact)
        if self.data and self.data.exists():
            self._save_data(self.data)

    def _save_credit(self) -> None:
        """Who earned it: each component's mean share of the margin by prompt family, as a table and a bar chart."""
        shares: dict[tuple[str, str], list[float]] = {}
        for record in self.files.credit:
            for name, nats in record["components"].items():
                for family in dict.fromkeys((str(record["family"]), "all")):
                    shares.setdefault((name, family), []).append(float(nats))
        if not shares:
            return
        rows: list[list[Any]] = [
            [f"{component}: {family}", component, family, sum(own) / len(own), len(own)]
            for (component, family), own in sorted(shares.items())
        ]
        table = self.wandb.Table(columns=["who", "component", "family", "nats", "pairs"], data=rows)
        self.run.log({"who earned it": self.wandb.plot.bar(table, "who", "nats", title="Who earned it")})
        for _, component, family, nats, _ in rows:
            self.run.summary[f"credit/{component}/{family}"] = nats

    def _save_data(self, path: Path) -> None:
        artifact = self.wandb.Artifact(_artifact_name(path.name), type="dataset")
        files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
        if sum(file.stat().st_size for file in files) > self.max_artifact_mb * 1e6:
            artifact.add_reference(path.resolve().as_uri(), checksum=False)
        elif path.is_dir():
            artifact.add_dir(str(path))
        else:
            artifact.add_file(str(path))
        self.run.log_artifact(artifact)

    def _value(self, value: Any, name: str) -> Any:
        """A cell of the sample table: file names of images become one strip of them, other lists one text."""
        values = value if isinstance(value, list) else [value]
        files = [file for item in values if (file := self.files.image(item, name))]
        if values and len(files) == len(values):
            images = [image for file in files if (image := read_picture(file)) is not None]
            if len({image.height for image in images}) != 1:  # broken, or no strip
                return "\n".join(map(str, values))
            return self.wandb.Image(np.concatenate([np.asarray(image) for image in images], axis=1))
        return "\n".join(map(str, value)) if isinstance(value, list) else value


def _leave_the_parents_service() -> None:
    """W&B serves all of a process by one helper, whose address child processes inherit. A killed child's run would stay
    open there for as long as the parent lives, and could not go on: each process has a helper of its own."""
    address = os.environ.get("WANDB_SERVICE", "")  # version-pid-kind-path
    if address.split("-")[1:2] != [str(os.getpid())]:
        os.environ.pop("WANDB_SERVICE", None)


def _started(start: Callable[[], Any], tries: int = 5) -> Any:
    """W&B's run; a moment later where the folder of one that was just killed still has this second's name."""
    for left in reversed(range(tries)):
        try:
            return start()
        except Exception as error:
            if not left or "in use" not in str(error):
                raise
            time.sleep(1.1)
    raise AssertionError


def _short(name: str) -> str:
    """At most 128 characters, which is W&B's limit; a digest tells apart what is left out."""
    digest = hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()[:8]
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 9]}-{digest}"


def _artifact_name(name: str) -> str:
    """W&B allows letters, digits, `-`, `_` and `.`, 128 in all; the end of a name tells runs apart."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", name)[-LONGEST:]
