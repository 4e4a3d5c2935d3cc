"""Checkpoints that are either whole or absent, and from which a run goes on exactly."""

import os
import shutil
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


def save_components(system: CompoundSystem, names: list[str], folder: Path) -> None:
    """The trained components in the layout of the library they belong to, one folder each."""
    for name in names:
        partial = folder / f".{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        getattr(system.components, name).save(str(partial))
        shutil.rmtree(folder / name, ignore_errors=True)
        partial.rename(folder / name)


def load_components(system: CompoundSystem, folder: Path) -> list[str]:
    """Give the components the weights that `save_components` wrote; returns the names of those that have some."""
    found = [name for name in system.components if (folder / name).is_dir()]
    for name in found:
        system.component(name).load(str(folder / name))
    return found
