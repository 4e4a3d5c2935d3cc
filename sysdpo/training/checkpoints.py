"""Checkpoints that are whole or absent, know what they are of, and from which a run goes on exactly.

`checkpoints/step=<n>.pt` is what `torch.save` writes, with the SHA-256 of the rest in the comment that a ZIP archive
may end with: `torch.load` opens it, `unzip -z` shows it, and a truncated or altered file is told from a whole one.
"""

import hashlib
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torch.optim import Optimizer

from sysdpo.errors import SettingError
from sysdpo.runs.files import remove, replacing
from sysdpo.sharding import full, parted_like
from sysdpo.system import CompoundSystem

log = logging.getLogger(__name__)

NAME = re.compile(r"step=(\d+)\.pt")
MARK = b"sha256:"
COMMENT = len(MARK) + 64
CHUNK = 1 << 22


def trainable_state(system: CompoundSystem) -> dict[str, Tensor]:
    """A copy of the weights that training changes, whole and on the CPU, however processes share them out."""
    return {n: _whole_copy(p) for n, p in system.named_parameters() if p.requires_grad}


def load_trainable(system: CompoundSystem, state: Mapping[str, Tensor]) -> None:
    parameters = dict(system.named_parameters())
    with torch.no_grad():
        for name, value in state.items():
            parameters[name].copy_(parted_like(value, parameters[name]))


def optimizer_state(optimizer: Optimizer) -> dict[str, Any]:
    """`state_dict`, whole and on the CPU: the same from one process, from several, and from weights in parts."""
    state = optimizer.state_dict()
    whole = {i: {k: _whole_copy(v) for k, v in own.items()} for i, own in state["state"].items()}
    return {**state, "state": whole}


def load_optimizer(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    parted = {i: {k: parted_like(v, parameters[i]) for k, v in own.items()} for i, own in state["state"].items()}
    optimizer.load_state_dict({**state, "state": parted})


def _whole_copy(value: Tensor) -> Tensor:
    return full(value.detach()).cpu().clone()


# ---- what a run goes on from -------------------------------------------------------------------------------------


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / f"step={step}.pt"


def checkpoint_steps(folder: Path) -> list[int]:
    """The updates after which a checkpoint was kept, the newest first."""
    found = [NAME.fullmatch(path.name) for path in folder.glob("step=*.pt")]
    return sorted((int(name[1]) for name in found if name), reverse=True)


def write_checkpoint(folder: Path, state: Mapping[str, Any], keep: int | None = 2, best: int | None = None) -> None:
    """Keep `state`, which has its `step`; killed at any moment, those before are still there.

    Args:
        keep: the newest ones that stay; None: all.
        best: the step of one that stays beside them.
    """
    path = checkpoint_path(folder, state["step"])
    with replacing(path) as fresh:
        torch.save(dict(state), fresh)
        _seal(fresh)
    steps = checkpoint_steps(folder)
    own = [step for step in steps if step <= state["step"]]  # beyond: of a longer run that was not gone on with
    kept = {*own[:keep], best}
    for step in steps:
        if step not in kept:
            remove(checkpoint_path(folder, step))


def read_checkpoint(
    folder: Path, refuse: Callable[[Mapping[str, Any]], str | None] | None = None
) -> dict[str, Any] | None:
    """The newest checkpoint that is whole; None without one. What is passed over is said in one line each.

    Args:
        refuse: why a whole checkpoint is not one to go on from; None: it is.

    Raises:
        SettingError: there are whole checkpoints, but each is refused.
    """
    refused: str | None = None
    for step in checkpoint_steps(folder):
        path = checkpoint_path(folder, step)
        state, fault = load_checkpoint(path)
        if state is not None and (found := state.get("step")) != step:
            state, fault = None, f"is of update {found}"
        if state is not None and refuse is not None and (reason := refuse(state)) is not None:
            state, fault = None, reason
            refused = refused or f"{path}: {reason}"
        if state is not None:
            return state
        log.warning("%s %s: passed over for the checkpoint before it", path, fault)
    if refused is not None:
        raise SettingError(
            f"{refused}; remove or rename the folder {folder}, or write elsewhere (outputs=…), to train from the start."
        )
    return None


def load_checkpoint(path: Path) -> tuple[dict[str, Any] | None, str]:
    """(content, "") of a whole checkpoint, or (None, what is wrong with the file)."""
    try:
        size = path.stat().st_size
        if size <= COMMENT:
            return None, "is empty or cut off"
        with path.open("rb") as file:
            file.seek(-COMMENT, 2)
            comment = file.read()
        if not comment.startswith(MARK):
            return None, "is cut off, or no checkpoint of this program"
        if comment != MARK + _digest(path, size).encode():
            return None, "is not what was written (its checksum differs)"
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        return None, f"cannot be read ({error.strerror or type(error).__name__})"
    except Exception as error:  # whatever an unpickler says of foreign content
        return None, f"cannot be read ({type(error).__name__})"
    return (state, "") if isinstance(state, dict) else (None, "is no checkpoint of this program")


def _seal(path: Path) -> None:
    """Write the checksum into the archive's comment, whose length is its last two bytes until then."""
    size = path.stat().st_size + COMMENT
    with path.open("r+b") as file:
        file.seek(-2, 2)
        file.write(COMMENT.to_bytes(2, "little"))
        file.write(b" " * COMMENT)
    digest = _digest(path, size)
    with path.open("r+b") as file:
        file.seek(-COMMENT, 2)
        file.write(MARK + digest.encode())


def _digest(path: Path, size: int) -> str:
    """SHA-256 of everything before the comment."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for part in _parts(file, size - COMMENT):
            digest.update(part)
    return digest.hexdigest()


def _parts(file: BinaryIO, length: int) -> Iterator[bytes]:
    while length > 0 and (part := file.read(min(CHUNK, length))):
        length -= len(part)
        yield part
