"""What torchrun, or a step of Slurm, says of the processes that it has started; read without importing torch."""

import os


def count() -> int:
    """Of all that were started together; 1 for a process that nobody started beside others."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def on_this_machine() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this is the one that speaks."""
    return os.environ.get("RANK", "0") == "0"
