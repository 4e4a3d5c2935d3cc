"""A judge's server that is broken or hostile costs a row or a line, never memory, the key or a paid answer."""

import gzip
import json
import resource
import signal
from pathlib import Path
from typing import Any

import pytest

from sysdpo.errors import SettingError
from sysdpo.evaluation.judges.cache import AnnotationCache
from tests.integration.test_judge_endpoint import (  # noqa: F401  (the fixture is used by name)
    KEY,
    Handler,
    Reply,
    body,
    completion,
    examples,
    expected,
    first_token,
    judge_at,
    server,
    status,
    success,
    top_logprobs,
)


def raw(content: bytes, **headers: str) -> Reply:
    return lambda handler: handler.reply(200, content, {name.replace("_", "-"): v for name, v in headers.items()})


BOMB = gzip.compress(b" " * 400_000_000, compresslevel=1)
HUGE_NUMBER = json.dumps(completion(first_token({"m": -0.1, "M": -2.0}))).replace("-0.1", "-" + "9" * 400).encode()
HOSTILE: dict[str, Reply] = {
    "nested": raw(b"[" * 100_000 + b"]" * 100_000),
    "nested objects": raw(b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
    "400 digits": raw(HUGE_NUMBER),
    "5,000 digits": raw(b'{"choices": ' + b"9" * 5000 + b"}"),
    "odd charset": raw(b"\xff\xfe{\x00}", Content_Type="application/json; charset=klingon"),
    "gzip bomb": raw(BOMB, Content_Encoding="gzip"),
    "no gzip": raw(b"{}", Content_Encoding="gzip"),
    "unknown encoding": raw(b"{}", Content_Encoding="br"),
    "too large": raw(b" " * 9_000_000),
    "list": body([]),
    "null": body(None),
    "NaN": body(completion(first_token({"m": float("nan"), "M": -1.0}))),
    "above 0": body(completion(first_token({"m": 50.0, "M": -1.0}))),
    "no log-probabilities": body(completion(None)),
    "refused content": status(400, {"message": "content policy \x1b[2J", "code": "content_filter"}),
    "too long": status(413),
}


@pytest.mark.parametrize("reply", HOSTILE.values(), ids=HOSTILE.keys())
def test_one_hostile_answer_costs_its_row(server: Any, tmp_path: Path, reply: Reply) -> None:  # noqa: F811
    judge = judge_at(server, tmp_path, concurrency=1)

    def only_row_2(handler: Handler) -> None:
        (reply if "Task 2" in str(handler.request_body) else success)(handler)

    server.default = only_row_2
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = judge.preferences(*examples(4))
    assert found[2] != found[2]
    assert [found[i] for i in (0, 1, 3)] == [expected(4)[i] for i in (0, 1, 3)]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB
    asked = len(server.requests)
    judge.preferences(*examples(4))
    assert len(server.requests) == asked  # nor is it asked, and paid for, again


@pytest.mark.parametrize("reply", HOSTILE.values(), ids=HOSTILE.keys())
def test_an_endpoint_that_is_hostile_altogether_is_one_line(
    server: Any,  # noqa: F811
    tmp_path: Path,
    reply: Reply,
) -> None:
    server.default = reply
    with pytest.raises(SettingError) as caught:
        judge_at(server, tmp_path).preferences(*examples(4))
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_server_that_echoes_the_key_leaves_it_nowhere(server: Any, tmp_path: Path) -> None:  # noqa: F811
    def echo(handler: Handler) -> None:
        answer = completion(first_token({**top_logprobs(handler.request_body), KEY: -9.0}))
        answer |= {"model": f"of {KEY}", "usage": {KEY: 3, "prompt_tokens": 4, "nested": {"a": KEY}}}
        handler.reply(200, answer)

    server.default = echo
    assert judge_at(server, tmp_path).preferences(*examples(3)) == expected(3)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 3
    assert not [path for path in files if KEY in path.read_text()]


def test_what_is_paid_for_finds_its_room(server: Any, tmp_path: Path) -> None:  # noqa: F811
    """The disk fills up while the answer is on its way: it is kept, and no further one is asked for."""
    judge = judge_at(server, tmp_path, concurrency=1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def full(handler: Handler) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, before[1]))
        success(handler)

    server.default = full
    try:
        with pytest.raises(SettingError, match=r"cache: File too large; make room"):
            judge.preferences(*examples(4))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert len(server.requests) == 1
    server.default = success
    assert judge.preferences(*examples(4)) == expected(4)
    assert len(server.requests) == 4  # the one that was paid for was not asked again


def test_an_annotation_of_another_request_does_not_count(tmp_path: Path) -> None:
    cache = AnnotationCache(tmp_path)
    cache.put({"a": 1}, {"top_logprobs": {}})
    one, other = cache.key({"a": 1}), cache.key({"a": 2})
    (tmp_path / other[:2]).mkdir(exist_ok=True)
    (tmp_path / other[:2] / f"{other}.json").write_bytes((tmp_path / one[:2] / f"{one}.json").read_bytes())
    assert cache.get(one) == {"top_logprobs": {}}
    assert cache.get(other) is None
