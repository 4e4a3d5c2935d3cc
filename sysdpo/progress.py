"""Progress of long work: a bar with ETA on a terminal, a plain line now and then elsewhere."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from tqdm import tqdm

from sysdpo import launched

T = TypeVar("T")

_job: ContextVar[str] = ContextVar("job", default="")


@contextmanager
def named(job: str) -> Iterator[None]:
    """Inside, every bar says whose it is: jobs that run side by side share one terminal."""
    token = _job.set(f"{job}: ")
    try:
        yield
    finally:
        _job.reset(token)


class _Lines:
    """A text stream on which every redraw of a bar becomes a line of its own."""

    def write(self, text: str) -> int:
        line = text.replace("\x1b[A", "").strip()  # without the way back up to an outer bar
        return sys.stderr.write(f"{line}\n") if line else 0

    def flush(self) -> None:
        sys.stderr.flush()


def progress(items: Iterable[T], description: str, total: int | None = None, initial: int = 0) -> Iterator[T]:
    """Iterate under a progress bar; `initial` items of `total` were done before (a resumed run)."""
    yield from bar(description, total=total, initial=initial, items=items)


def bar(description: str, total: int | None, initial: int = 0, items: Iterable[Any] | None = None) -> "tqdm[Any]":
    terminal = sys.stderr.isatty()
    return tqdm(
        items,
        desc=_job.get() + description,
        total=total,
        initial=initial,
        file=sys.stderr if terminal else _Lines(),
        mininterval=0.1 if terminal else 15.0,
        miniters=None if terminal else 1,
        dynamic_ncols=terminal,
        ascii=not terminal,
        leave=terminal,
        disable=not launched.is_first(),
    )
