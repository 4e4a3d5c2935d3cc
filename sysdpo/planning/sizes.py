"""How many rows a data set's config asks for, known before any of them is made or fetched."""

import math
from collections.abc import Mapping
from typing import Any

from sysdpo.tasks.progression.scorers.scene import STATISTICS
from sysdpo.tasks.progression.scorers.transient import ATTRIBUTES

ORCA_ROWS = 12_859  # of Intel/orca_dpo_pairs, of which a share is held out
OF_SCENES = ("SceneScorer", "shipped_scene_regressor")


def evaluation_rows(dataset: Mapping[str, Any]) -> int:
    """Rows to be judged on."""
    if "evaluation_prompts_per_attribute" in dataset:
        return int(dataset["evaluation_prompts_per_attribute"]) * _attributes(dataset)
    if "evaluation_prompts" in dataset:
        return int(dataset["evaluation_prompts"])
    held = float(dataset.get("evaluation", 0))
    return int(held) if held >= 1 else math.ceil(held * ORCA_ROWS)


def training_prompts(dataset: Mapping[str, Any]) -> int:
    """Prompts for which training pairs are made; 0 where the pairs are recorded."""
    if "prompts_per_attribute" in dataset:
        return int(dataset["prompts_per_attribute"]) * _attributes(dataset)
    if "samples" in dataset and "hub" in dataset:  # the system's own samples on recorded prompts
        rows = ORCA_ROWS - evaluation_rows(dataset)
        return min(rows, int(dataset["limit"] or rows))
    return int(dataset.get("prompts", 0))


def curve_rows(content: Mapping[str, Any]) -> int:
    """Rows answered for the curves over training: at the start, every `evaluate_every` updates and at the end."""
    training = content["training"]
    every, steps = int(training["evaluate_every"]), int(training["steps"])
    if not every or content["train"] == [] or content["trainer"] != "joint":
        return 0
    rows = evaluation_rows(content["dataset"])
    return (1 + math.ceil(steps / every)) * min(rows, int(content["curve_rows"] or rows))


def kept_checkpoints(training: Mapping[str, Any]) -> int:
    """The most that lie on the disk side by side."""
    written = math.ceil(int(training["steps"]) / int(training["checkpoint_every"]))
    return written if training["keep_checkpoints"] is None else min(written, int(training["keep_checkpoints"]))


def _attributes(dataset: Mapping[str, Any]) -> int:
    """Those that the config names, else all that its scorer knows (which a plan does not load)."""
    scorer = dataset["scorer"]
    known = STATISTICS if scorer["_target_"].endswith(OF_SCENES) else scorer.get("pairs", ATTRIBUTES)
    return len(dataset["attributes"] or known)
