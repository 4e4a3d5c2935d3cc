"""What a run costs beside the GPU: disk, and the money of a paid judge."""

from collections.abc import Mapping
from typing import Any

from sysdpo.planning.plan import ADAM_BYTES, GENERATOR, Plan
from sysdpo.planning.sizes import curve_rows, evaluation_rows, kept_checkpoints, training_prompts

JUDGE_FRAME = 170  # tokens of the judge's own prompt
PNG_BYTES = 1.6  # a pixel of a photograph


def disk(plan: Plan) -> dict[str, float]:
    """Bytes: downloads as the hub stores them (language models bf16, pipelines fp32), and what a run writes."""
    content, dataset, system = plan.content, plan.content["dataset"], plan.system
    models = {name: component.get("model", {}) for name, component in content["system"]["components"].items()}
    models[GENERATOR] = dataset.get("generator") or {}
    taken: dict[str, float] = {}
    for name, part in plan.parts.items():
        is_text = name in system.components and system.component(name).unit == "tokens"
        if source := models.get(name, {}).get("pretrained"):
            taken[f"download {source}"] = (part.parameters - part.trainable) * (2.0 if is_text else 4.0)
    taken["checkpoint and adapters"] = checkpoint_bytes(plan)
    if more := kept_checkpoints(content["training"]) - 1:
        taken[f"{more} more checkpoints"] = more * sum(p.trainable for p in plan.parts.values()) * (8.0 + ADAM_BYTES)
    if "prompts_per_attribute" in dataset:
        samples, images = int(dataset["samples"]), int(content["system"]["captions_per_prompt"])
        pairs = training_prompts(dataset) * min(int(dataset["pairs_per_prompt"]), samples * (samples - 1) // 2)
        drawer: Any = system.component(str(system.graph.finals[0].component))
        size = int(dataset["image_size"] or drawer.codec.image_size)  # at which images are stored
        taken["image pairs"] = pairs * 2 * images * PNG_BYTES * size**2
    return taken


def checkpoint_bytes(plan: Plan) -> int:
    """fp32: weights, Adam's moments, the best validated weights, and the adapters beside them."""
    return sum(part.trainable for part in plan.parts.values()) * (4 + ADAM_BYTES + 4 + 4)


def judge(content: Mapping[str, Any]) -> str:
    """Calls and dollars of the row, and of all rows of its table."""
    asked = judge_of(content)
    if "dollars_per_million_prompt_tokens" not in asked:
        return "no paid judge"
    tokens, rows = content["plan"]["tokens"], evaluation_rows(content["dataset"])
    methods = list(content.get("rows", [1]))
    comparisons = 1 if content["train"] == [] else 2  # the untrained system does not meet itself
    over_training = 2 * curve_rows(content)
    calls = comparisons * rows + over_training
    prompt = calls * (JUDGE_FRAME + int(tokens["prompt"]) + 2 * int(tokens["text"]))
    dollars = (
        prompt * asked["dollars_per_million_prompt_tokens"] + calls * asked["dollars_per_million_completion_tokens"]
    ) / 1e6
    all_calls = (2 * len(methods) - 1) * rows + (len(methods) - 1) * over_training
    return (
        f"{asked['model']}: {calls:,} calls, {prompt:,} prompt tokens, about ${dollars:.2f} for this row; "
        f"{all_calls:,} calls, about ${dollars * all_calls / calls:.2f} for all {len(methods)} rows"
    )


def judge_of(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The judge's settings, where the experiment asks one."""
    asks = str((content["evaluation"] or {}).get("_target_")).endswith("WinRates")
    return (content.get("judge") or {}) if asks else {}
