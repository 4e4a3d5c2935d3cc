"""Checkpoints that are either whole or absent, and from which a run goes on exactly."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sysdpo.system import CompoundSystem

NEWEST = "newest.pt"


def trainable_state(system: CompoundSystem) -> dict[str, Tensor]:
    """A copy of the weights that training changes, on the CPU."""
    return {n: p.detach().cpu().clone() for n, p in system.named_parameters() if p.requires_grad}


def load_trainable(system: CompoundSystem, state: Mapping[str, Tensor]) -> None:
    parameters = dict(system.named_parameters())
    with torch.no_grad():
        for name, value in state.items():
            parameters[name].copy_(value)


def write_checkpoint(folder: Path, state: Mapping[str, Any]) -> None:
    """Replace the newest checkpoint; killed at any moment, the previous one or this one is there."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{NEWEST}.partial"
    torch.save(dict(state), partial)
    os.replace(partial, folder / NEWEST)


def read_checkpoint(folder: Path) -> dict[str, Any] | None:
    path = folder / NEWEST
    return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None
