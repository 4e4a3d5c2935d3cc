"""A plan as text; GiB = 2^30 bytes."""

from omegaconf import DictConfig

from sysdpo.planning import cost
from sysdpo.planning.hardware import gpu
from sysdpo.planning.missing import missing
from sysdpo.planning.plan import Plan
from sysdpo.training.reach import in_words

GIB = 2**30


def render(plan: Plan, config: DictConfig) -> str:
    """Weights, phases, whether it fits, hours, disk, the judge's price, and what this machine lacks for it."""
    content, assumed = plan.content, plan.content["plan"]
    device = gpu(assumed["gpu"])
    usable = device.memory_gib * GIB * (1 - assumed["reserve"])
    fits = "fits" if plan.needed <= usable else "does NOT fit"
    where = "each GPU" if assumed["one_gpu_each"] else "one GPU"
    return "\n".join(
        [
            f"Plan: {content['experiment']}, scale {content['scale']}, method {content['method']['name']}",
            f"GPU: {assumed['gpu']}, assuming {assumed['compute_utilisation']:.0%} of {device.flops_per_s / 1e12:.0f} "
            f"TFLOP/s (bf16), {assumed['bandwidth_utilisation']:.0%} of {device.bytes_per_s / 1e12:.2f} TB/s, "
            f"{assumed['launch_us']} us a kernel",
            "",
            *_weights(plan),
            "",
            *_kept(plan),
            *_phases(plan),
            "",
            f"{fits}: {plan.needed / GIB:.1f} GiB at the fullest, of {usable / GIB:.1f} GiB usable on {where} "
            f"({assumed['gpu']})",
            f"hours expected: {plan.hours:.1f} "
            "(an estimate: peaks, assumed utilisation and launch times as named above)",
            "disk: " + ", ".join(f"{name} {size / 1e9:.1f} GB" for name, size in cost.disk(plan).items()),
            f"judge: {cost.judge(content)}",
            *(in_words(name, found) for name, found in plan.reaches.items()),
            "missing here: " + ("; ".join(missing(config, content)) or "nothing"),
        ]
    )


def _weights(plan: Plan) -> list[str]:
    parts = {name: part for name, part in plan.parts.items() if part.parameters}
    sums = (sum(p.parameters for p in parts.values()), sum(p.trainable for p in parts.values()))
    return [
        f"{'component':<20}{'parameters':>16}{'trainable':>13}{'weights':>9}{'reference':>11}{'Adam':>7}  GiB",
        *(
            f"{name:<20}{part.parameters:>16,}{part.trainable:>13,}{part.weight_bytes / GIB:>9.2f}"
            f"{part.reference_bytes / GIB:>11.2f}{part.optimizer_bytes / GIB:>7.2f}"
            for name, part in parts.items()
        ),
        f"{'total':<20}{sums[0]:>16,}{sums[1]:>13,}",
    ]


def _kept(plan: Plan) -> list[str]:
    saved = plan.fullest.saved if plan.fullest is not None else {}
    if not any(saved.values()):
        return []
    sizes = ", ".join(f"{name} {size / GIB:.1f}" for name, size in saved.items() if size)
    return [
        f"kept for the backward pass, longest prompts: {sizes} GiB; the largest tensor takes "
        f"{plan.fullest.largest / GIB:.2f} GiB",  # type: ignore[union-attr]
        "",
    ]


def _phases(plan: Plan) -> list[str]:
    return [
        f"{'phase':<28}{'memory':>8}{'in all':>8} GiB {'PFLOP':>10}{'tokens':>14}{'hours':>8}  ",
        *(
            f"{phase.name:<28}{(phase.peak or 0) / GIB:>8.1f}{plan.total(phase) / GIB:>8.1f}     "
            f"{phase.unit.flops * phase.times / 1e15:>10,.0f}{phase.unit.tokens * phase.times:>14,.0f}"
            f"{phase.seconds / 3600:>8.2f}  {phase.note}"
            for phase in plan.phases
        ),
    ]
