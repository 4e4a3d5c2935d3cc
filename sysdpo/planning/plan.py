"""What a plan says: the weights of each component, the phases of a run, and all of it as text."""

from dataclasses import dataclass, field

from sysdpo.planning.hardware import Gpu

ADAM_BYTES = 8  # two fp32 moments a trainable weight
GENERATOR = "dataset.generator"
"""The component that only draws training data; on the GPU while it does."""


@dataclass
class Part:
    """A component's weights: counts, and bytes in their own precision; `reference` where a frozen copy is kept."""

    parameters: int = 0
    trainable: int = 0
    weight_bytes: int = 0
    reference_bytes: int = 0

    @property
    def optimizer_bytes(self) -> int:
        return ADAM_BYTES * self.trainable


@dataclass
class Phase:
    """A kind of work: its bytes beyond weights and optimizer, and how long all of it takes."""

    name: str
    bytes: int
    note: str
    flops: float = 0.0
    seconds: float = 0.0
    tokens: float = 0.0
    components: tuple[str, ...] | None = None
    """Whose weights lie on the GPU; None: those of the whole system."""


@dataclass
class Plan:
    title: str
    gpu_name: str
    gpu: Gpu
    assumptions: str
    parts: dict[str, Part] = field(default_factory=dict)
    saved: dict[str, int] = field(default_factory=dict)
    largest_bytes: int = 0
    """Of a single tensor, in an update with the longest prompts."""
    phases: list[Phase] = field(default_factory=list)
    usable: float = 0.0
    one_gpu_each: bool = False
    disk: dict[str, float] = field(default_factory=dict)
    judge: str = ""
    missing: list[str] = field(default_factory=list)

    def resident(self, names: tuple[str, ...] | None = None) -> int:
        """Bytes that stay: weights, frozen copies, optimizer."""
        chosen = [p for n, p in self.parts.items() if (n in names if names is not None else n != GENERATOR)]
        return sum(p.weight_bytes + p.reference_bytes + p.optimizer_bytes for p in chosen)

    def total(self, phase: Phase) -> int:
        return phase.bytes + self.resident(phase.components)

    @property
    def needed(self) -> int:
        """The fullest moment on one GPU."""
        return max(map(self.total, self.phases))

    @property
    def fits(self) -> bool:
        return self.needed <= self.usable

    @property
    def hours(self) -> float:
        return sum(p.seconds for p in self.phases) / 3600


def render(plan: Plan) -> str:
    """The plan as text, GiB = 2^30 bytes."""
    gib = 2**30
    lines = [f"Plan: {plan.title}", f"GPU: {plan.gpu_name}, assuming {plan.assumptions}", ""]
    lines += [f"{'component':<20}{'parameters':>16}{'trainable':>13}{'weights':>9}{'reference':>11}{'Adam':>7}  GiB"]
    for name, part in plan.parts.items():
        if part.parameters:
            lines.append(
                f"{name:<20}{part.parameters:>16,}{part.trainable:>13,}{part.weight_bytes / gib:>9.2f}"
                f"{part.reference_bytes / gib:>11.2f}{part.optimizer_bytes / gib:>7.2f}"
            )
    total = sum(p.parameters for p in plan.parts.values())
    trainable = sum(p.trainable for p in plan.parts.values())
    lines += [f"{'total':<20}{total:>16,}{trainable:>13,}", ""]
    saved = ", ".join(f"{name} {size / gib:.1f}" for name, size in plan.saved.items() if size)
    if saved:
        lines += [
            f"kept for the backward pass, longest prompts: {saved} GiB; "
            f"the largest tensor takes {plan.largest_bytes / gib:.2f} GiB",
            "",
        ]
    lines += [f"{'phase':<28}{'memory':>8}{'in all':>8} GiB {'PFLOP':>10}{'tokens':>14}{'hours':>8}  "]
    for phase in plan.phases:
        lines.append(
            f"{phase.name:<28}{phase.bytes / gib:>8.1f}{plan.total(phase) / gib:>8.1f}     {phase.flops / 1e15:>10,.0f}"
            f"{phase.tokens:>14,.0f}{phase.seconds / 3600:>8.2f}  {phase.note}"
        )
    where = "each GPU" if plan.one_gpu_each else "one GPU"
    verdict = "fits" if plan.fits else "does NOT fit"
    lines += [
        "",
        f"{verdict}: {plan.needed / gib:.1f} GiB at the fullest, of {plan.usable / gib:.1f} GiB usable on {where} "
        f"({plan.gpu_name})",
        f"hours expected: {plan.hours:.1f} (an estimate: peaks, assumed utilisation and launch times as named above)",
        "disk: " + ", ".join(f"{name} {size / 1e9:.1f} GB" for name, size in plan.disk.items()),
        f"judge: {plan.judge}",
        "missing here: " + ("; ".join(plan.missing) or "nothing"),
    ]
    return "\n".join(lines)
