"""The README draws the systems as the configs describe them."""

import re
import subprocess
import sys
from pathlib import Path

from tests.composed import SYSTEMS

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def draw(file: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(ROOT / "scripts" / "draw_systems.py"), str(file)]
    return subprocess.run(command, env={"PYTHONPATH": str(ROOT), "PATH": ""}, capture_output=True, text=True)


def test_the_readme_s_systems_are_up_to_date(tmp_path: Path) -> None:
    """`make draw-systems` would change nothing, restores what is lost, leaves the rest alone; no system is missing."""
    before, rest = README.split("<!-- systems -->")
    drawn, after = rest.split("<!-- /systems -->")
    assert re.findall(r"^\*\*(\w+)\*\*: ", drawn, flags=re.MULTILINE) == SYSTEMS
    assert drawn.count("```mermaid") == len(SYSTEMS)
    file = tmp_path / "README.md"
    file.write_text(f"{before}<!-- systems -->\nlost<!-- /systems -->{after}", encoding="utf-8")
    assert draw(file).returncode == 0
    assert file.read_text(encoding="utf-8") == README


def test_a_file_without_the_marks_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "other.md"
    file.write_text("<!-- systems -->\n")
    done = draw(file)
    assert done.returncode == 2
    assert "needs <!-- systems --> and <!-- /systems --> once each" in done.stderr
    assert file.read_text() == "<!-- systems -->\n"
