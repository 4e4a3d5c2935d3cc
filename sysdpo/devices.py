"""Which device a model runs on, by one rule for components, scorers and judges."""

import torch

from sysdpo import launched
from sysdpo.errors import SettingError


def resolve_device(device: str) -> torch.device:
    """`auto` is the GPU if there is one."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise SettingError(f"device={device!r}: write auto, cpu, cuda or cuda:0.") from error
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise SettingError(f"device={device}: this machine has no CUDA device; set device=cpu or device=auto.")
    if resolved.index is not None and launched.on_this_machine() > 1:
        raise SettingError(
            f"device={device}: each of the {launched.on_this_machine()} processes has a GPU of its own, and all would "
            "be on this one; write auto or cuda, or run one process (distributed=none)."
        )
    return resolved
