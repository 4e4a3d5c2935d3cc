"""The shipped models of table 1 at `mini`: they load without a network and behave as their cards say."""

import json
import math
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from sysdpo.components.image.diffusion import Diffusion
from sysdpo.components.image.latents import PatchComponents
from sysdpo.components.image.pretrained import build_diffusion
from sysdpo.components.text.language_model import LanguageModel
from sysdpo.components.tools.captions import numbered_captions
from sysdpo.paths import ASSETS, CONF
from sysdpo.tasks.progression.prompts import NOUNS, make_prompts
from sysdpo.tasks.progression.scenes import ATTRIBUTES, PLACES, grade_center
from sysdpo.tasks.progression.scorers.scene import SceneScorer, rank_correlation

MODELS = ("mini_captioner", "mini_scene_weak", "mini_scene_strong")
WORDS = {
    "none": ("no", "zero"),
    "slight": ("slight", "a little"),
    "moderate": ("moderate", "some"),
    "heavy": ("heavy", "a lot of"),
    "extreme": ("extreme", "extremely heavy"),
}
"""The cards' own words for each grade."""


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def metrics_of(name: str) -> dict[str, Any]:
    return json.loads((ASSETS / name / "metrics.json").read_text(encoding="utf-8"))


def captioner() -> LanguageModel:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", ["experiment=table1", "scale=mini", "device=cpu"])
    return instantiate(config.captioner, max_new_tokens=config.max_new_tokens, prompt=config.prompt)


def scene_model(name: str) -> Diffusion:
    return build_diffusion(
        bound={}, pretrained=name, dtype="float32", device="cpu", num_inference_steps=8, guidance_scale=1.0
    )


def test_they_are_small_and_come_with_a_card() -> None:
    weights = [p for name in MODELS for p in (ASSETS / name).rglob("*.safetensors")]
    assert len(weights) == 7  # a captioner; twice a denoiser, an encoder and the basis of patches
    assert sum(p.stat().st_size for p in weights) < 7e6
    assert all((ASSETS / name / "card.md").is_file() for name in MODELS)


def test_their_sizes_are_those_of_the_cards() -> None:
    assert sum(p.numel() for p in captioner().model.parameters()) == metrics_of("mini_captioner")["parameters"]
    for name in MODELS[1:]:
        assert sum(p.numel() for p in scene_model(name).unet.parameters()) == metrics_of(name)["parameters"]["unet"]


def test_the_captioner_was_not_trained_on_what_table_1_judges() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        dataset = compose("config", ["experiment=table1", "scale=mini"]).dataset
    sizes = dataset.prompts_per_attribute, dataset.evaluation_prompts_per_attribute
    train, judged = make_prompts(ATTRIBUTES, dataset.places, *sizes, dataset.seed, dataset.held_out_places)
    pairs, held_out = ({(p.place, p.attribute) for p in prompts} for prompts in (train, judged))
    assert pairs | held_out == {(p, a) for p in PLACES for a in ATTRIBUTES}
    assert not pairs & held_out
    # the script that trained it asks for the same split
    script = (CONF.parent / "scripts" / "assets" / "train_mini_captioner.py").read_text(encoding="utf-8")
    assert f"HELD_OUT_PLACES = {dataset.held_out_places}\n" in script
    assert dataset.seed == 0


def test_the_captioner_errs_as_often_as_its_card_says() -> None:
    said = metrics_of("mini_captioner")["held_out"]
    _, prompts = make_prompts(ATTRIBUTES, PLACES, 24, 24, 0, 3)
    prompts = prompts[::2]
    answers = captioner().sample([{"x": p.x} for p in prompts], 1, [9_000 + i for i in range(len(prompts))])
    order = [set(words) for words in WORDS.values()]
    parsed = ordered = 0
    for prompt, answer in zip(prompts, answers, strict=True):
        captions = numbered_captions(str(answer[0]), 3)
        parsed += bool(captions)
        words = [
            c.removeprefix(f"A {prompt.place} with ").removesuffix(f" {NOUNS[prompt.attribute]}.") for c in captions
        ]
        grades = [i for word in words for i, grade in enumerate(order) if word in grade]
        ordered += len(grades) == 3 and grades[0] < grades[1] < grades[2]
    n = len(prompts)
    assert 100 * parsed / n > 90
    share = said["ordered_percent"] / 100
    # the card's own share comes from 288 answers, this one from 144
    error = math.sqrt(share * (1 - share) * (1 / n + 1 / said["answers"]))
    assert abs(ordered / n - share) < 3.5 * error


@pytest.mark.parametrize("name", MODELS[1:])
def test_a_scene_model_follows_captions_as_far_as_its_card_says(name: str) -> None:
    said = metrics_of(name)["measured"]
    rng = Random(5)
    asked = [
        (f"A {rng.choice(PLACES)} with {rng.choice(words)} {NOUNS[attribute]}.", attribute, grade_center(grade))
        for attribute in ATTRIBUTES
        for grade, words in WORDS.items()
        for _ in range(3)
    ]
    images = scene_model(name).sample([{"caption": text} for text, _, _ in asked], 1, list(range(len(asked))))
    found = SceneScorer().score([row[0] for row in images], [attribute for _, attribute, _ in asked])
    levels = np.array([level for _, _, level in asked])
    # 180 pictures: a rank correlation of theirs has a standard error of at most 1 / sqrt(179) = 0.075
    assert rank_correlation(levels, found) == pytest.approx(said["spearman_of_all"], abs=0.2)


def test_the_weak_model_has_headroom_and_the_strong_one_little() -> None:
    weak, strong = (metrics_of(name)["measured"] for name in MODELS[1:])
    assert 0.4 <= weak["mean_spearman"] <= 0.75
    assert 0.35 <= weak["mean_slope"] <= 0.65
    assert strong["mean_spearman"] > 0.85


def test_cards_are_filled(tmp_path: Path) -> None:
    for name in MODELS:
        text = (ASSETS / name / "card.md").read_text(encoding="utf-8")
        assert "{" not in text
        assert "nan" not in text


def test_patch_components_are_a_projection() -> None:
    """Two pixels a side, one channel kept: a picture of equal pixels comes back, its contrast does not."""
    basis = torch.zeros(12, 2)
    basis[0:4, 0] = 0.5  # the mean of the red pixels, as one unit vector
    basis[4:8, 1] = 0.5  # of the green ones
    codec = PatchComponents(4, torch.zeros(12), basis, torch.tensor([2.0, 1.0]))
    assert codec.latent_shape == (2, 2, 2)
    picture = torch.full((1, 3, 4, 4), 0.5)
    picture[:, 0] = 0.75  # in [-1, 1]: red 0.5, green and blue 0
    latents = codec.encode(picture)
    assert latents[0, 0].tolist() == [[0.5, 0.5], [0.5, 0.5]]  # 4 pixels x 0.5 x 0.5, in units of 2
    assert latents[0, 1].abs().max() == 0
    assert torch.equal(codec.decode(latents), picture)
    picture[0, 0, 0, 0] = 1.0  # one red pixel of the first patch: 1.0 instead of 0.5, so its mean is 0.625
    assert codec.decode(codec.encode(picture))[0, 0, :2, :2].tolist() == [[0.8125, 0.8125], [0.8125, 0.8125]]
