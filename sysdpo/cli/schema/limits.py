"""The limits of every setting, by name; what a setting is (text, number, …) its class's annotations say.

A name means the same wherever it stands. `Class.name` goes before it, where one class means something else. A new
setting needs a line here only if any number (from 0 to a million, if whole) is not right for it.
"""

from dataclasses import replace

from sysdpo.cli.schema.kinds import Kind, Limits, kind

SEED = Limits(0, 2**32 - 1)
SMALL = Limits(1, 10_000)
COUNT = Limits(1, 1_000_000)
COUNT_OR_NONE = Limits(0, 1_000_000)
SIZE = Limits(1, 65_536)
POSITIVE = Limits(above=0, most=1e9)
RATE = Limits(above=0, most=10)
NOT_NEGATIVE = Limits(0, 1e9)
SHARE = Limits(0, 1)
SCORE_GAP = Limits(0, 1e6)
NOT_EMPTY = Limits(pattern=r".*\S.*", remedy="more than empty text")
DEVICE = Limits(pattern=r"auto|[a-z]+(:\d+)?", remedy="auto, cpu, cuda or cuda:NUMBER")
WANDB_NAME = Limits(pattern=r"[^/\\#?%:]{1,128}", remedy="1 to 128 characters without / \\ # ? % : (a name in W&B)")
WANDB_GROUP = Limits(pattern=r".{1,128}", remedy="1 to 128 characters long (a group in W&B); set study=…")
WANDB_TAG = Limits(pattern=r".{1,64}", remedy="1 to 64 characters long (a tag in W&B)")

WHOLE = COUNT_OR_NONE
"""Of a whole number that is not named below."""

LIMITS: dict[str, Limits] = {
    "seed": SEED,
    # of the loop
    "steps": Limits(1, 10_000_000),
    "batch_size": Limits(1, 100_000),
    "micro_batch_size": Limits(1, 100_000),
    "learning_rate": RATE,
    "intermediate_learning_rate": RATE,
    "label_smoothing": Limits(0, below=0.5),
    "nll_weight": NOT_NEGATIVE,
    "weight_decay": SHARE,
    "max_grad_norm": POSITIVE,
    "checkpoint_every": COUNT,
    "patience": COUNT,
    "beta": Limits(above=0, most=1e6),
    # of samples
    "k": Limits(1, 1_024),
    "candidates": Limits(1, 1_024),
    "groups": Limits(1, 1_024),
    "diversity_penalty": NOT_NEGATIVE,
    "length_penalty": Limits(-100, 100),
    "top_p": Limits(above=0, most=1),
    "temperature": POSITIVE,
    "max_new_tokens": COUNT,
    "best_of": SMALL,
    # of models
    "pretrained": NOT_EMPTY,
    "device": DEVICE,
    "dtype": NOT_EMPTY,
    "attention": NOT_EMPTY,
    "image_size": Limits(8, 8_192),
    "num_inference_steps": Limits(1, 1_000),
    "guidance_scale": Limits(0, 1_000),
    "num_timesteps": COUNT,
    "strength": POSITIVE,
    "draws": SMALL,
    "count": Limits(1, 1_000),
    "max_characters": COUNT,
    # of data
    "samples": SMALL,
    "evaluation_samples": SMALL,
    "pairs_per_prompt": COUNT,
    "prompts": Limits(1, 1_000_000, pattern=r".*\S.*", remedy="a file, or a number"),
    "prompts_per_attribute": COUNT,
    "evaluation_prompts_per_attribute": COUNT,
    "evaluation_prompts": COUNT_OR_NONE,
    "evaluation": NOT_NEGATIVE,
    "validation": NOT_NEGATIVE,
    "min_gap": SCORE_GAP,
    "limit": Limits(1, 1_000_000_000),
    "answer": NOT_EMPTY,
    "path": NOT_EMPTY,
    "overlong": Limits(pattern="error|drop|cut", remedy="error, drop or cut"),
    "bad_rows": Limits(pattern="error|drop", remedy="error or drop"),
    "hub": NOT_EMPTY,
    "folder": NOT_EMPTY,
    "checkpoint": NOT_EMPTY,
    "cache_dir": NOT_EMPTY,
    # of judges
    "model": NOT_EMPTY,
    "base_url": Limits(pattern=r"https?://\S+", remedy="an address that begins with http:// or https://"),
    "api_key_env": NOT_EMPTY,
    "concurrency": Limits(1, 1_000),
    "timeout_s": Limits(above=0, most=86_400),
    "max_attempts": Limits(1, 1_000),
    "first_wait_s": Limits(0, 86_400),
    "longest_wait_s": Limits(0, 86_400),
    "longest_retry_after_s": Limits(0, 86_400),
    "dollars_per_million_prompt_tokens": NOT_NEGATIVE,
    "dollars_per_million_completion_tokens": NOT_NEGATIVE,
    "characters_per_token": POSITIVE,
    "max_length": COUNT,
    # of loggers
    "WandbLogger.mode": Limits(pattern="offline|online|disabled", remedy="offline, online or disabled"),
    "max_artifact_mb": NOT_NEGATIVE,
    "WandbLogger.project": WANDB_NAME,
    "WandbLogger.group": WANDB_GROUP,
}

ITEMS: dict[str, Limits] = {
    "learning_rates": RATE,
    "WandbLogger.tags": WANDB_TAG,
    "labels": NOT_EMPTY,
    "places": NOT_EMPTY,
    "attributes": NOT_EMPTY,
}
"""Of each item of a list, or value of a mapping."""

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
        "unet": kind("mapping", "null"),
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
    "trainer": Kind(frozenset({"text"}), choices=("joint", "separate")),
    "device": kind("text", limits=DEVICE),
    "max_new_tokens": kind("whole", limits=LIMITS["max_new_tokens"]),
    "best_of": kind("whole", limits=LIMITS["best_of"]),
    "evaluation": kind("mapping", "null"),
    "curve_rows": kind("whole", "null", limits=COUNT),
    "evaluation_batch_size": kind("whole", limits=LIMITS["batch_size"]),
    **dict.fromkeys(
        ("outputs", "table_folder", "run_folder", "data_folder", "study", "experiment", "scale"),
        kind("text", limits=NOT_EMPTY),
    ),
    "title": kind("text"),
    **dict.fromkeys(("rows", "metrics"), kind("list", "null", item=kind("text"))),
    "metric_titles": kind("mapping", "null", item=kind("text")),
    **dict.fromkeys(("paper", "figures"), kind("mapping", "null", item=kind("mapping"))),
    "contrasts": kind("mapping", "null", item=kind("list", item=kind("list", item=kind("text")))),
    **dict.fromkeys(("system", "dataset", "objective", "training", "method"), kind("mapping")),
    **dict.fromkeys(("judge", "logger"), kind("mapping", "null")),
    **dict.fromkeys(
        ("llm", "captioner", "diffusion", "sampler", "prompt", "parser", "bound", "scorer"), kind("mapping")
    ),
    # of plan.yaml, headroom.yaml, generate.yaml, theory.yaml
    **dict.fromkeys(("plan", "benchmark"), kind("mapping")),
    "run": kind("text", limits=NOT_EMPTY),
    "variable": kind("text", "null"),
    "draws": kind("whole", limits=SMALL),
    "batch_size": kind("whole", limits=LIMITS["batch_size"]),
    "ask": kind("text", "null"),
    "inputs": kind("mapping", "null", item=kind("text")),
    "folder": kind("text", "null", limits=NOT_EMPTY),
}
"""Settings that stand at the top; others (a model by its name, a prompt, …) are whatever their `_target_` takes."""

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
    **dict.fromkeys(("updates", "pairs", "rows", "prompt", "longest_prompt", "text"), kind("whole", limits=COUNT)),
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
