"""The GPUs a plan can be made for, by what their makers state."""

from dataclasses import dataclass

from sysdpo.errors import SettingError, nearest


@dataclass(frozen=True)
class Gpu:
    """memory_gib: what a process can allocate; flops_per_s: dense bf16 on tensor cores; bytes_per_s: of its memory."""

    memory_gib: float
    flops_per_s: float
    bytes_per_s: float


GPUS = {
    "h200": Gpu(139.0, 989e12, 4.8e12),
    "h100": Gpu(79.0, 989e12, 3.35e12),
    "a100_80gb": Gpu(79.0, 312e12, 2.04e12),
    "a100_40gb": Gpu(39.0, 312e12, 1.56e12),
    "l40s": Gpu(44.0, 362e12, 0.864e12),
    "rtx4090": Gpu(23.5, 165e12, 1.01e12),
}


def gpu(name: str) -> Gpu:
    if name not in GPUS:
        raise SettingError(f"plan.gpu: {nearest(name, GPUS)}")
    return GPUS[name]
