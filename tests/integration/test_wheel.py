"""The wheel, installed alone in an environment of its own, works from any folder: the command and the library."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`bin/` of an environment that holds the wheel; what it depends on is read from this one's packages."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*build, str(folder), str(ROOT)], check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    environment = folder / "environment"
    venv.create(environment, with_pip=False)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(environment), "platbase": str(environment)}))
    target = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(packages), str(wheel)]
    subprocess.run(target, check=True, capture_output=True)
    # a path file of a path file is not read: this checkout stays out of sight
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return environment / "bin"


def execute(installed: Path, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    quiet = {"PATH": os.environ["PATH"], "HOME": str(folder), "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    cache = {name: os.environ[name] for name in ("SYSDPO_CACHE",) if name in os.environ}
    return subprocess.run(
        [str(installed / "python"), *command], cwd=folder, env={**quiet, **cache}, capture_output=True, text=True
    )


def test_the_command_trains_and_reports_from_any_folder(installed: Path, tmp_path: Path) -> None:
    where = execute(installed, tmp_path, "-c", "import sysdpo; print(sysdpo.__file__)")
    assert str(installed.parent) in where.stdout, where.stderr
    for command in ("train", "report"):
        done = execute(installed, tmp_path, "-m", "sysdpo", command, "experiment=table2", "scale=smoke")
        assert done.returncode == 0, done.stderr
    run = tmp_path / "outputs/table2/smoke/sysdpo_sampling/seed=0"
    assert "wr_prompted" in json.loads((run / "metrics.json").read_text())
    assert (tmp_path / "outputs/table2/smoke/report/table.md").exists()


def test_an_unknown_command_is_one_line(installed: Path, tmp_path: Path) -> None:
    done = execute(installed, tmp_path, "-m", "sysdpo", "trian")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: sysdpo: unknown 'trian'; did you mean 'train'\?.*\n", done.stderr)
