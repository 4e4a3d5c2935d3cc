"""Running the commands: inside this process where only the outcome counts, as real processes where signals do."""

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra

from sysdpo.cli.command import command

ROOT = Path(__file__).resolve().parent.parent.parent


def train_in_process(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """`scripts/train.py` with these arguments; returns the exit status."""

    def task(config: Any) -> None:
        from sysdpo.experiment.run import run

        run(config)

    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    GlobalHydra.instance().clear()
    handlers, level = list(logging.root.handlers), logging.root.level
    try:
        command(task, each_setting_counts=True, together=True)()
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        GlobalHydra.instance().clear()
        logging.root.handlers[:] = handlers  # Hydra's hold this test's captured streams
        logging.root.setLevel(level)
    return 0


def start(script: str, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / script), *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
