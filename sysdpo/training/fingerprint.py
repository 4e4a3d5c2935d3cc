"""What a training is of: the system, the data, how outcomes are compared and the settings that decide the weights.

A checkpoint carries it, so that no run goes on from another's. What only decides how long or how fast (`steps`,
`micro_batch_size`, `draw_batch_size`, when something is saved or looked at) is no part of it.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sysdpo.runs.identity import ON_POLICY
from sysdpo.sharding import full, own_class
from sysdpo.system import CompoundSystem, Pair

NOT_OF_THE_WEIGHTS = (
    "steps",
    "micro_batch_size",
    "draw_batch_size",
    "sort_by_length",
    "checkpoint_every",
    "keep_checkpoints",
    "evaluate_every",
    "nonfinite",
)
SAMPLED = 64
"""Values read of each frozen tensor: enough to tell other weights, and quick for billions of them."""


def fingerprint(
    system: CompoundSystem,
    objective: Any,
    train: Sequence[Pair],
    validation: Sequence[Pair],
    settings: Any,
) -> dict[str, str]:
    """{part: text}, the same for the same training on any device and in any process."""
    kept = {k: v for k, v in dataclasses.asdict(settings).items() if k not in NOT_OF_THE_WEIGHTS}
    if not kept["redraw_every"] and kept["reference"] == "fixed":
        kept = {k: v for k, v in kept.items() if k not in ON_POLICY}
    return {
        "system": _short(_of_system(system)),
        "objective": describe(objective),
        "training data": _short(_of_pairs(train)),
        "validation data": _short(_of_pairs(validation)),
        **{f"training.{name}": str(value) for name, value in sorted(kept.items())},
    }


def differing(saved: Any, own: Mapping[str, str]) -> str | None:
    """Why a checkpoint is not this training's, in words; None if it is."""
    if not isinstance(saved, Mapping):
        return "does not say which training it is of"
    for part, value in own.items():
        if saved.get(part) != value:
            shown = f" ({saved.get(part)}, here {value})" if part.startswith("training.") else ""
            return f"is of a training with another {part}{shown}"
    return None


def _short(digest: Any) -> str:
    return str(digest.hexdigest()[:16])


def _of_system(system: CompoundSystem) -> Any:
    """Graph, components, the names and shapes of what is trained, and samples of what is not."""
    digest = hashlib.sha256()
    for variable in system.graph:
        parents = [tuple(pair) for pair in variable.parents]
        digest.update(repr((variable.name, variable.role, variable.component, parents, variable.plate)).encode())
    for name, component in system.components.items():
        digest.update(f"{name}: {own_class(component).__qualname__}".encode())
    tensors = [*system.named_parameters(), *system.named_buffers()]
    for name, value in sorted(tensors, key=lambda pair: pair[0]):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        if not value.requires_grad and isinstance(value, torch.nn.Parameter):
            digest.update(_sample(value))
    return digest


@torch.no_grad()
def _sample(value: Tensor) -> bytes:
    flat = full(value.detach()).flatten()
    step = max(1, flat.numel() // SAMPLED)
    return flat[::step][:SAMPLED].cpu().contiguous().view(torch.uint8).numpy().tobytes()


def _of_pairs(pairs: Sequence[Pair]) -> Any:
    digest = hashlib.sha256()
    known: dict[int, str] = {}
    for pair in pairs:
        content = [pair.index, pair.inputs, pair.chosen, pair.rejected]
        digest.update(json.dumps(content, sort_keys=True, default=lambda value: _of_value(value, known)).encode())
    return digest


def _of_value(value: Any, known: dict[int, str]) -> Any:
    """Pictures by their bytes; what occurs in several pairs is read once."""
    if isinstance(value, Mapping):
        return dict(value)
    if id(value) not in known:
        content = value
        if isinstance(value, Image.Image):
            content = repr((value.mode, value.size)).encode() + value.tobytes()
        elif isinstance(value, Tensor):
            content = repr((value.dtype, tuple(value.shape))).encode() + value.detach().cpu().numpy().tobytes()
        elif not isinstance(value, bytes):
            content = repr(value).encode()
        known[id(value)] = hashlib.sha256(content).hexdigest()
    return known[id(value)]


def describe(thing: Any) -> str:
    """A setting object in words that are the same in every process: dataclasses by their fields, others by type."""
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        fields = ", ".join(f"{f.name}={describe(getattr(thing, f.name))}" for f in dataclasses.fields(thing))
        return f"{type(thing).__name__}({fields})"
    if thing is None or isinstance(thing, bool | int | float | str):
        return repr(thing)
    if isinstance(thing, list | tuple):
        return f"[{', '.join(map(describe, thing))}]"
    return type(thing).__qualname__
