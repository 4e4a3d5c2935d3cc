"""Rows from files of every kind people have, and from files that mean harm."""

import gzip
import json
import random
import resource
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from sysdpo.data.files import fetch_rows, read_rows
from sysdpo.data.sources import Recorded
from sysdpo.data.storage import fingerprint
from sysdpo.errors import SettingError, one_line, plain
from tests.systems import make_two_llm

ROWS = [{"prompt": f"q{i}, “ä”\n", "chosen": 'a;\t"b"', "rejected": ""} for i in range(3)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def test_one_content_in_every_kind_of_file(tmp_path: Path) -> None:
    files: dict[str, bytes] = {
        "a.jsonl": LINES.encode(),
        "b.jsonl": LINES.replace("\n", "\r\n").encode(),
        "c.jsonl": b"\xef\xbb\xbf" + LINES.encode(),
        "d.jsonl": LINES.encode("utf-16"),
        "e.jsonl": LINES.encode("utf-16-be"),
        "f.jsonl": LINES.encode("utf-32"),
        "g.json": json.dumps(ROWS).encode(),
        "h.json": json.dumps(ROWS, indent=2).encode("utf-16"),
        "i.jsonl": json.dumps(ROWS).encode(),  # an array under the other name
        "j.json": LINES.encode(),
        "k.jsonl.gz": gzip.compress(LINES.encode()),
        "l": LINES.encode(),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    table = Dataset.from_list(ROWS)
    table.to_csv(tmp_path / "m.csv", index=False)
    table.to_csv(tmp_path / "n.tsv", index=False, sep="\t")
    (tmp_path / "o.csv").write_text(
        (tmp_path / "m.csv")
        .read_text()
        .replace("prompt,chosen,rejected", "prompt;chosen;rejected")
        .replace(',"a;', ';"a;')
        .replace('""",', '""";')
    )
    table.to_parquet(tmp_path / "p.parquet")
    table.save_to_disk(str(tmp_path / "q"))
    DatasetDict({"train": table, "test": table.select([0])}).save_to_disk(str(tmp_path / "r"))
    read = {
        path.name: read_rows(path, split="train" if path.name == "r" else None) for path in sorted(tmp_path.iterdir())
    }
    assert all(rows == ROWS for rows in read.values()), [name for name, rows in read.items() if rows != ROWS]
    assert len({fingerprint(rows) for rows in read.values()}) == 1


def test_a_folder_of_shards(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for i, row in enumerate(ROWS):
        Dataset.from_list([row]).to_parquet(tmp_path / "data" / f"train-0000{i}-of-00003.parquet")
    (tmp_path / "README.md").write_text("about")
    assert read_rows(tmp_path) == ROWS
    Dataset.from_list(ROWS[:1]).to_parquet(tmp_path / "data" / "test-00000-of-00001.parquet")
    with pytest.raises(SettingError, match=r"the splits test, train; choose one with dataset\.split"):
        read_rows(tmp_path)
    assert read_rows(tmp_path, split="train") == ROWS
    assert read_rows(tmp_path, split="test") == ROWS[:1]
    with pytest.raises(SettingError, match=r"dataset\.split=dev: .* has test, train"):
        read_rows(tmp_path, split="dev")
    (tmp_path / "data" / "train-00001-of-00003.parquet").unlink()
    with pytest.raises(SettingError, match="holds 2 of 3 shards; fetch the others"):
        read_rows(tmp_path, split="train")
    file = tmp_path / "data" / "test-00000-of-00001.parquet"
    assert read_rows(file, split="test") == ROWS[:1]
    for path in (file, Path(shutil.copy(file, tmp_path / "one.parquet"))):
        with pytest.raises(SettingError, match=r"dataset\.split=dev: .* is one file, of no such split"):
            read_rows(path, split="dev")
    (tmp_path / "one.parquet").unlink()
    (tmp_path / "more.jsonl").write_text(LINES)
    with pytest.raises(SettingError, match=r"several kinds \(\.jsonl, \.parquet\)"):
        read_rows(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("a.jsonl", "[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ("b.jsonl", '{"x": ' + "[" * 100_000 + "]" * 100_000 + "}", "line 1: is nested too deeply"),
        ("c.jsonl", '{"x": ' + "9" * 5_000 + "}", "line 1: holds a number that is too long"),
        ("d.jsonl", LINES + '{"prompt": "' + "a" * 20_000_000 + '"}', "line 4: is longer than 16 MB"),
        ("e.jsonl", "[1, 2]\n[3]\n", "a row must be a JSON object"),
        ("f.json", '{"data": [\n{"x": 1}]}', "one object a line, or one array"),
        ("g.jsonl", b'{"x": "\xe4"}', "not UTF-8; save it as UTF-8"),
        ("h.csv", "prompt,chosen\na,b,c\n", "row 1: has 3 cells where the first line names 2"),
        ("i.csv", "a,a\nb,c\n", "two columns have one name"),
        ("j.csv", 'a,b\n"x"y,z\n', "a quote inside a text"),
        ("k.parquet", "PAR1 and no more", "no whole Parquet file"),
        ("l.jsonl.gz", "no gzip", "not valid JSON"),
        ("m.jsonl.gz", gzip.compress(LINES.encode())[:-20], "no whole gzip file"),
        ("n.jsonl", b"PK\x03\x04", "is an archive"),
        ("o.zip", b"PK\x03\x04", "is an archive"),
        ("p.jsonl.bz2", b"BZh91AY&SY", "is an archive"),
        ("q.jsonl.xz", b"\xfd7zXZ\x00", "is an archive"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 40 else "",
)
def test_broken_and_hostile_files_are_one_line(tmp_path: Path, name: str, content: str | bytes, part: str) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SettingError) as error:
        read_rows(path)
    assert part in str(error.value)
    assert len(str(error.value)) < 400


def test_deep_rows_that_parse_are_refused_by_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"x": "q", "chosen": "a", "rejected": "b", "note": ' + "[" * 200 + "]" * 200 + "}\n")
    with pytest.raises(SettingError, match="row 1: 'note' is nested more than 64 deep"):
        Recorded(str(path)).read(make_two_llm(), False)


def test_a_long_text_takes_no_memory_worth_speaking_of(tmp_path: Path) -> None:
    """15 MB of prompt: tokens would take 200 times as much."""
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"x": "ab " * 5_000_000, "chosen": "a", "rejected": "b"}))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(SettingError, match=r"row 1: a prompt of 15000000 characters"):
        Recorded(str(path)).read(make_two_llm(), False)
    (pair,) = Recorded(str(path), overlong="cut").read(make_two_llm(), False).pairs
    assert len(pair.inputs["x"]) < 512
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert sys.platform != "linux" or grown < 1_500_000  # kB


def test_broken_datasets_folders_are_one_line(tmp_path: Path) -> None:
    Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "whole"))
    arrow = next((tmp_path / "whole").glob("*.arrow"))
    content = arrow.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"no arrow"):
        arrow.write_bytes(damaged)
        with pytest.raises(SettingError, match=r"dataset\.path=.*whole"):
            read_rows(tmp_path / "whole")
    arrow.unlink()
    with pytest.raises(SettingError, match=r"dataset\.path=.*whole"):
        read_rows(tmp_path / "whole")


def test_a_part_of_a_hub_s_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(*arguments: Any, **settings: Any) -> Dataset:
        asked.append((arguments, settings))
        if settings["split"] == "train":
            raise ValueError("Unknown split \"train\". Should be one of ['train_prefs'].")
        return Dataset.from_list(ROWS)

    monkeypatch.setattr("sysdpo.data.files.load_dataset", load)
    assert Recorded(hub="o/n", config="c", split="train_prefs").rows() == ROWS
    assert asked == [(("o/n", "c"), {"split": "train_prefs"})]
    with pytest.raises(SettingError, match=r"dataset\.hub='o/n'.*Should be one of \['train_prefs'\].*dataset\.split"):
        fetch_rows("o/n")


def test_a_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(LINES)
    first = Recorded(str(tmp_path / "a.jsonl")).fingerprint()
    (tmp_path / "b.jsonl").write_text(LINES + "\n\n")
    assert Recorded(f"{tmp_path}/./b.jsonl").fingerprint() == first
    (tmp_path / "a.jsonl").write_text(LINES.replace("q1", "q9"))
    assert Recorded(str(tmp_path / "a.jsonl")).fingerprint() != first
    assert fingerprint(ROWS[::-1]) != first
    pictures = [{"z": [b"\x00" * 9]}, {"z": [b"\x01" * 9]}]
    assert len({fingerprint([row]) for row in pictures}) == 2


def test_nothing_acts_on_the_terminal() -> None:
    hostile = "a\x1b[31mb\x9b1mc\x08\x00d\u202ee\u2066\ud83df\r\ng"
    assert one_line(SettingError(hostile)) == "a\ufffd[31mb\ufffd1mc\ufffd\ufffdd\ufffde\ufffd\ufffdf g"
    alphabet = [chr(i) for i in (*range(0x20), 0x7F, *range(0x80, 0xA0))] + ["\x1b[", "\x1b]", "é", "漢", "👩‍👩‍👧"]
    for seed in range(200):
        text = "".join(random.Random(seed).choices(alphabet, k=30))
        assert all(c.isprintable() or c in "\n\t\u200d" for c in plain(text))
