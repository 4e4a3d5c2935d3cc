"""What a server may send back, whatever it sends: its size is limited, its encoding checked, the key cut out of it."""

import json
import zlib
from collections.abc import AsyncIterator
from typing import Any

LARGEST = 8_000_000
"""Bytes of a decoded reply: a completion with log-probabilities takes a few thousand."""


class MalformedAnswerError(Exception):
    """A body that is not what was asked for; worth asking again."""


async def limited(chunks: AsyncIterator[bytes], encoding: str) -> bytes:
    """The decoded body, of raw chunks as they arrive.

    Raises:
        MalformedAnswerError: it is larger than `LARGEST`, or not of an encoding that is known.
    """
    kind = encoding.strip().lower()
    if kind not in ("", "identity", "gzip", "x-gzip", "deflate"):
        raise MalformedAnswerError(f"its encoding {kind[:40]!r} is not one that was asked for")
    decoder = None if kind in ("", "identity") else zlib.decompressobj(wbits=47)
    content = bytearray()
    async for chunk in chunks:
        try:
            content += chunk if decoder is None else decoder.decompress(chunk, LARGEST + 1 - len(content))
        except zlib.error:
            raise MalformedAnswerError(f"the body is not {kind}") from None
        if len(content) > LARGEST:
            raise MalformedAnswerError(f"the body has more than {LARGEST // 1_000_000} MB")
    return bytes(content)


def json_object(content: bytes, secret: str | None) -> dict[str, Any]:
    """The body as a JSON object, in which `secret` occurs nowhere: some servers quote the key they were sent."""
    try:
        body = json.loads(content)
        body = without(body, secret) if secret else body
    except (ValueError, RecursionError):  # no JSON, no UTF-8, a number of 5,000 digits, a hundred thousand brackets
        raise MalformedAnswerError("the body is not JSON that can be read") from None
    if not isinstance(body, dict):
        raise MalformedAnswerError("the body is not a JSON object")
    return body


def without(content: Any, secret: str) -> Any:
    """The same content with `<key>` in place of the secret, in names too."""
    if isinstance(content, str):
        return content.replace(secret, "<key>")
    if isinstance(content, list):
        return [without(item, secret) for item in content]
    if isinstance(content, dict):
        return {without(name, secret): without(item, secret) for name, item in content.items()}
    return content


def server_message(content: bytes) -> tuple[str, str]:
    """The message and code of an error body in OpenAI's form; else the body's beginning."""
    try:
        error = json.loads(content)["error"]
        return str(error["message"]), str(error.get("code"))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return content[:2000].decode("utf-8", "replace") or "no message", ""
