"""Several processes of one run, started by torchrun: which one this is, what it takes of the work, who writes.

Each process does the same on its share of the rows, and what they find is put together in the order of the rows. In
one process every function here does nothing, and costs nothing.
"""

import hashlib
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import timedelta
from typing import Any, Literal, TypeVar, get_args

import torch
import torch.distributed as dist

from sysdpo import launched
from sysdpo.errors import SettingError, nearest

Layout = Literal["none", "ddp", "fsdp"]
"""Of the weights: each process holds all (ddp), or a part of each component's (fsdp)."""

T = TypeVar("T")

_layout: Layout = "none"


# ---- who there is ------------------------------------------------------------------------------------------------


def count() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Whether this is the process that writes."""
    return rank() == 0


def layout() -> Layout:
    return _layout if dist.is_initialized() else "none"


def join(layout: str = "none", timeout_hours: float = 24.0) -> None:
    """Meet the other processes of this run, once; a GPU each where there are GPUs.

    Args:
        timeout_hours: how long one waits for another, which may be asking a judge or waiting for a lock.

    Raises:
        SettingError: the layout is unknown, or does not fit the way in which the command was started.
    """
    global _layout
    if layout not in get_args(Layout):
        raise SettingError(f"distributed: {nearest(layout, get_args(Layout))}")
    started = launched.count()
    if layout == "none":
        if started > 1:
            raise SettingError(
                f"distributed=none: {started} processes have been started for this run, and each would do all of the "
                "work; set distributed=ddp or distributed=fsdp."
            )
        return
    if "RANK" not in os.environ:
        raise SettingError(
            f"distributed={layout}: this is a single process; start the command with torchrun --standalone "
            "--nproc-per-node=NUMBER, or set distributed=none."
        )
    _layout = layout  # type: ignore[assignment]
    if dist.is_initialized():
        return
    place: dict[str, Any] = {"backend": "gloo"}
    if torch.cuda.is_available():
        # a cluster may show each process one GPU only, its own
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        place = {"backend": "cpu:gloo,cuda:nccl"}
    dist.init_process_group(timeout=timedelta(hours=timeout_hours), **place)
    if torch.cuda.is_available():
        gpus = set(each(str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)))
        if len(gpus) < count():
            raise SettingError(
                f"distributed={layout}: {count()} processes have {len(gpus)} GPUs; start at most one for each GPU "
                "(--nproc-per-node)."
            )
    if not is_first():  # what every process would say, the first one says
        logging.disable(logging.WARNING)


def leave() -> None:
    """Part from the others; what follows is one process's own."""
    global _layout
    _layout = "none"
    if dist.is_initialized():
        dist.destroy_process_group()


def unsaid(line: str) -> bool:
    """Whether none of torchrun's processes has said this line yet: all may meet the same mistake."""
    if launched.count() == 1:
        return True
    try:
        place = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
        store = dist.TCPStore(*place, is_master=False, timeout=timedelta(seconds=10))
        return store.add(f"said {hashlib.sha256(line.encode()).hexdigest()}", 1) == 1
    except (KeyError, ValueError, RuntimeError):
        return True


# ---- sharing work ------------------------------------------------------------------------------------------------


def share(n: int) -> range:
    """This process's part of n things: neighbours, as many for each process as can be."""
    return range(rank() * n // count(), (rank() + 1) * n // count())


def rounds(n: int, size: int) -> list[range]:
    """This process's share of n things in parts of at most `size`; as many parts in every process, empty ones first.

    The things are dealt out one by one: those that are sorted by length take every process as long. In one process:
    [0, size), [size, 2 size), …
    """
    own, most = range(n)[rank() :: count()], math.ceil(n / count())
    parts = [own[start : start + size] for start in range(0, len(own), size)]
    return [own[:0]] * (math.ceil(most / size) - len(parts)) + parts


def turns(n: int, size: int) -> list[range]:
    """n things in batches of `size`, in each turn one a process: this process's batches, empty where nothing is left.

    `joined` puts the results of a turn into the order of the things. Where there are fewer batches than processes,
    they are smaller.
    """
    size = max(1, min(size, math.ceil(n / count())))
    starts = range(rank() * size, n + rank() * size, size * count())
    return [range(n)[start : start + size] for start in starts]


def most(number: int) -> int:
    """The largest of all processes' numbers."""
    return max(each(number))


def wait() -> None:
    """Until every process has come here."""
    if count() > 1:
        dist.barrier()


def each(value: T) -> list[T]:
    """Every process's value, in their order."""
    if count() == 1:
        return [value]
    found: list[Any] = [None] * count()
    dist.all_gather_object(found, value)
    return found


def joined(part: Sequence[T]) -> list[T]:
    """The parts of all processes, one after the other."""
    return [item for own in each(list(part)) for item in own]


def summed(numbers: dict[str, float]) -> dict[str, float]:
    """The sum over all processes under each name that any of them has, in the order of the first that has it."""
    parts = each(numbers)
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: sum(part[name] for part in parts if name in part) for name in names}


# ---- one for all -------------------------------------------------------------------------------------------------


def by_first(work: Callable[[], T]) -> T:
    """What the first process finds, for every process; a `SettingError` that it meets is raised in all of them."""
    if count() == 1:
        return work()
    mistake: SettingError | None = None
    answer: list[Any] = [None, None]
    if is_first():
        try:
            answer[0] = work()
        except SettingError as error:
            mistake = answer[1] = error
    dist.broadcast_object_list(answer)
    if answer[1] is not None:
        raise mistake or answer[1]
    found: T = answer[0]
    return found


@contextmanager
def held_by_first(context: AbstractContextManager[T]) -> Iterator[T]:
    """Inside, the first process is in the context for all of them; nobody is out before it is."""
    with ExitStack() as stack:
        yield by_first(lambda: stack.enter_context(context))
        by_first(stack.close)
