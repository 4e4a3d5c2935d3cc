"""Many requests to one OpenAI-compatible chat endpoint: concurrent, patient, careful with the key."""

import asyncio
import datetime
import email.utils
import json
import logging
import os
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
from tqdm import tqdm

from sysdpo.errors import SettingError, one_line
from sysdpo.evaluation.judges.reply import MalformedAnswerError, json_object, limited, server_message
from sysdpo.limits import check_fields
from sysdpo.progress import bar

logger = logging.getLogger(__name__)

Body = dict[str, Any]
Answer = TypeVar("Answer")
PATIENCE = 8
"""Requests without an answer, and none with one, after which an endpoint is given up."""


class UnanswerableError(Exception):
    """The server has no answer to this one request: refused, too long, never in the form asked for."""


class NoLogprobsError(UnanswerableError):
    """The same of a server that seems unable to answer any: unless it has answered one, no other is sent."""


@dataclass(frozen=True)
class ChatEndpoint:
    """Where to ask, and how patiently. Every error it raises is a `SettingError` with the remedy.

    Time-outs, broken connections, malformed bodies and the statuses 408, 429 and 5xx are tried again, after
    the time the server's Retry-After names or else an exponentially growing, jittered one. Any other status
    is final.
    """

    base_url: str  # up to and including the version: http://127.0.0.1:8000/v1
    api_key_env: str | None = "OPENAI_API_KEY"  # NAME of the variable that holds the key; None: none needed
    concurrency: int = 8  # requests under way at once
    timeout_s: float = 60.0  # for one whole attempt
    max_attempts: int = 8  # per request
    first_wait_s: float = 1.0  # before the second attempt; doubles from there
    longest_wait_s: float = 60.0  # where the doubling stops
    longest_retry_after_s: float = 600.0  # a server that asks for more ends the run, to be resumed then

    def __post_init__(self) -> None:
        try:
            url = httpx.URL(self.base_url)
        except httpx.InvalidURL:
            url = httpx.URL()
        if url.scheme not in ("http", "https") or not url.host or url.userinfo or url.query:
            # The value stays out of the message: it may hold a password.
            raise SettingError(
                "endpoint.base_url: must read http(s)://host[:port]/path, without user, password or query; "
                "the key belongs in the environment variable named by endpoint.api_key_env."
            )
        if self.api_key_env is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", self.api_key_env):
            # Nor this one: somebody may have put the key itself here.
            raise SettingError(
                "endpoint.api_key_env: must be the NAME of an environment variable, in capitals "
                "(OPENAI_API_KEY), never the key itself; null for a server that needs none."
            )
        check_fields(self, "endpoint.")

    def complete_all(
        self,
        requests: Mapping[str, Body],
        parse: Callable[[Body], Answer],
        on_answer: Callable[[str, Answer], None],
        progress: str,
        before: Callable[[str], None] = lambda _: None,
        on_refusal: Callable[[str, str], None] | None = None,
    ) -> None:
        """POST every request to /chat/completions; `on_answer(name, parse(body))` as each answer arrives.

        Args:
            requests: the JSON body of each request by a name of the caller's choice.
            parse: reads the server's JSON object; raises `MalformedAnswerError` to have the request sent
                again.
            on_answer: called once per request, from this thread, before the next answer is read: store it
                here.
            progress: label of the progress bar.
            before: called before a request is sent, to keep room for its answer.
            on_refusal: told of each request that has no answer, and why, where others were answered; None: the first
                such request ends the run.

        Raises:
            SettingError: no key; a final refusal; or a request out of attempts. Requests already under way
                are then finished and handed to `on_answer` first, since they are paid for.
        """
        key = self.key()
        outcome = asyncio.run(self._complete_all(requests, parse, on_answer, progress, before, key))
        refused, answered = outcome
        if refused and (on_refusal is None or not answered or len(refused) + answered < len(requests)):
            raise SettingError(next(iter(refused.values())))
        for name, reason in refused.items():
            assert on_refusal is not None
            on_refusal(name, reason)

    async def _complete_all(
        self,
        requests: Mapping[str, Body],
        parse: Callable[[Body], Answer],
        on_answer: Callable[[str, Answer], None],
        progress: str,
        before: Callable[[str], None],
        key: str | None,
    ) -> tuple[dict[str, str], int]:
        """(why, by name of each request that has no answer; how many have one)."""
        waiting = list(requests.items())[::-1]
        refused: dict[str, str] = {}
        answered = 0
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limits = httpx.Limits(max_connections=self.concurrency)
        async with httpx.AsyncClient(headers=headers, limits=limits, timeout=None) as client:
            with bar(progress, total=len(waiting)) as calls:
                session = _Session(self, client, key, calls)

                async def work() -> None:
                    nonlocal answered
                    while waiting:
                        name, request = waiting.pop()
                        try:
                            before(name)
                            on_answer(name, await session.complete(request, parse))
                            answered += 1
                        except UnanswerableError as error:
                            refused[name] = str(error)
                            hopeless = isinstance(error, NoLogprobsError) or len(refused) >= PATIENCE
                            if not answered and hopeless:
                                waiting.clear()  # it is not these rows: the endpoint answers none
                        except BaseException:
                            waiting.clear()
                            raise
                        calls.update()

                workers = (work() for _ in range(min(self.concurrency, len(waiting))))
                outcomes = await asyncio.gather(*workers, return_exceptions=True)
        for outcome in outcomes:
            if outcome is not None:
                raise outcome
        return refused, answered

    def key(self) -> str | None:
        """The key, from the environment; a `SettingError` if it is missing, so that a run can fail early."""
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise SettingError(
                f"endpoint.api_key_env: the environment variable {self.api_key_env} is not set; `export "
                f"{self.api_key_env}=…` with your key, or set endpoint.api_key_env=null for a server that "
                "needs none."
            )
        if not re.fullmatch(r"[!-~]+", key):  # an HTTP library's own complaint would quote the key
            raise SettingError(
                f"endpoint.api_key_env: the value of {self.api_key_env} has spaces or characters outside "
                "ASCII; copy the key again."
            )
        return key


class _Session:
    """One client's attempts at one endpoint; a Retry-After that one request gets holds back all of them."""

    def __init__(self, endpoint: ChatEndpoint, client: httpx.AsyncClient, key: str | None, calls: "tqdm[Any]") -> None:
        self.endpoint = endpoint
        self.client = client
        self.key = key
        self.calls = calls
        self.retries = 0
        self.not_before = 0.0

    async def complete(self, request: Body, parse: Callable[[Body], Answer]) -> Answer:
        endpoint, url = self.endpoint, f"{self.endpoint.base_url.rstrip('/')}/chat/completions"
        trouble, malformed = "", False
        for attempt in range(1, endpoint.max_attempts + 1):
            await self._hold()
            malformed = False
            wait = min(endpoint.longest_wait_s, endpoint.first_wait_s * 2 ** (attempt - 1))
            wait *= random.uniform(0.5, 1)
            try:
                async with asyncio.timeout(endpoint.timeout_s):
                    response, content = await self._post(url, request)
                if response.status_code == 200:
                    return parse(json_object(content, self.key))
                self._refuse_if_final(response, content)
                trouble = f"HTTP {response.status_code}"
                asked = _retry_after(response.headers.get("Retry-After"))
                if asked is not None:
                    self._hold_all(asked)
                    wait = 0.1 * wait  # so that held-back requests do not all return in the same instant
            except TimeoutError:
                trouble = f"no answer within {endpoint.timeout_s:g} s"
            except httpx.RequestError as error:
                trouble = f"connection failed ({type(error).__name__}: {error})"
            except MalformedAnswerError as error:
                trouble, malformed = f"malformed answer: {error}", True
            trouble = self._redact(trouble)
            self.retries += 1
            self.calls.set_postfix_str(f"{self.retries} retries, last: {trouble[:60]}")
            logger.info("endpoint: attempt %d of %d: %s", attempt, endpoint.max_attempts, trouble)
            if attempt < endpoint.max_attempts:
                await asyncio.sleep(wait)
        raise (UnanswerableError if malformed else SettingError)(
            f"endpoint.base_url: {endpoint.base_url} gave no usable answer in {endpoint.max_attempts} "
            f"attempts (last: {trouble}). Answers so far are kept: run the same command again "
            "to go on, or raise endpoint.max_attempts."
        )

    async def _post(self, url: str, request: Body) -> tuple[httpx.Response, bytes]:
        """The response and its body, decoded; the body of a hostile server ends where it grows too large."""
        headers = {"Accept-Encoding": "identity", "Content-Type": "application/json"}
        content = json.dumps(request).encode()
        async with self.client.stream("POST", url, content=content, headers=headers) as response:
            return response, await limited(response.aiter_raw(), response.headers.get("Content-Encoding", ""))

    async def _hold(self) -> None:
        while (left := self.not_before - asyncio.get_running_loop().time()) > 0:
            await asyncio.sleep(left)

    def _hold_all(self, seconds: float) -> None:
        if seconds > self.endpoint.longest_retry_after_s:
            raise SettingError(
                f"endpoint.base_url: {self.endpoint.base_url} asks to wait {seconds:.0f} s, longer than "
                f"endpoint.longest_retry_after_s={self.endpoint.longest_retry_after_s:g}. Answers so far are "
                "kept: run the same command again then."
            )
        self.not_before = max(self.not_before, asyncio.get_running_loop().time() + seconds)

    def _refuse_if_final(self, response: httpx.Response, content: bytes) -> None:
        status = response.status_code
        message, code = server_message(content)
        if status == 429 and code == "insufficient_quota":
            remedy = "the account is out of credit; top it up, then run the same command again"
        elif status in (408, 429) or status >= 500:
            return
        elif status in (401, 403):
            remedy = f"check the key in {self.endpoint.api_key_env}" if self.key else "set endpoint.api_key_env"
        elif status == 404 or 300 <= status < 400:
            remedy = "check endpoint.base_url (it ends in the version, mostly /v1) and the model's name"
        else:
            remedy = "the server does not accept this request; choose another model or endpoint"
        of_this_request = status in (400, 413, 422)  # a filter, or a text longer than the model's context
        raise (UnanswerableError if of_this_request else SettingError)(
            f"endpoint.base_url: {self.endpoint.base_url} answered HTTP {status} ({self._redact(message)}): {remedy}."
        )

    def _redact(self, text: str) -> str:
        text = text.replace(self.key, "<key>") if self.key else text  # some servers quote the key they refuse
        return one_line(text, 300)


def _retry_after(header: str | None) -> float | None:
    """Seconds from now, from either form of the header (RFC 9110: a number of seconds, or a date)."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        moment = email.utils.parsedate_to_datetime(header)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return max(0.0, (moment - datetime.datetime.now(datetime.UTC)).total_seconds())
