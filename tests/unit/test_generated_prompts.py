"""Prompts written by a language model: what is asked for, kept, dropped, paid for and resumed, on a scripted server."""

import importlib.util
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sysdpo.errors import SettingError
from sysdpo.evaluation.judges.endpoint import MalformedAnswerError
from sysdpo.tasks.progression.generated_prompts import Collection, Slot, fingerprint, is_valid, make_slots, parse
from sysdpo.tasks.progression.prompts import read_prompts
from tests.integration.test_judge_endpoint import KEY, Handler, Server, status

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def loopback(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("TEST_JUDGE_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("generate_prompts", ROOT / "scripts" / "generate_prompts.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["generate_prompts"] = module
    spec.loader.exec_module(module)
    return module


def counter() -> Iterator[int]:
    number = 0
    while True:
        yield (number := number + 1)


def writer(numbers: Iterator[int], extra: list[str]) -> Any:
    """Answers with as many new prompts as were asked for, and with `extra`, in a fence as some models do."""

    def reply(handler: Handler) -> None:
        asked = handler.request_body["messages"][1]["content"]
        count = int(asked.split("Write ")[1].split()[0])
        texts = [*extra, *(f"Three images of scene {next(numbers)} with more and more of it." for _ in range(count))]
        content = f"```json\n{json.dumps(texts)}\n```"
        handler.reply(200, {"choices": [{"message": {"role": "assistant", "content": content}}]})

    return reply


def arguments(loopback: Server, output: Path, *more: str) -> list[str]:
    return [
        *(
            "--model",
            "scripted",
            "--base-url",
            loopback.url,
            "--api-key-env",
            "TEST_JUDGE_KEY",
            "--output",
            str(output),
        ),
        *("--attributes", "fog", "rain", "--styles", "prompt", "hypothesis", "--per-style", "5", "--batch", "3"),
        *("--concurrency", "1", "--max-attempts", "2", *more),
    ]


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_slot_is_filled_and_nothing_is_paid_for_twice(
    loopback: Server,
    script: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "prompts.jsonl"
    loopback.default = writer(counter(), ["No.", "three IMAGES of scene 1, with more and more of it!"])
    script.main(arguments(loopback, output, "--yes"))
    found = rows(output)
    assert {(r["attribute"], r["style"]) for r in found} == {
        (a, s) for a in ("fog", "rain") for s in ("prompt", "hypothesis")
    }
    assert len(found) == len({fingerprint(r["x"]) for r in found}) == 20
    assert "invalid" in capsys.readouterr().out
    asked = len(loopback.requests)
    script.main(arguments(loopback, output, "--yes"))
    assert len(loopback.requests) == asked


def test_killed_half_way_only_the_rest_is_asked_for(loopback: Server, script: Any, tmp_path: Path) -> None:
    output = tmp_path / "prompts.jsonl"
    good = writer(counter(), [])
    loopback.script = [good, good, good, status(401)]
    with pytest.raises(SystemExit) as stop:
        script.main(arguments(loopback, output, "--yes"))
    assert stop.value.code == 2
    kept = len(rows(output))
    assert kept == 3 + 2 + 3  # two requests of the first slot, one of the second
    with output.open("a") as file:
        file.write('{"x": "torn')
    loopback.default, before = good, len(loopback.requests)
    script.main(arguments(loopback, output, "--yes"))
    assert len(rows(output)) == 20
    # 2 for the second slot, 3 + 2 for each of the other two
    assert [int(r["messages"][1]["content"].split("Write ")[1].split()[0]) for r in loopback.requests[before:]] == [
        2,
        3,
        2,
        3,
        2,
    ]


def test_the_price_is_asked_for_and_bad_settings_refused(
    loopback: Server,
    script: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = tmp_path / "prompts.jsonl"
    monkeypatch.setattr("sys.stdin", None)
    for more, part in (
        (("--per-style", "5"), "--yes"),
        (("--attributes", "fogg"), "did you mean 'fog'"),
        (("--batch", "0"), "at least 1"),
    ):
        with pytest.raises(SystemExit) as stop:
            script.main(arguments(loopback, output, *more))
        assert stop.value.code == 2
        assert part in capsys.readouterr().err
    assert loopback.requests == []
    assert not output.exists()


def test_a_model_that_repeats_itself_ends_with_what_lacks(
    loopback: Server, script: Any, tmp_path: Path, capsys: Any
) -> None:
    loopback.default = writer(iter([1] * 10_000), [])
    with pytest.raises(SystemExit):
        script.main(arguments(loopback, tmp_path / "prompts.jsonl", "--yes", "--rounds", "2"))
    assert "19 prompts are still lacking" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ("Three images of a lake with more fog.", True),
        ("Show a SERIES of a harbour as rain sets in.", True),
        ("Fog.", False),
        ("A lake in the fog, and nothing else to see.", False),
        ("Three images of {place} with more fog.", False),
        ("three " * 100, False),
    ],
)
def test_what_counts_as_a_prompt(text: str, valid: bool) -> None:
    assert is_valid(text) == valid


@pytest.mark.parametrize("content", ["no list", '["a", 1]', '{"a": 1}', "[1"])
def test_an_answer_that_is_no_list_of_texts_is_asked_for_again(content: str) -> None:
    with pytest.raises(MalformedAnswerError):
        parse({"choices": [{"message": {"content": content}}]})


def test_a_file_of_prompts_takes_the_place_of_templates(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    lines = [
        {"x": f"{a} {s} {i}", "attribute": a, "style": s}
        for a in ("fog", "rain")
        for s in ("prompt", "hypothesis")
        for i in range(3)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    train, evaluation = read_prompts(str(path), ["rain"], 3, 2)
    assert [p.x for p in train] == ["rain prompt 0", "rain hypothesis 0", "rain prompt 1"]
    assert [p.x for p in evaluation] == ["rain hypothesis 1", "rain prompt 2"]
    with pytest.raises(SettingError, match="has 6 prompts of 'fog' where 5"):
        read_prompts(str(path), ["fog"], 5, 2)


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"x": "a"}\n')
    with pytest.raises(SettingError, match="line 1"):
        Collection.open(path, 1)
    assert make_slots(["fog"], ["prompt"]) == [Slot("fog", "prompt")]
