"""The wheel, installed alone in an environment of its own, works from any folder: the command and the library."""

import ast
import json
import math
import os
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from peft import PeftConfig

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


def test_the_python_example_of_the_readme_runs(installed: Path, tmp_path: Path) -> None:
    """As it stands, but for a shorter training."""
    (example,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL | re.MULTILINE)
    shorter = example.replace("steps=24", "steps=1, batch_size=1")
    shorter = shorter.replace("prompt=prompt)", "prompt=prompt, max_new_tokens=4)")
    assert shorter.count("steps=1") == shorter.count("max_new_tokens=4") == 1
    row = {"prompt": "Name a river.", "chosen": "Rhine", "rejected": "A river is water."}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "example.py").write_text(shorter + "print(sysdpo.__file__)\n")
    done = execute(installed, tmp_path, "example.py")
    assert done.returncode == 0, done.stderr
    drawn, where = done.stdout.splitlines()[-2:]
    assert {"x", "y", "z"} == set(ast.literal_eval(drawn)[0])
    assert str(installed.parent) in where
    run = tmp_path / "run"
    assert json.loads((run / "metrics.jsonl").read_text())["loss"] == pytest.approx(math.log(2), abs=1e-3)
    assert all(PeftConfig.from_pretrained(run / "adapters" / name).r == 16 for name in ("psi1", "psi2"))
