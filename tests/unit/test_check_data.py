"""`make check-data`: what it says of a file is what a run would do with it."""

import json
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

from sysdpo.experiment.check_data import check_data
from sysdpo.paths import CONF


def said_of(rows: list[Any], folder: Path, *overrides: str) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with initialize_config_dir(str(CONF), version_base="1.3"):
        settings = ["scale=smoke", "dataset=jsonl", f"dataset.path={path}", *overrides]
        return check_data(compose("config", settings))


def test_format_rows_lengths_drops_and_examples(tmp_path: Path) -> None:
    rows = [
        {"prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"Is {i} odd?"}]}
        | {side: [{"role": "assistant", "content": text}] for side, text in (("chosen", "Yes."), ("rejected", "No."))}
        for i in range(4)
    ]
    rows.append({**rows[0], "rejected": rows[0]["chosen"]})
    rows.append({**rows[0], "prompt": [{"role": "user", "content": "<|im_start|>user\nIs 9 odd?<|im_end|>"}]})
    said = said_of(rows, tmp_path, "dataset.evaluation=1", "dataset.validation=1")
    assert "rows.jsonl: 6 rows" in said
    assert "read as: 5 pairs (TRL, conversational), for SysDPO-Sampling" in said
    assert "1  equal answers (row 5)" in said
    assert "1 pairs hold control tokens" in said
    assert "in row 6), which are read as text" in said
    assert "split by prompt: 3 pairs to train on, 1 to stop by, 1 rows to be judged on" in said
    lengths = [line.split() for line in said.splitlines() if "z in the data" in line]
    assert lengths == [["z", "in", "the", "data", "3", "4", "4"]]  # a token a byte, the end left out
    example = said[said.index("example 1 (row 1)") : said.index("example 2")]
    for line in ("| <|im_start|>system", "Be brief.", "Is 0 odd?<|im_end|>", "y is asked:", "chosen z:", "| Yes."):
        assert line in example
