"""What this process holds in memory, by Linux's own accounting; None on systems that hide it."""

import os
from pathlib import Path

STATUS, FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
"""Linux reports on this process in the first; writing 5 to the second forgets the largest resident set so far."""


def resident() -> int | None:
    """Bytes of the resident set."""
    return _field("VmRSS")


def fullest() -> int | None:
    """Bytes of the largest resident set since `forget_fullest`."""
    return _field("VmHWM") if os.access(FORGET, os.W_OK) else None


def forget_fullest() -> None:
    if os.access(FORGET, os.W_OK):
        FORGET.write_text("5")


def _field(name: str) -> int | None:
    lines = STATUS.read_text(encoding="utf-8").splitlines() if STATUS.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), None)
