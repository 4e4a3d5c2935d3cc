"""Preference records: every refusal names its row, foreign columns, storage, and the split of the paper's data set."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from sysdpo.data.files import read_rows
from sysdpo.data.ranking import ranked_pairs
from sysdpo.data.records import make_pairs
from sysdpo.data.sources import Recorded, draw_samples, split
from sysdpo.errors import SettingError
from sysdpo.graph import SystemGraph
from tests.systems import FIVE_NODES, TWO_LLM, make_two_llm

GRAPH = SystemGraph(TWO_LLM)
FULL = {"x": "q", "chosen": {"y": "draft", "z": "good"}, "rejected": {"y": "other", "z": "bad"}}
FINAL = {"x": "q", "chosen": "good", "rejected": "bad"}


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


class TestPairs:
    def test_full_rows_serve_direct(self) -> None:
        (pair,) = make_pairs([{**FULL, "topic": "t"}], GRAPH, needs_intermediates=True)
        assert pair.row("chosen") == {"x": "q", "y": "draft", "z": "good"}
        assert pair.row("rejected") == {"x": "q", "y": "other", "z": "bad"}
        assert pair.extra["topic"] == "t"
        assert pair.index == 0

    def test_final_values_alone_serve_sampling(self) -> None:
        (pair,) = make_pairs([FINAL], GRAPH, needs_intermediates=False)
        assert pair.row("chosen") == {"x": "q", "z": "good"}

    @pytest.mark.parametrize("column", ["x", "prompt", "question", "instruction"])
    def test_usual_names_of_the_input_are_found(self, column: str) -> None:
        (pair,) = make_pairs([{column: "q", "chosen": "a", "rejected": "b"}], GRAPH, needs_intermediates=False)
        assert pair.inputs == {"x": "q"}

    def test_templates_over_columns(self) -> None:
        rows = [{"system": "s{}", "question": "q", "chosen": "a", "rejected": "b"}]
        (pair,) = make_pairs(rows, GRAPH, needs_intermediates=False, inputs={"x": "{system}|{question}"})
        assert pair.inputs == {"x": "s{}|q"}
        (pair,) = make_pairs(rows, GRAPH, needs_intermediates=False, inputs={"x": "{question}"})
        assert pair.inputs == {"x": "q"}

    def test_values_of_no_variable_are_left_out(self) -> None:
        row = {"x": "q", "chosen": {"z": "a", "note": 1}, "rejected": {"z": "b"}}
        assert make_pairs([row], GRAPH, needs_intermediates=False)[0].chosen == {"z": "a"}

    @pytest.mark.parametrize(
        ("bad", "direct", "part"),
        [
            ({"x": "q", "rejected": "b"}, False, "row 3 lacks 'chosen'"),
            ({"x": "q", "chosen": "a"}, False, "row 3 lacks 'rejected'"),
            ({"x": "q", "chosen": None, "rejected": "b"}, False, "row 3 lacks 'chosen'"),
            ({"x": None, "chosen": "a", "rejected": "b"}, False, "row 3 lacks 'x'"),
            ({"chosen": "a", "rejected": "b"}, False, "row 3 lacks"),
            (FINAL, True, "row 3: 'chosen' lacks the variable 'y'; SysDPO-Direct needs it"),
            ({**FULL, "rejected": {"z": "bad"}}, True, "row 3: 'rejected' lacks the variable 'y'"),
            ({**FULL, "rejected": {"y": "d"}}, False, "row 3: 'rejected' lacks the variable 'z'"),
            ({**FULL, "chosen": {"y": "d", "z": None}}, False, "row 3: 'chosen' lacks the variable 'z'"),
        ],
    )
    def test_refusals_name_the_row(self, bad: dict[str, Any], direct: bool, part: str) -> None:
        with pytest.raises(SettingError, match=part) as error:
            make_pairs([FULL, FULL, bad], GRAPH, needs_intermediates=direct)
        assert "\n" not in str(error.value)

    def test_an_input_that_no_column_has_names_the_setting(self) -> None:
        with pytest.raises(
            SettingError,
            match=r"row 1 lacks 'x' .its columns: text, chosen, rejected.; set 'dataset\.inputs=\{x:\"\{column\}\"\}'",
        ):
            make_pairs([{"text": "q", "chosen": "a", "rejected": "b"}], GRAPH, needs_intermediates=False)
        with pytest.raises(SettingError, match=r"row 1 lacks the column 'sytem' of dataset\.inputs\.x"):
            make_pairs([FINAL], GRAPH, needs_intermediates=False, inputs={"x": "{sytem}"})
        with pytest.raises(SettingError, match=r"dataset\.inputs.*did you mean 'x'"):
            make_pairs([FINAL], GRAPH, needs_intermediates=False, inputs={"xx": "{x}"})
        with pytest.raises(SettingError, match=r"dataset\.inputs\.x"):
            make_pairs([FINAL], GRAPH, needs_intermediates=False, inputs={"x": "{x"})

    def test_two_finals_need_a_mapping(self) -> None:
        two = SystemGraph({**FIVE_NODES, "note": {"role": "final", "component": "c", "parents": ["plan"]}})
        with pytest.raises(SettingError, match="row 1: 'chosen' must map each of"):
            make_pairs([FINAL], two, needs_intermediates=False)

    def test_an_empty_data_set_is_refused(self) -> None:
        with pytest.raises(SettingError, match="empty"):
            make_pairs([], GRAPH, needs_intermediates=False)


class TestReading:
    def test_jsonl_and_datasets_directory_give_the_same_rows(self, tmp_path: Path) -> None:
        rows = [{**FULL, "n": i} for i in range(3)]
        Dataset.from_list(rows).save_to_disk(str(tmp_path / "stored"))
        assert read_rows(jsonl(tmp_path / "rows.jsonl", rows)) == read_rows(tmp_path / "stored") == rows

    def test_empty_lines_are_no_rows(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.jsonl"
        path.write_text('\n{"x": "é"}\n\n{"x": "b"}', encoding="utf-8")
        assert read_rows(path) == [{"x": "é"}, {"x": "b"}]

    @pytest.mark.parametrize(
        ("content", "part"),
        [
            ("", "empty"),
            ("\n\n", "empty"),
            ('{"x": 1}\n{"x": \n', "rows.jsonl, line 2: not valid JSON"),
            ('{"x": 1}\n\n[1, 2]\n', "rows.jsonl, line 3: a row must be a JSON object"),
            (b'{"x": "\xff\xfe"}\n', "rows.jsonl"),
        ],
    )
    def test_broken_files_are_refused(self, tmp_path: Path, content: str | bytes, part: str) -> None:
        path = tmp_path / "rows.jsonl"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(SettingError, match=part):
            read_rows(path)

    def test_broken_folders_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(SettingError, match="no such file or folder"):
            read_rows(tmp_path / "absent")
        DatasetDict({"train": Dataset.from_list([FINAL])}).save_to_disk(str(tmp_path / "splits"))
        with pytest.raises(SettingError, match="splits train"):
            read_rows(tmp_path / "splits")
        (tmp_path / "other").mkdir()
        with pytest.raises(SettingError, match=r"dataset\.path"):
            read_rows(tmp_path / "other")


class TestSplit:
    def test_the_papers_figures(self) -> None:
        """12,859 rows at a test size of 0.015: 193 for evaluation, 12,666 to train on (section 5.2)."""
        rows = [{"x": str(i), "chosen": "a", "rejected": "b"} for i in range(12_859)]
        data = split(make_pairs(rows, GRAPH, needs_intermediates=False), 0.015, 0, seed=0)
        assert len(data.evaluation) == 193
        assert len(data.train) == 12_666
        assert data.validation == []
        assert {r["x"] for r in data.evaluation}.isdisjoint(p.inputs["x"] for p in data.train)

    def test_counts_and_shuffle(self) -> None:
        rows = [{"x": str(i), "chosen": f"a{i}", "rejected": "b", "topic": i} for i in range(20)]
        pairs = make_pairs(rows, GRAPH, needs_intermediates=False)
        data = split(pairs, 3, 4, seed=1)
        assert (len(data.evaluation), len(data.validation), len(data.train)) == (3, 4, 13)
        order = list(pairs)
        random.Random(1).shuffle(order)
        assert [r["x"] for r in data.evaluation] == [p.inputs["x"] for p in order[:3]]
        assert data.evaluation[0]["chosen"] == {"z": f"a{data.evaluation[0]['topic']}"}
        assert split(pairs, 3, 4, seed=1) == data
        assert split(pairs, 3, 4, seed=2) != data
        assert len(split(pairs, 0, 0, seed=1, limit=5).train) == 5
        shares = split(pairs, 0.15, 0.1, seed=1)
        assert (len(shares.evaluation), len(shares.validation), len(shares.train)) == (3, 2, 15)

    @pytest.mark.parametrize(("evaluation", "validation"), [(20, 0), (0, 20), (0.5, 10), (1, 19)])
    def test_nothing_left_to_train_on_is_refused(self, evaluation: float, validation: int) -> None:
        rows = [{"x": str(i), "chosen": "a", "rejected": "b"} for i in range(20)]
        with pytest.raises(SettingError, match=r"leave nothing of 20 rows"):
            split(make_pairs(rows, GRAPH, needs_intermediates=False), evaluation, validation, seed=0)

    @pytest.mark.parametrize(("evaluation", "validation"), [(-1, 0), (0, -3), (1.5, 0), (0, 2.5)])
    def test_senseless_sizes_are_refused(self, evaluation: float, validation: int) -> None:
        rows = [{"x": str(i), "chosen": "a", "rejected": "b"} for i in range(20)]
        with pytest.raises(SettingError, match=r"dataset\."):
            split(make_pairs(rows, GRAPH, needs_intermediates=False), evaluation, validation, seed=0)


def test_the_orca_sample_loads(shared_data: Path, tmp_path: Path) -> None:
    source = Recorded(
        str(shared_data / "orca_pairs_sample.jsonl"),
        evaluation=0.015,
        validation=8,
        inputs={"x": "{system}\n\n{question}"},
    )
    system = make_two_llm(architecture={"max_position_embeddings": 20_000}, max_new_tokens=4_000)
    data = source.prepare(system, tmp_path, needs_intermediates=False)
    assert len(data.evaluation) == 4  # ceil(0.015 * 240)
    assert len(data.validation) == 8
    assert len(data.train) == 228
    raw = [json.loads(line) for line in (shared_data / "orca_pairs_sample.jsonl").read_text().splitlines()]
    by_index = {p.index: p for p in (*data.train, *data.validation)}
    for index, pair in by_index.items():
        assert pair.inputs["x"] == f"{raw[index]['system']}\n\n{raw[index]['question']}"
        assert pair.chosen == {"z": raw[index]["chosen"]}
        assert pair.rejected == {"z": raw[index]["rejected"]}
    assert all(row["chosen"]["z"] for row in data.evaluation)


class TestRanking:
    def test_pairs_by_gap_without_ties(self) -> None:
        """Scores .2 .9 .2 .5: gaps .7 (1,0), .7 (1,2), .4 (1,3), .3 (3,0), .3 (3,2); (0,2) is a tie."""
        assert ranked_pairs([0.2, 0.9, 0.2, 0.5]) == [(1, 0), (1, 2), (1, 3), (3, 0), (3, 2)]
        assert ranked_pairs([0.2, 0.9, 0.2, 0.5], limit=1) == [(1, 0)]
        assert ranked_pairs([0.2, 0.9, 0.2, 0.5], min_gap=0.35) == [(1, 0), (1, 2), (1, 3)]
        assert ranked_pairs([1.0, 1.0]) == []
        assert len(ranked_pairs([1.0, 2.0, 3.0, 4.0])) == 6


def test_samples_of_a_killed_build_go_on_after_the_last_whole_line(tmp_path: Path) -> None:
    system, prompts = make_two_llm(), [{"x": "a"}, {"x": "b"}]
    files = {name: tmp_path / name / "train.partial.jsonl" for name in ("whole", "killed")}
    whole = draw_samples(system, prompts, 2, 0, 1, files["whole"])
    lines = files["whole"].read_text().splitlines(keepends=True)
    files["killed"].parent.mkdir()
    files["killed"].write_text(lines[0] + lines[1][:-5])
    assert draw_samples(system, prompts, 2, 0, 1, files["killed"]) == whole
    assert files["killed"].read_text() == "".join(lines)
    assert len(lines) == 4
