"""The README's Python example runs as it stands, on a shorter training."""

import json
import re
from pathlib import Path

import pytest
from peft import PeftConfig

ROOT = Path(__file__).resolve().parents[2]


def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL | re.MULTILINE)
    shorter = example.replace("steps=24", "steps=1, batch_size=1")
    shorter = shorter.replace("prompt=prompt)", "prompt=prompt, max_new_tokens=4)")
    assert shorter.count("steps=1") == shorter.count("max_new_tokens=4") == 1
    row = {"prompt": "Name a river.", "chosen": "Rhine", "rejected": "A river is water."}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row) + "\n")
    monkeypatch.chdir(tmp_path)
    exec(shorter, {})
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text())["loss"] == pytest.approx(0.6931, abs=1e-3)
    assert all(PeftConfig.from_pretrained(tmp_path / "run" / "adapters" / name).r == 16 for name in ("psi1", "psi2"))
