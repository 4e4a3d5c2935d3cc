"""`make rehearse`: the commands of a table at `scale=paper`, with everything small, and a look at what came of them."""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sysdpo.errors import SettingError
from sysdpo.rehearsal.stand_ins import KEY, judge_server, make_stand_ins
from sysdpo.runs.files import remove

KEY_NAME = "OPENAI_API_KEY"
OF_A_RUN = ("evaluate",)
"""Commands that take a run's folder, and every setting from there."""


def rehearse(config: DictConfig) -> str:
    """Carry out `commands` of `conf/rehearsal/`, each with `scale=paper` and the overrides, as processes of their own.

    Returns:
        The report of the rehearsal: what was run, how long it took, where the page is.

    Raises:
        SystemExit: a command failed, or a row or figure of the report is missing.
    """
    outputs = Path(config.outputs).resolve()
    folder = outputs / config.experiment
    _clear(folder, outputs / "stand_ins")
    began = time.monotonic()
    make_stand_ins(outputs / "stand_ins")
    with judge_server() as url:
        given = OmegaConf.merge(config, {"outputs": str(outputs), "judge_url": url})
        content: dict[str, Any] = OmegaConf.to_container(given, resolve=True)  # type: ignore[assignment]
        common = [f"experiment={config.experiment}", "scale=paper", f"outputs={outputs}"]
        small = [f"{key}={_text(value)}" for key, value in content["overrides"].items()]
        print(f"scale=paper, but for {len(small)} overrides:", *(f"  {each}" for each in small), sep="\n", flush=True)
        for line in content["commands"]:
            name, *own = shlex.split(line)
            kept = name in OF_A_RUN
            said = "" if kept else f" {shlex.join(common)} and the overrides"
            print(f"\n$ {KEY_NAME}={KEY} sysdpo {line}{said}", flush=True)
            arguments = own if kept else [*own, *common, *small]
            status = _run(name, arguments, hub=outputs / "stand_ins" / "hub")
            if status:
                raise SystemExit(f"error: {config.experiment}: `sysdpo {line}` ended with status {status}")
    report = folder / "paper" / "report"
    if lacking := missing(report, content["drawn"]):
        raise SystemExit(f"error: {config.experiment}: {'; '.join(lacking)} ({report})")
    return f"{config.experiment} at scale=paper: rehearsed in {time.monotonic() - began:.0f} s; {report / 'index.html'}"


def missing(report: Path, figures: Sequence[str]) -> list[str]:
    """What a report lacks, in words: rows without a finished run, figures that were not drawn."""
    if not (report / "index.html").is_file():
        return ["there is no report"]
    table: Mapping[str, Any] = json.loads((report / "table.json").read_text(encoding="utf-8"))
    rows: Sequence[Mapping[str, Any]] = table["rows"]
    lacking = [f"row {row['method']} has no finished run" for row in rows if not row["seeds"]]
    drawn = {path.stem for path in (report / "figures").glob("*.png")}
    return lacking + [f"{name} was not drawn" for name in figures if name not in drawn]


def _run(command: str, arguments: Sequence[str], hub: Path) -> int:
    """Another process, as a user's: what this one has loaded or set is not there.

    Its cache of the model hub is empty and stays so: it does the same on every machine.
    """
    environment = {**os.environ, KEY_NAME: KEY, "HF_HOME": str(hub), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-m", "sysdpo", command, *arguments], env=environment, check=False
    ).returncode


def _text(value: Any) -> str:
    """A value as Hydra reads it on a command line."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_text(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_text, value)) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _clear(*folders: Path) -> None:
    """Remove what an earlier rehearsal left, and nothing that is none of its own."""
    for folder in folders:
        if folder.exists() and not (folder.parent / MARK).exists():
            raise SettingError(f"outputs={folder.parent}: {folder.name} there is of no rehearsal; name another folder.")
        remove(folder)
    folders[0].parent.mkdir(parents=True, exist_ok=True)
    (folders[0].parent / MARK).touch()


MARK = ".rehearsal"
"""The file that says that a folder is a rehearsal's."""
