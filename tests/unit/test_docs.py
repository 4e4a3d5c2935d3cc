"""The page of systems is what the configs say."""

import subprocess
import sys
from pathlib import Path

from tests.composed import SYSTEMS

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_of_systems_is_up_to_date() -> None:
    """`make draw-systems` would change nothing; every system is there."""
    written = subprocess.run(
        [sys.executable, ROOT / "scripts" / "draw_systems.py"],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    page = (ROOT / "docs" / "systems.md").read_text(encoding="utf-8")
    assert page == written
    assert [line[3:] for line in page.splitlines() if line.startswith("## ")] == SYSTEMS
    assert page.count("```mermaid") == len(SYSTEMS)
