"""Table 1 by configuration alone: every scale composes, and the paper's classes run through the same code."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from sysdpo.errors import SettingError
from sysdpo.experiment.build import build_system, made_data
from sysdpo.tasks.progression.scorers.transient import ATTRIBUTES
from sysdpo.training.objectives import Direct
from tests.image_systems import CLIP, LLAMA, UNET, VAE, XL

SMALL = {"prompts_per_attribute": 1, "evaluation_prompts_per_attribute": 1, "samples": 3, "validation": 0}
CONF = Path(__file__).resolve().parents[2] / "conf"
TINY_RESNET = "{embedding_size: 4, hidden_sizes: [4, 4, 4, 4], depths: [1, 1, 1, 1], layer_type: basic}"


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", ["experiment=table1", *overrides])


@pytest.mark.parametrize("scale", ["smoke", "mini", "laptop", "paper"])
@pytest.mark.parametrize("method", ["sysdpo_direct", "before", "best_of_n", "only_llm", "only_diffusion"])
def test_every_row_composes_at_every_scale(scale: str, method: str) -> None:
    config = composed(f"scale={scale}", f"method={method}", *(["scorer.folder=null"] if scale == "paper" else []))
    OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    trained = {"before": [], "best_of_n": [], "only_llm": ["captioner"], "only_diffusion": ["diffusion"]}
    assert config.train == trained.get(method)
    assert config.evaluation.best_of == (4 if method == "best_of_n" else 1)
    assert config.objective._target_.endswith("Direct")


def test_the_paper_trains_sd15_on_pairs_that_sdxl_draws() -> None:
    config = composed("scale=paper")
    assert "Llama-3-8B" in config.captioner.pretrained
    assert "v1-5" in config.system.components.diffusion.model.pretrained
    assert "xl" in config.dataset.generator.pretrained
    assert config.dataset.image_size == config.diffusion.image_size == 512
    assert 40 * config.dataset.prompts_per_attribute * 6 == 6_000


def test_the_miniature_trains_its_weak_scene_model_on_pairs_that_the_strong_one_draws() -> None:
    config = composed("scale=mini")
    assert config.system.components.diffusion.model.pretrained == "mini_scene_weak"
    assert config.dataset.generator.pretrained == "mini_scene_strong"
    assert config.captioner.pretrained == "mini_captioner"


@pytest.mark.parametrize("scale", ["mini", "paper"])
def test_pairs_that_another_model_draws_are_the_same_under_every_seed_and_beta(scale: str) -> None:
    null = ["scorer.folder=null"] if scale == "paper" else []
    made = made_data(composed(f"scale={scale}", *null))
    assert made == made_data(composed(f"scale={scale}", *null, "seed=1", "beta=0.5"))
    assert made != made_data(composed(f"scale={scale}", *null, "dataset.generator.num_inference_steps=9"))
    assert made != made_data(composed(f"scale={scale}", *null, "dataset.seed=1"))


def test_the_paper_s_classes_with_tiny_random_weights(tmp_path: Path) -> None:
    config = composed(
        "scale=paper",
        "device=cpu",
        "max_new_tokens=9",
        "parser=even",
        "scorer.folder=null",
        f"scorer.architecture={TINY_RESNET}",
        "dataset.attributes=[bright, cold]",
        *[f"dataset.{key}={n}" for key, n in SMALL.items()],
        "dataset.min_gap=0",
    )
    shape = {"text_encoders": [CLIP], "vae": VAE, "scheduler": {"clip_sample": False}}
    tiny = {"weights": "random", "dtype": "float32", "pretrained": None}
    unet = {**UNET, "in_channels": 4, "out_channels": 4, "sample_size": 8}
    for model, image_size, changes in ((config.diffusion, 16, {}), (config.dataset.generator, 32, XL)):
        model.update({**tiny, "image_size": image_size, "num_inference_steps": 2})
        model.architecture = OmegaConf.create({**shape, "unet": {**unet, **changes}})
    config.dataset.generator.architecture.text_encoders = [CLIP, CLIP]
    OmegaConf.set_struct(config, False)
    config.captioner.update({**tiny, "architecture": {**LLAMA, "max_position_embeddings": 1024}})

    torch.manual_seed(0)  # of the scorer's random weights, on which it depends whether any two samples differ
    system = build_system(config)
    dataset: Any = OmegaConf.to_container(config.dataset, resolve=True)
    source = instantiate({k: v for k, v in dataset.items() if k != "name"})
    assert source.scorer.attributes == ATTRIBUTES
    data = source.prepare(system, tmp_path / "data", needs_intermediates=True)
    system.check_rows([pair.row("chosen") for pair in data.train])
    compared = Direct().compare(system, data.train[:1], [0])
    assert compared.margin.tolist() == [0.0]
    compared.margin.sum().backward()
    assert {name for name in system.components if any(p.grad is not None for p in system.component(name).parameters())}


def test_the_forty_levels_are_held_in_their_range() -> None:
    scorer: Any = instantiate(
        {
            "_target_": "sysdpo.tasks.progression.scorers.transient.build_transient_resnet50",
            "_convert_": "all",
            "folder": None,
            "architecture": {"embedding_size": 4, "hidden_sizes": [4] * 4, "depths": [1] * 4, "layer_type": "basic"},
        }
    )
    images = [torch.rand(3, 20, 40), torch.rand(3, 300, 280)]
    levels = scorer.score(images, ["bright", "cold"])
    pixels = torch.nn.functional.interpolate(images[0][None], size=(256, 512), mode="bilinear", antialias=True)
    raw = scorer.model(pixels[..., 128:384] * 2 - 1).logits[0, list(ATTRIBUTES).index("bright")]
    assert levels[0] == pytest.approx(float(raw.clamp(0, 1)), abs=1e-6)
    assert ((levels >= 0) & (levels <= 1)).all()
    with pytest.raises(SettingError, match="did you mean 'bright'"):
        scorer.score(images[:1], ["brigth"])
