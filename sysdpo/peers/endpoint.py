"""A system's components behind an OpenAI-compatible endpoint of this process, and a route that scores its answers."""

import json
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from sysdpo.components.text.language_model import LanguageModel
from sysdpo.errors import SettingError
from sysdpo.seeds import stream

GATHER = 0.02
"""Seconds without a new request after which those that wait are answered together."""
Asked = tuple[tuple[int, ...], int, Future[list[int]]]
"""A prompt's ids, the seed of its answer, and where the answer's ids go."""


class Endpoint:
    """`POST /v1/chat/completions` with `model`, the component's name, and `messages`; `POST /score` with anything.

    A component draws as its config says (`generation`), whatever temperature is asked for: what is searched with is
    what is judged. The n-th time that something is asked has a stream of its own. Requests to one component that come
    together are drawn as one batch, which can move an answer's probabilities by their last bits and no more.

    Args:
        models: by the name that a request gives.
        score: of the content of a request, a number.
        seed: of the answers.
    """

    def __init__(
        self, models: Mapping[str, LanguageModel], score: Callable[[dict[str, Any]], float], seed: int = 0
    ) -> None:
        self.models, self.score, self.seed = models, score, seed
        self.asked: Counter[str] = Counter()
        """Answers drawn by each component; and of `/score`, how often it was asked."""
        self._times: Counter[str] = Counter()
        self._waiting: dict[str, list[Asked]] = {name: [] for name in models}
        self._counting = threading.Lock()
        self._computer = ThreadPoolExecutor(max_workers=1)  # a thread that computes keeps memory and threads of its own

    @contextmanager
    def serving(self) -> Iterator[str]:
        """Answer requests while inside; the address, http://127.0.0.1:PORT."""
        handler = type("Handler", (_Handler,), {"endpoint": self})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    def answer(self, path: str, content: dict[str, Any]) -> dict[str, Any]:
        """What a request gets.

        Raises:
            SettingError: there is no such model or path, or the prompt exceeds the model's context.
        """
        if path == "/score":
            with self._counting:
                self.asked["/score"] += 1
            return {"score": self._computer.submit(self.score, content).result()}
        if path != "/v1/chat/completions" or content.get("model") not in self.models:
            raise SettingError(f"{path}, model {content.get('model')!r}: this endpoint has {', '.join(self.models)}")
        return self._complete(str(content["model"]), content["messages"])

    def _complete(self, name: str, messages: list[dict[str, str]]) -> dict[str, Any]:
        codec = self.models[name].codec
        prompt = codec.template.prompt_ids(messages, codec.prompt.prefix)
        if codec.max_length is not None and len(prompt) + codec.max_new_tokens > codec.max_length:
            raise SettingError(f"a prompt of {len(prompt)} tokens exceeds the context of {codec.max_length}")
        key = json.dumps([name, messages])
        answer: Future[list[int]] = Future()
        with self._counting:
            self._times[key] += 1
            self.asked[name] += 1
            number, seed = self.asked[name], stream(self.seed, zlib.crc32(key.encode()), self._times[key])
            self._waiting[name].append((prompt, seed, answer))
        self._computer.submit(self._answer_waiting, name)
        ids = answer.result()
        return {
            "id": f"{name}-{number}",
            "object": "chat.completion",
            "created": 0,
            "model": name,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": codec.decode(ids)},
                    "finish_reason": "stop",
                }
            ],
            "usage": {
                "prompt_tokens": len(prompt),
                "completion_tokens": len(ids),
                "total_tokens": len(prompt) + len(ids),
            },
        }

    def _answer_waiting(self, name: str) -> None:
        waiting, seen = self._waiting[name], 0
        while len(waiting) > seen:
            seen = len(waiting)
            time.sleep(GATHER)
        with self._counting:
            together, self._waiting[name] = self._waiting[name], []
        if not together:  # an earlier batch had them
            return
        model = self.models[name]
        try:
            if model.generation is None:
                raise SettingError(f"component {name!r} has no way to generate; set model.generation.")
            prompts, seeds, answers = zip(*together, strict=True)
            for answer, (ids,) in zip(answers, model.draw_ids(prompts, 1, seeds, model.generation), strict=True):
                answer.set_result(ids)
        except Exception as error:
            for _, _, answer in together:
                if not answer.done():
                    answer.set_exception(error)


class _Handler(BaseHTTPRequestHandler):
    endpoint: Endpoint
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        try:
            status, answer = 200, self.endpoint.answer(self.path, content)
        except SettingError as error:
            status, answer = 400, {"error": {"message": str(error), "type": "invalid_request_error"}}
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing: a line a request is no news."""
