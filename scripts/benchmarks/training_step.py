"""A DPO step of a one-component system beside TRL's `DPOTrainer`: same model, LoRA, pairs and rate, equal losses.

TRL runs as it comes (the reference recomputed, prompt positions scored too off a GPU) and at its best
(`precompute_ref_log_probs`, completions only, which it does by itself on a GPU). Each meets our step with the reference
treated alike: recomputed against recomputed, remembered against precomputed.
"""

import tempfile
from typing import Any

import torch
from side_by_side import Options, Work, check_equal, measure, memory_ratio, seconds_ratio, serve

from sysdpo.components.text.language_model import LanguageModel, build_language_model
from sysdpo.graph import SystemGraph
from sysdpo.losses import preference_loss
from sysdpo.system import CompoundSystem, Pair
from sysdpo.training.objectives import Direct

BETA, RATE, RANK = 0.1, 1e-4, 16
TEXT = (
    "The harbour lies between two hills, and every morning the boats leave it before the sun is over the water; in "
    "winter the wind turns, the nets stay dry, and the old men talk about years when the ice reached the pier. "
)
GRAPH: dict[str, dict[str, Any]] = {"x": {"role": "input"}, "y": {"role": "final", "component": "m", "parents": ["x"]}}
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
"""Between losses after a few updates: what rounding makes of them."""


def build(options: Options, user: str = "{x}", **settings: Any) -> LanguageModel:
    return build_language_model(
        prompt={"user": user},
        pretrained=options["model"],
        weights=options["weights"],
        dtype=options["dtype"],
        device=options["device"],
        lora={"r": RANK, "lora_alpha": 2 * RANK, "lora_dropout": 0.0, "target_modules": "all-linear"},
        max_new_tokens=options["completion_tokens"] + 16,  # no text is cut off: TRL ends every one with the end token
        **settings,
    )


def make_pairs(options: Options, component: LanguageModel) -> list[Pair]:
    """Pairs of distinct texts of about the asked lengths, the prompt's frame included: windows of one passage."""
    tokenizer = component.codec.tokenizer
    ids = tokenizer(TEXT * 50, add_special_tokens=False)["input_ids"]
    frame = len(component.codec.prompt_ids({"x": ""}))

    def text(start: int, length: int) -> str:
        return str(tokenizer.decode(ids[start : start + length])).strip()

    asked, written = max(1, options["prompt_tokens"] - frame), options["completion_tokens"]
    return [
        Pair(i, {"x": text(7 * i, asked)}, {"y": text(7 * i + 3, written)}, {"y": text(7 * i + 31, written)})
        for i in range(options["batch"])
    ]


def ours(options: Options, **settings: Any) -> Work:
    component = build(options, **settings)
    pairs = make_pairs(options, component)
    component.trainable(True)
    system = CompoundSystem(SystemGraph(GRAPH, {"m": component}), {"m": component})
    optimizer = torch.optim.AdamW(
        [p for p in system.parameters() if p.requires_grad], lr=options.get("rate", RATE), weight_decay=0.0
    )

    def step() -> dict[str, float]:
        loss = preference_loss(Direct().compare(system, pairs, range(len(pairs))).margin, BETA).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return {"loss": float(loss.detach())}

    return step


def trl(options: Options, best: bool) -> Work:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer
    from trl.trainer import utils

    if best:
        utils._use_triton = lambda device: True  # scores completions only, off a GPU too
    component = build(options, fuse_adapters=False, fuse_norms=False)  # PEFT and transformers as they come
    pairs, codec = make_pairs(options, component), component.codec
    rows = [
        {
            "prompt": str(codec.tokenizer.decode(list(codec.prompt_ids(pair.inputs)))),
            "chosen": codec.decode(codec.completion_ids(pair.chosen["y"])),
            "rejected": codec.decode(codec.completion_ids(pair.rejected["y"])),
        }
        for pair in pairs
    ]
    trainer = DPOTrainer(
        model=component.model,
        args=DPOConfig(
            output_dir=tempfile.mkdtemp(),  # nothing is saved
            per_device_train_batch_size=len(rows),
            beta=BETA,
            learning_rate=RATE,
            max_length=None,
            use_cpu=component.device.type == "cpu",
            bf16=component.causal_lm.dtype == torch.bfloat16,
            gradient_checkpointing=False,
            precompute_ref_log_probs=best,
            report_to=[],
            save_strategy="no",
            logging_steps=1_000_000,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=codec.tokenizer,
    )
    trainer.current_gradient_accumulation_steps = 1  # set by train(), which is not run here
    model: Any = trainer.model
    data: Any = trainer.train_dataset
    batch = trainer.data_collator([data[i] for i in range(len(rows))])
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=options.get("rate", RATE), weight_decay=0.0
    )

    def step() -> dict[str, float]:
        model.train()
        loss = trainer.training_step(model, batch)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return {"loss": float(loss)}

    return step


VARIANTS = {
    "ours, reference recomputed": lambda options: ours(options, remember_reference=False),
    "TRL as it comes": lambda options: trl(options, best=False),
    "ours, reference remembered": lambda options: ours(options),
    "TRL at its best": lambda options: trl(options, best=True),
}


LIKE = {
    "vs_trl": ["ours, reference recomputed", "TRL as it comes"],
    "vs_trl_best": ["ours, reference remembered", "TRL at its best"],
}


def run(options: Options) -> dict[str, Any]:
    figures: list[dict[str, Any]] = []
    turns: dict[str, list[dict[str, Any]]] = {}
    suffix = "" if options["batch"] == 4 else f"_batch{options['batch']}"
    for name, pair in LIKE.items():  # two processes at a time: memory
        turns |= measure(__file__, pair, options, options["rounds"])
        figures.append({"name": f"step_time_{name}{suffix}", **seconds_ratio(turns, *pair)})
        figures.append({"name": f"step_memory_{name}{suffix}", **memory_ratio(turns, *pair)})
    check_equal(turns, "loss", TOLERANCE[options["dtype"]])
    return {"figures": figures, "turns": turns}


if __name__ == "__main__":
    serve(VARIANTS)
