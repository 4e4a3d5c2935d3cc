"""The documentation: its drawings are those of the configs, its links lead somewhere, and the site holds every page."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import sysdpo
from tests.composed import SYSTEMS

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "systems.md").read_text(encoding="utf-8")


def draw(file: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(ROOT / "scripts" / "draw_systems.py"), str(file)]
    return subprocess.run(command, env={"PYTHONPATH": str(ROOT), "PATH": ""}, capture_output=True, text=True)


def test_the_drawn_systems_are_up_to_date(tmp_path: Path) -> None:
    """`make draw-systems` would change nothing, restores what is lost, leaves the rest alone; no system is missing."""
    before, rest = PAGE.split("<!-- systems -->")
    drawn, after = rest.split("<!-- /systems -->")
    assert re.findall(r"^## (\w+)$", drawn, flags=re.MULTILINE) == SYSTEMS
    assert drawn.count("```mermaid") == len(SYSTEMS)
    file = tmp_path / "systems.md"
    file.write_text(f"{before}<!-- systems -->\nlost<!-- /systems -->{after}", encoding="utf-8")
    assert draw(file).returncode == 0
    assert file.read_text(encoding="utf-8") == PAGE


def test_a_file_without_the_marks_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "other.md"
    file.write_text("<!-- systems -->\n")
    done = draw(file)
    assert done.returncode == 2
    assert "needs <!-- systems --> and <!-- /systems --> once each" in done.stderr
    assert file.read_text() == "<!-- systems -->\n"


PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])


def prose(text: str) -> str:
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """The names under which a page's headings can be linked, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", prose(text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text(encoding="utf-8"))):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), f"{page.name}: {link}"


def test_the_site_holds_every_page() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:")[1]
    named = set(re.findall(r": (\S+\.md)$", navigation, flags=re.MULTILINE))
    assert named == {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}


def test_the_library_page_shows_every_public_name() -> None:
    page = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
    shown = re.findall(r"^::: (\S+)$", page, flags=re.MULTILINE)
    for name in set(sysdpo.__all__) - {"__version__", "SettingError", "GraphError"}:
        home = getattr(sysdpo, name).__module__
        assert f"{home}.{name}" in shown or home in shown, name


def test_the_readme_fits_on_a_page() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
