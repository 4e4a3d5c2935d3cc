"""`logger=jsonl`: the lines of all runs of a study in one file, for `tail -f`, jq or pandas."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sysdpo.runs.files import append_line
from sysdpo.runs.folder import RunFolder


class JsonLogger:
    """Appends one line for each logged step, and one with the results when a run has ended.

    Args:
        path: of the file; several processes may append to it at once.
        run_folder: its path beside the file's folder names the run in every line.
        config: the resolved config, which is already in the run folder and not repeated; so is `data`.
    """

    def __init__(self, path: str | Path, run_folder: str | Path, config: Mapping[str, Any], **_: Any) -> None:
        self.path, self.files = Path(path), RunFolder(Path(run_folder))
        parent, own = self.path.parent, self.files.path
        self.name = str(own.relative_to(parent)) if own.is_relative_to(parent) else str(own)

    def log(self, metrics: Mapping[str, Any]) -> None:
        self._append(metrics)

    def finish(self, succeeded: bool = True) -> None:
        self._append({"finished": succeeded, **((self.files.metrics or {}) if succeeded else {})})

    def _append(self, content: Mapping[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        append_line(self.path, {"run": self.name, **content})  # in one piece, whatever its length
