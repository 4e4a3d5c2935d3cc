"""What stands in for what a rehearsal has no network for: rows, scorers of tiny weights, a judge's server."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from sysdpo.components.text.codec import byte_tokenizer
from sysdpo.runs.files import write_jsonl
from sysdpo.tasks.progression.scorers.transient import new_resnet50

KEY = "no-secret"
"""What the judge's server takes for a key."""
ROWS = 28
TINY_RESNET = {"embedding_size": 4, "hidden_sizes": [4, 4, 4, 4], "depths": [1, 1, 1, 1], "layer_type": "basic"}
TINY_QWEN3 = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_labels": 1,
}


def make_stand_ins(folder: Path) -> None:
    """What the overrides of `conf/rehearsal/` name.

    `orca_pairs.jsonl` has the columns of Intel/orca_dpo_pairs, `transient_resnet50/` is what the regressor's trainer
    writes, `reward_model/` of the class of the one that `judge=reward_model` names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_jsonl(folder / "orca_pairs.jsonl", [_row(i) for i in range(ROWS)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        new_resnet50(TINY_RESNET).save_pretrained(folder / "transient_resnet50")
        tokenizer = byte_tokenizer()
        tokens = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
        config = AutoConfig.for_model("qwen3", **TINY_QWEN3, **tokens)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(folder / "reward_model")
        tokenizer.save_pretrained(folder / "reward_model")


def _row(number: int) -> dict[str, str]:
    """Every third without a system text, as there are such rows in the data set."""
    return {
        "system": "" if number % 3 == 0 else "You are an AI assistant. Think step by step.",
        "question": f"What is {number} plus {number}?",
        "chosen": f"{number} plus {number} is {2 * number}.",
        "rejected": "I do not know." + "!" * number,
    }


@contextmanager
def judge_server() -> Iterator[str]:
    """An OpenAI-compatible chat endpoint on this machine that prefers longer answers, 0.8 to 0.2: its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Judge)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Judge(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.headers.get("Authorization") != f"Bearer {KEY}":
            self._reply(401, {"error": {"message": "no key"}})
        elif self.path != "/v1/chat/completions" or not request.get("logprobs"):
            self._reply(404, {"error": {"message": "only chat completions with log-probabilities"}})
        else:
            self._reply(200, _verdict(request))

    def _reply(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _verdict(request: dict[str, Any]) -> dict[str, Any]:
    answers = json.loads(request["messages"][1]["content"].rsplit("\n\n", 1)[0])["answers"]
    share = 0.5 + 0.3 * math.copysign(1, len(answers["m"]) - len(answers["M"]))
    listed = [{"token": name, "logprob": math.log(p)} for name, p in (("m", share), ("M", 1 - share))]
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "m"},
        "finish_reason": "length",
        "logprobs": {"content": [{"token": "m", "logprob": listed[0]["logprob"], "top_logprobs": listed}]},
    }
    return {
        "object": "chat.completion",
        "model": request["model"],
        "choices": [choice],
        "usage": {"prompt_tokens": 7, "completion_tokens": 1},
    }
