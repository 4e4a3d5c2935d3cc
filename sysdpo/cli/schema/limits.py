"""What settings are that no class's annotations describe: those at the top, of a system, of a plan, of a library."""

from dataclasses import replace

from sysdpo.cli.schema.kinds import Kind, kind
from sysdpo.limits import (
    COUNT,
    COUNT_OR_NONE,
    DEVICE,
    LIMITS,
    NOT_EMPTY,
    NOT_NEGATIVE,
    POSITIVE,
    RATE,
    SEED,
    SIZE,
    SMALL,
    Limits,
)

TEXTS = kind("text") | kind("list", item=kind("text"))
MODEL_SIZE = kind("whole", "null", limits=SIZE)

NESTED: dict[str, dict[str, Kind]] = {
    "prompt": {
        "user": TEXTS,
        "system": kind("text", "null"),
        "examples": kind("list", item=kind("mapping", item=kind("text"))),
        "prefix": kind("text"),
    },
    "lora": {
        "r": kind("whole", limits=SIZE),
        "lora_alpha": kind("number", limits=POSITIVE),
        "lora_dropout": kind("number", limits=Limits(0, below=1)),
        "target_modules": replace(TEXTS | kind("null"), limits=NOT_EMPTY),
    },
    "architecture": {
        "model_type": kind("text", limits=NOT_EMPTY),
        **dict.fromkeys(
            (
                "hidden_size",
                "intermediate_size",
                "num_hidden_layers",
                "num_attention_heads",
                "num_key_value_heads",
                "sample_size",
                "in_channels",
                "out_channels",
                "norm_num_groups",
                "pixel_unshuffle",
                "max_length",
                "projection_dim",
            ),
            MODEL_SIZE,
        ),
        **dict.fromkeys(
            ("block_out_channels", "layers_per_block", "cross_attention_dim", "attention_head_dim"),
            MODEL_SIZE | kind("list", item=kind("whole", limits=SIZE)),
        ),
        **dict.fromkeys(("down_block_types", "up_block_types"), kind("list", item=kind("text"))),
        **dict.fromkeys(
            ("beta_schedule", "prediction_type", "timestep_spacing"), kind("text", "null", limits=NOT_EMPTY)
        ),
        "max_position_embeddings": kind("whole", "null", limits=Limits(1, 10_000_000)),
        "tie_word_embeddings": kind("flag", "null"),
        **dict.fromkeys(("unet", "transformer"), kind("mapping", "null")),
        "vae": kind("mapping", "null"),
        "scheduler": kind("mapping", "null"),
        "language_model": kind("mapping", "null"),
        "text_encoders": kind("list", "null", item=kind("mapping")),
    },
}
"""Mappings that stand for a foreign library's settings: its other keys are its own to check."""

TOP: dict[str, Kind] = {
    "seed": kind("whole", limits=SEED),
    "beta": kind("number", limits=LIMITS["beta"]),
    "train": kind("list", "null", item=kind("text")),
    "trainer": Kind(frozenset({"text", "mapping"}), choices=("joint", "separate"), is_part=True),
    "device": kind("text", limits=DEVICE),
    **dict.fromkeys(("max_new_tokens", "max_draft_tokens"), kind("whole", limits=LIMITS["max_new_tokens"])),
    "best_of": kind("whole", limits=LIMITS["best_of"]),
    "budget": kind("mapping", item=kind("whole", limits=COUNT)),
    **dict.fromkeys(("evaluation", "labels", "evaluation_system"), kind("mapping", "null")),
    "curve_rows": kind("whole", "null", limits=COUNT),
    "evaluation_batch_size": kind("whole", limits=LIMITS["batch_size"]),
    **dict.fromkeys(
        ("outputs", "table_folder", "run_folder", "data_folder", "study", "experiment", "scale"),
        kind("text", limits=NOT_EMPTY),
    ),
    "title": kind("text"),
    **dict.fromkeys(("rows", "metrics"), kind("list", "null", item=kind("text"))),
    "sheets": kind("list", "null", item=kind("mapping")),
    "metric_titles": kind("mapping", "null", item=kind("text")),
    **dict.fromkeys(("paper", "figures"), kind("mapping", "null", item=kind("mapping"))),
    "contrasts": kind("mapping", "null", item=kind("list", item=kind("list", item=kind("text")))),
    **dict.fromkeys(("system", "dataset", "objective", "training", "method"), kind("mapping")),
    "distributed": kind("mapping"),
    **dict.fromkeys(("judge", "logger"), kind("mapping", "null")),
    "manner": kind("mapping", item=kind("text", "null")),
    **dict.fromkeys(
        ("llm", "captioner", "diffusion", "sampler", "prompt", "parser", "bound", "scorer"), kind("mapping")
    ),
    # of plan.yaml, headroom.yaml, generate.yaml, theory.yaml
    **dict.fromkeys(("plan", "benchmark"), kind("mapping")),
    "run": kind("text", limits=NOT_EMPTY),
    "step": kind("whole", limits=COUNT),
    "variable": kind("text", "null"),
    "draws": kind("whole", limits=SMALL),
    "samples": kind("whole", "list", limits=SMALL),
    "batch_size": kind("whole", limits=LIMITS["batch_size"]),
    "ask": kind("text", "null"),
    "inputs": kind("mapping", "null", item=kind("text")),
    "folder": kind("text", "null", limits=NOT_EMPTY),
}
"""Settings that stand at the top; others (a model by its name, a prompt, …) are whatever their `_target_` takes."""

DISTRIBUTED: dict[str, Kind] = {
    "layout": Kind(frozenset({"text"}), choices=("none", "ddp", "fsdp")),
    "timeout_hours": kind("number", limits=Limits(above=0, most=10_000)),
}

SYSTEM: dict[str, Kind] = {
    "variables": kind("mapping", item=kind("mapping")),
    "components": kind("mapping", item=kind("mapping")),
    "unroll": kind("mapping", "null"),
    "captions_per_prompt": kind("whole", limits=LIMITS["count"]),
}

COMPONENT: dict[str, Kind] = {"learning_rate": kind("number", "null", limits=RATE)}
"""What a component's description says to the loop, not to its class."""

METHOD: dict[str, Kind] = {"name": kind("text", limits=NOT_EMPTY), "title": kind("text")}

DATASET: dict[str, Kind] = {"name": kind("text", limits=NOT_EMPTY)}
"""Names the folder of made data; the rest is the source's own."""

DIVIDED = (("hidden_size", "num_attention_heads"), ("num_attention_heads", "num_key_value_heads"))
"""Sizes of a language model of which the first must be a multiple of the second."""

VARIABLE: dict[str, Kind] = {
    "role": Kind(frozenset({"text"}), choices=("input", "intermediate", "final")),
    "component": kind("text", "mapping", "null"),
    "parents": kind("list", "mapping", "null", item=kind("text")),
    "plate": kind("text", "null"),
    "when": kind("mapping", "null"),
}

UNROLL: dict[str, Kind] = {"loop": kind("mapping", item=kind("text")), "steps": kind("whole", limits=Limits(1, 100))}

PLAN: dict[str, Kind] = {
    "gpu": kind("text", limits=NOT_EMPTY),
    "compute_utilisation": kind("number", limits=Limits(above=0, most=1)),
    "bandwidth_utilisation": kind("number", limits=Limits(above=0, most=1)),
    "launch_us": kind("number", limits=NOT_NEGATIVE),
    "reserve": kind("number", limits=Limits(0, below=1)),
    "one_gpu_each": kind("flag"),
    "characters_per_token": kind("number", limits=POSITIVE),
    "tokens": kind("mapping", item=kind("whole", limits=COUNT)),
    "known_tokens": kind("mapping", item=kind("mapping", item=kind("whole", limits=COUNT))),
    "frame": kind("whole", limits=COUNT_OR_NONE),
}

BENCHMARK: dict[str, Kind] = {
    "updates": kind("whole", limits=COUNT),
    "results": kind("text", limits=NOT_EMPTY),
}

HANDED_ON: dict[str, str] = {
    "sysdpo.components.text.language_model.build_language_model": "sysdpo.components.text.language_model.LanguageModel",
    "sysdpo.components.text.choice.build_choice": "sysdpo.components.text.language_model.build_language_model",
    "sysdpo.components.image.pretrained.build_diffusion": "sysdpo.components.image.diffusion.Diffusion",
}
"""Who takes a target's `**settings`."""

DESCRIBED: dict[str, str] = {
    "training": "sysdpo.training.loop.TrainingSettings",
    "bound": "sysdpo.components.image.denoising.Bound",
}
"""Mappings without a `_target_`, and the class that their keys are of."""
