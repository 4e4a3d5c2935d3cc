"""The paper's own setting, as far as it can be proved without its weights: configs, architectures, data, access."""

import json
import math
import socket
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
)
from transformers.models.t5.modeling_t5 import T5EncoderModel

from sysdpo.components.hub import check_available
from sysdpo.components.weights import ARCHITECTURES, architecture_folder
from sysdpo.data.files import read_rows
from sysdpo.data.records import make_pairs
from sysdpo.data.sources import Recorded, split
from sysdpo.errors import SettingError
from sysdpo.experiment.build import build_system
from sysdpo.experiment.downloads import check_downloads, evaluation_models, hub_models
from sysdpo.planning.sizes import curve_rows, evaluation_rows, kept_checkpoints, training_prompts
from sysdpo.tasks.progression.prompts import make_prompts
from tests.systems import make_two_llm

CONF = Path(__file__).resolve().parents[2] / "conf"
SAMPLE = Path(__file__).resolve().parents[3] / "shared" / "data" / "orca_pairs_sample.jsonl"


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", ["scale=paper", *overrides])


# ---- architectures -------------------------------------------------------------------------------------------------

PUBLISHED = {  # parameters, as the model cards and the checkpoints' own indices state them
    "llama3_8b": 8_030_261_248,
    "qwen1_5_1_8b": 1_836_828_672,
    "sd15/unet": 859_520_964,
    "sd15/vae": 83_653_863,
    "sd15/text_encoder": 123_060_480,
    "sdxl/unet": 2_567_463_684,
    "sdxl/vae": 83_653_863,
    "sdxl/text_encoder": 123_060_480,
    "sdxl/text_encoder_2": 694_659_840,
    "sd35_medium/transformer": 2_243_171_520,
    "sd35_medium/vae": 83_819_683,
    "sd35_medium/text_encoder": 123_650_304,
    "sd35_medium/text_encoder_2": 694_659_840,
    "sd35_medium/text_encoder_3": 4_762_310_656,
}


@pytest.mark.parametrize("part", PUBLISHED)
def test_the_shipped_architectures_have_the_published_number_of_parameters(part: str) -> None:
    folder = architecture_folder(next(iter(ARCHITECTURES)))
    assert folder is not None
    folder = folder.parent / part
    with torch.device("meta"):
        model: Any
        if part.endswith("unet"):
            model = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder))
        elif part.endswith("transformer"):
            model = SD3Transformer2DModel.from_config(SD3Transformer2DModel.load_config(folder))
        elif part.endswith("_3"):
            model = T5EncoderModel(T5Config.from_pretrained(folder))
        elif part.endswith("vae"):
            model = AutoencoderKL.from_config(AutoencoderKL.load_config(folder))
        elif "text" in part:
            cls = CLIPTextModelWithProjection if part.endswith("_2") or "sd35" in part else CLIPTextModel
            model = cls(CLIPTextConfig.from_pretrained(folder))
        else:
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    again = "encoder.embed_tokens"  # T5's one embedding, under its second name
    assert sum(p.numel() for name, p in model.named_parameters() if not name.startswith(again)) == PUBLISHED[part]


# ---- configs -------------------------------------------------------------------------------------------------------


def test_table_2_states_the_paper_s_settings() -> None:
    config = composed("experiment=table2")
    assert config.beta == 0.5
    assert config.training.learning_rate == 1e-7
    assert config.training.batch_size == 128
    assert config.max_new_tokens == 256
    assert config.sampler.k == 2
    assert config.dataset.hub == "Intel/orca_dpo_pairs"
    assert config.judge._target_.endswith("AlpacaEvalJudge")
    assert {c.model.pretrained for c in config.system.components.values()} == {"Qwen/Qwen1.5-1.8B-Chat"}
    assert hub_models(config) == ["Qwen/Qwen1.5-1.8B-Chat"]


def test_table_1_keeps_its_own_data() -> None:
    config = composed("experiment=table1", "scorer.folder=null")
    assert config.dataset.name == "progression"
    drawn = ["stable-diffusion-v1-5/stable-diffusion-v1-5", "stabilityai/stable-diffusion-xl-base-1.0"]
    assert hub_models(config) == ["meta-llama/Meta-Llama-3-8B-Instruct", *drawn]
    assert composed("experiment=table2", "dataset=jsonl", "dataset.path=x").dataset.name == "jsonl"


def test_the_paper_s_250_prompts_an_attribute_can_be_had() -> None:
    dataset = composed("experiment=table1", "scorer.folder=null").dataset
    assert dataset.min_gap == 0  # all six pairs of a prompt
    train, evaluation = make_prompts(["bright", "fog"], dataset.places, 250, 25, seed=0)
    assert len({prompt.x for prompt in train}) == len(train) == 500
    assert not {(p.attribute, p.place) for p in train} & {(p.attribute, p.place) for p in evaluation}


def test_figures_6_and_7_have_points_over_every_evaluation_row() -> None:
    """Table 2 at the start and every 10 of 99 updates: 11 points of 193 rows. Table 1: 16 points of 5 x 40 rows."""
    for experiment, rows in (("table2", 11 * 193), ("table1", 16 * 200)):
        config = composed(f"experiment={experiment}", *(["scorer.folder=null"] if experiment == "table1" else []))
        content: Any = OmegaConf.to_container(config, resolve=True)
        assert curve_rows(content) == rows
        assert curve_rows({**content, "train": []}) == 0
        assert kept_checkpoints(content["training"]) == math.ceil(
            content["training"]["steps"] / content["training"]["checkpoint_every"]
        )


def test_the_system_s_own_samples_are_planned_for() -> None:
    dataset: Any = OmegaConf.to_container(composed("experiment=table2", "dataset=own_samples").dataset, resolve=True)
    assert training_prompts(dataset) == 12_666
    assert training_prompts({**dataset, "limit": 100}) == 100
    assert evaluation_rows(dataset) == 193
    config = composed("experiment=table2", "dataset=own_samples", "judge=none")
    assert evaluation_models(config) == {"dataset.judge.model": "Skywork/Skywork-Reward-V2-Qwen3-4B"}


@pytest.mark.parametrize(("scale", "said"), [("paper", None), ("mini", None), ("laptop", "Answer briefly and")])
def test_brief_answers_are_asked_for_at_laptop_only(scale: str, said: str | None) -> None:
    config = composed("experiment=table2", f"scale={scale}")
    for name in ("psi1", "psi2"):
        system = config.system.components[name].prompt.system
        assert (system is None) if said is None else system.startswith(said)


def test_bound_paper_is_the_squared_norm_with_its_weight() -> None:
    bounds = {}
    for scale in ("paper", "laptop"):
        config = composed("experiment=table1", f"scale={scale}", *(["scorer.folder=null"] if scale == "paper" else []))
        bounds[scale] = (config.bound.reduction, config.bound.weighting, config.bound.strength)
    assert bounds == {"paper": ("sum", "exact", None), "laptop": ("mean", "uniform", None)}


def test_every_model_of_table_1_may_have_a_device_of_its_own() -> None:
    config = composed("experiment=table1", "captioner.device=cuda:0", "diffusion.device=cuda:1", "scorer.folder=null")
    components = config.system.components
    assert (components.captioner.model.device, components.diffusion.model.device) == ("cuda:0", "cuda:1")


# ---- Intel/orca_dpo_pairs ------------------------------------------------------------------------------------------


def test_the_split_has_the_paper_s_sizes_and_those_of_scikit_learn_s_rule() -> None:
    from datasets import Dataset

    rows = Dataset.from_dict({"i": list(range(12_859))}).train_test_split(test_size=0.015, seed=0)
    dataset: Any = OmegaConf.to_container(composed("experiment=table2").dataset)
    pairs = make_pairs(
        [{"x": str(i), "chosen": "a", "rejected": "b"} for i in range(12_859)], _graph(), needs_intermediates=False
    )
    data = split(pairs, dataset["evaluation"], dataset["validation"], dataset["seed"])
    assert (len(data.train), len(data.evaluation)) == (12_666, 193) == (len(rows["train"]), len(rows["test"]))
    assert data.validation == []
    assert not {p.inputs["x"] for p in data.train} & {row["x"] for row in data.evaluation}


def _graph() -> Any:
    return make_two_llm().graph


def test_rows_of_the_hub_s_columns(tmp_path: Path) -> None:
    rows = [
        {"system": "Be brief.", "question": f"What is {i}?", "chosen": f"It is {i}.", "rejected": "No."}
        for i in range(8)
    ]
    rows[3]["system"] = ""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = composed("experiment=table2", f"dataset.path={path}", "dataset.evaluation=2")
    content: Any = OmegaConf.to_container(config.dataset)
    data = instantiate({k: v for k, v in content.items() if k != "name"}).prepare(make_two_llm(), tmp_path, False)
    texts = {str(p.inputs["x"]) for p in data.train} | {str(row["x"]) for row in data.evaluation}
    assert texts == {f"Be brief.\n\nWhat is {i}?" for i in range(8) if i != 3} | {"What is 3?"}
    assert len(data.evaluation) == 2
    assert all(row["chosen"]["z"].startswith("It is") for row in data.evaluation)


@pytest.mark.skipif(not SAMPLE.is_file(), reason="the sample of Intel/orca_dpo_pairs is not on this machine")
def test_real_rows() -> None:
    rows = read_rows(SAMPLE)
    pairs = make_pairs(rows, _graph(), needs_intermediates=False, inputs={"x": "{system}\n\n{question}"})
    assert len(pairs) == len(rows) == 240
    assert pairs[0].inputs["x"].startswith(rows[0]["system"])
    assert pairs[0].inputs["x"].endswith(rows[0]["question"].rstrip())


def test_a_data_set_out_of_reach_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr("sysdpo.data.files.load_dataset", refuse)
    with pytest.raises(SettingError, match=r"Intel/orca_dpo_pairs.*dataset\.path"):
        Recorded(hub="Intel/orca_dpo_pairs").prepare(make_two_llm(), Path(), False)
    random = "llm.weights=random"  # no model is asked for
    with pytest.raises(SettingError, match=r"^dataset\.hub='Intel/orca_dpo_pairs'"):
        check_downloads(composed("experiment=table2", random))
    check_downloads(composed("experiment=table2", random, "dataset.path=pairs.jsonl"))


# ---- access to gated models ----------------------------------------------------------------------------------------


def _refusal(cls: Any) -> Exception:
    return cls("refused", response=httpx.Response(403, request=httpx.Request("GET", "https://hub/x")))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (_refusal(GatedRepoError), "gated"),
        (_refusal(RepositoryNotFoundError), "no such model"),
        (OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE"),
    ],
)
def test_a_model_that_cannot_be_had_is_one_line_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception, reason: str
) -> None:
    from sysdpo.experiment.run import run

    def refuse(self: HfApi, repository: str, **_: Any) -> None:
        raise error

    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("something was loaded")

    check_available.cache_clear()
    monkeypatch.setattr(HfApi, "auth_check", refuse)
    monkeypatch.setattr("sysdpo.components.hub.try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr("sysdpo.experiment.run.build_system", load)
    config = composed("experiment=table1", "scorer.folder=null", f"outputs={tmp_path}")
    with pytest.raises(SettingError) as caught:
        run(config)
    line = str(caught.value)
    name = "meta-llama/Meta-Llama-3-8B-Instruct"
    for part in (name, reason, f"https://huggingface.co/{name}", "hf auth login"):
        assert part in line
    assert "\n" not in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("overrides", "setting", "name"),
    [
        (["experiment=table2", "judge=reward_model", "judge.model=owner/name"], "judge.model", "owner/name"),
        (["experiment=table1", "scorer=clip_antonym"], "scorer.pretrained", "openai/clip-vit-large-patch14"),
    ],
)
def test_a_model_of_the_evaluation_is_asked_for_before_training(
    monkeypatch: pytest.MonkeyPatch, overrides: list[str], setting: str, name: str
) -> None:
    """A reward model is loaded when training is over; that it is not to be had is known before."""

    def refuse(self: HfApi, repository: str, **_: Any) -> None:
        if repository == name:
            raise _refusal(GatedRepoError)

    check_available.cache_clear()
    monkeypatch.setattr(HfApi, "auth_check", refuse)
    monkeypatch.setattr("sysdpo.components.hub.try_to_load_from_cache", lambda *_: None)
    with pytest.raises(SettingError, match=rf"^{setting}='{name}': it is gated"):
        check_downloads(composed(*overrides))
    check_available.cache_clear()


def test_a_hub_out_of_reach_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for real, at a port where nobody listens: the error is that of the hub's own HTTP client."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}"
    check_available.cache_clear()
    monkeypatch.setattr("sysdpo.components.hub.HfApi", partial(HfApi, endpoint=nobody))
    with pytest.raises(
        SettingError, match=r"^model\.pretrained='owner/name': .*cannot be reached \(ConnectError\).*download"
    ):
        check_available("owner/name")
    check_available.cache_clear()


def test_what_was_downloaded_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: HfApi, repository: str, **_: Any) -> None:
        raise AssertionError("the hub was asked")

    check_available.cache_clear()
    monkeypatch.setattr(HfApi, "auth_check", refuse)
    monkeypatch.setattr(
        "sysdpo.components.hub.try_to_load_from_cache",
        lambda _, name: "/cache/x" if name == "model_index.json" else None,
    )
    check_available("stabilityai/stable-diffusion-xl-base-1.0")
    check_available.cache_clear()


# ---- weights=random ------------------------------------------------------------------------------------------------

TINY_LM = [
    f"llm.architecture.{key}={value}"
    for key, value in {
        "num_hidden_layers": 1,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }.items()
]


def test_the_paper_s_language_models_with_random_weights_at_reduced_size() -> None:
    config = composed(
        "experiment=table2",
        "device=cpu",
        "llm.weights=random",
        *(f"+{key}" if "layers" not in key else key for key in TINY_LM),
        "llm.dtype=float32",
        "max_new_tokens=4",
    )
    system = build_system(config)
    model = system.component("psi1").causal_lm
    assert type(model).__name__ == "Qwen2ForCausalLM"
    assert model.config.vocab_size == 151_936
    assert model.config.rope_parameters["rope_theta"] == 1_000_000
    [row] = system.generate([{"x": "Say something."}], [0])
    assert row["z"]  # every id of the vocabulary is text
    ratio = system.log_ratio([row])
    assert all(torch.isfinite(v).all() and v.abs().max() < 1e-5 for v in ratio.values())
