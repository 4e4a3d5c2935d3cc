"""scale=paper from end to end: the paper's classes and shipped configs, shrunk, with random weights on a CPU."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from transformers import AutoConfig, AutoModelForCausalLM

from sysdpo.components.image.pretrained import build_diffusion
from sysdpo.components.text.codec import byte_tokenizer
from sysdpo.components.text.language_model import build_language_model
from sysdpo.components.weights import architecture_folder
from sysdpo.experiment.build import build_system
from sysdpo.paths import CONF
from sysdpo.training.checkpoints import checkpoint_path, checkpoint_steps
from sysdpo.training.loop import Trainer
from tests.image_systems import make_diffusion
from tests.integration.commands import ROOT, train_in_process
from tests.systems import LORA

SMALL = {"prompts_per_attribute": 1, "evaluation_prompts_per_attribute": 1, "samples": 3, "validation": 0}
LM = {
    "num_hidden_layers": 1,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
CLIP = "{hidden_size: 16, intermediate_size: 16, num_hidden_layers: 1, num_attention_heads: 2, projection_dim: 16}"


def language_model(name: str) -> list[str]:
    return [
        f"{name}.weights=random",
        f"{name}.dtype=float32",
        *(f"{'' if key == 'num_hidden_layers' else '+'}{name}.architecture.{key}={value}" for key, value in LM.items()),
    ]


def diffusion(name: str, blocks: str, encoders: int, cross: int, **unet: Any) -> list[str]:
    shape = {"block_out_channels": blocks, "norm_num_groups": 4, "cross_attention_dim": cross, **unet}
    return [
        f"{name}.weights=random",
        f"{name}.dtype=float32",
        f"{name}.image_size=64",
        f"{name}.num_inference_steps=2",
        f"{name}.architecture.unet.layers_per_block=1",
        *(f"+{name}.architecture.unet.{key}={value}" for key, value in shape.items()),
        f"+{name}.architecture.vae={{block_out_channels: [4, 4, 4, 4], norm_num_groups: 2, layers_per_block: 1}}",
        f"+{name}.architecture.text_encoders=[{', '.join([CLIP] * encoders)}]",
    ]


TABLE1 = [
    "experiment=table1",
    "scale=paper",
    "device=cpu",
    "max_new_tokens=9",
    "parser=even",
    "scorer.folder=null",
    "scorer.architecture={embedding_size: 4, hidden_sizes: [4, 4, 4, 4], depths: [1, 1, 1, 1], layer_type: basic}",
    "dataset.attributes=[bright]",
    "dataset.min_gap=0",
    *[f"dataset.{key}={n}" for key, n in SMALL.items()],
    *language_model("captioner"),
    *diffusion("diffusion", "[4, 4, 8, 8]", 1, 16, attention_head_dim=2),
    *diffusion(
        "dataset.generator",
        "[4, 8, 8]",
        2,
        32,
        attention_head_dim="[2, 2, 2]",
        transformer_layers_per_block="[1, 1, 1]",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=40,  # 6 time ids of 4 and a pooled text of 16
    ),
]
TABLE2 = [
    "experiment=table2",
    "scale=paper",
    "device=cpu",
    "judge=none",
    "max_new_tokens=5",
    "dataset.evaluation=2",
    *language_model("llm"),
]
TRAINING = [
    "training.batch_size=2",
    "training.micro_batch_size=1",
    "training.learning_rate=1e-3",
    "training.checkpoint_every=1",
]


@pytest.mark.parametrize(("name", "overrides"), [("table1", TABLE1), ("table2", TABLE2)])
def test_sample_train_checkpoint_resume_evaluate(
    name: str, overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is interrupted after its first update ends with the weights of one that was not."""
    rows = [{"system": "s", "question": f"q{i}", "chosen": f"good {i}", "rejected": "bad"} for i in range(6)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = [f"dataset.path={data}"] if name == "table2" else []
    more += ["training.validate_every=0", "training.steps=2", *TRAINING]
    assert train_in_process([*overrides, *more, f"outputs={tmp_path / 'whole'}"], monkeypatch) == 0

    real = Trainer._update

    def dying(self: Trainer) -> dict[str, float]:
        if self.step == 1:
            raise KeyboardInterrupt
        return real(self)

    monkeypatch.setattr(Trainer, "_update", dying)
    assert train_in_process([*overrides, *more, f"outputs={tmp_path / 'cut'}"], monkeypatch) == 130
    monkeypatch.setattr(Trainer, "_update", real)
    assert train_in_process([*overrides, *more, f"outputs={tmp_path / 'cut'}"], monkeypatch) == 0
    whole, cut = (next((tmp_path / kind).glob(f"{name}/paper/*/seed=0")) for kind in ("whole", "cut"))
    first, second = (
        torch.load(checkpoint_path(run / "checkpoints", checkpoint_steps(run / "checkpoints")[0]), weights_only=True)
        for run in (whole, cut)
    )
    assert first["step"] == second["step"] == 2
    assert first["weights"].keys() == second["weights"].keys()
    for key, value in first["weights"].items():
        # the last bits of a convolution's gradient differ from run to run, and Adam divides by small gradients
        torch.testing.assert_close(value, second["weights"][key], rtol=1e-3, atol=2e-5, msg=key)
    metrics = json.loads((cut / "metrics.json").read_text())
    assert ("preference_score" in metrics) == (name == "table1")
    assert (cut / "samples" / "evaluation.jsonl").read_text().strip()
    assert [*(cut / "adapters").glob("*/*.safetensors")]


# ---- folders in the hub's layout go the way of hub ids -------------------------------------------------------------


@pytest.mark.parametrize("name", ["meta-llama/Meta-Llama-3-8B-Instruct", "Qwen/Qwen1.5-1.8B-Chat"])
def test_a_language_model_by_path(name: str, tmp_path: Path) -> None:
    folder = architecture_folder(name)
    assert folder is not None
    torch.manual_seed(0)
    published = json.loads((folder / "config.json").read_text())
    config = AutoConfig.for_model(**{**published, **LM, "vocab_size": 300})
    model = AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    settings: Any = {"dtype": "float32", "device": "cpu", "lora": LORA, "max_new_tokens": 8}
    component = build_language_model(pretrained=str(tmp_path), prompt={"user": "{x}"}, **settings)
    assert type(component.causal_lm) is type(model)
    [score] = component.log_prob(["ab"], [{"x": "q"}])
    ids = [*component.codec.prompt_ids({"x": "q"}), *component.codec.completion_ids("ab")]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    start = len(ids) - len(component.codec.completion_ids("ab"))
    expected = sum(float(logits[i - 1, ids[i]]) for i in range(start, len(ids)))
    assert float(score) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_a_diffusion_pipeline_by_path(kind: str, tmp_path: Path) -> None:
    made: Any = make_diffusion(kind=kind)
    for name, part in {"unet": made.unet, "vae": made.codec.vae, "scheduler": made.scheduler}.items():
        part.save_pretrained(tmp_path / name)
    for (tokenizer, model), suffix in zip(made.captions.encoder.encoders, ("", "_2"), strict=False):
        tokenizer.save_pretrained(tmp_path / f"tokenizer{suffix}")
        model.save_pretrained(tmp_path / f"text_encoder{suffix}")
    settings: Any = {
        "bound": {"beta": 0.1},
        "dtype": "float32",
        "device": "cpu",
        "num_inference_steps": 2,
        "guidance_scale": 2.0,
    }
    loaded = build_diffusion(pretrained=str(tmp_path), **settings)
    [[expected]], [[image]] = (d.sample([{"caption": "a lake"}], 1, [3]) for d in (made, loaded))
    torch.testing.assert_close(image, expected)
    fresh = build_diffusion(pretrained=str(tmp_path), weights="random", seed=5, **settings)
    shapes = [[(n, p.shape) for n, p in d.unet.named_parameters()] for d in (made, fresh)]
    assert shapes[0] == shapes[1]
    assert not torch.equal(next(fresh.unet.parameters()), next(made.unet.parameters()))


# ---- the benchmarks -------------------------------------------------------------------------------------------------


def load_script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    sys.modules[name] = script
    spec.loader.exec_module(script)
    return script


LENGTHS = {"prompt": 10, "longest_prompt": 40, "text": 5}
MEASURED = [
    "benchmark.updates=2",
    "training.batch_size=3",
    "training.micro_batch_size=2",
    "evaluation_batch_size=2",
    *(f"plan.known_tokens.{name}.{key}={n}" for name in ("table1", "table2") for key, n in LENGTHS.items()),
]


def measured(overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `scripts/benchmarks/table.py` writes."""
    arguments = [*MEASURED, *overrides, f"benchmark.results={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["table.py", *arguments])
    GlobalHydra.instance().clear()
    try:
        load_script("table").main()
    finally:
        GlobalHydra.instance().clear()
    [written] = tmp_path.glob("*.json")
    result: dict[str, Any] = json.loads(written.read_text())
    assert written.name == f"{result['experiment']}_paper_cpu.json"
    assert result["overrides"] == arguments
    return result


def check_figures(result: dict[str, Any], overrides: list[str]) -> None:
    """Counts are those of the system itself, built apart; a plan's memory stands beside every peak."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        system = build_system(compose("config", overrides))
    found, parts = result["figures"], [name for name in result["figures"] if name in system.components]
    for name in parts:
        networks = system.component(name).networks().values()
        expected = sum(p.numel() for network in networks for p in network.parameters())
        assert found[name]["parameters"] == {"measured": expected, "planned": expected}
        assert found[name]["trainable"]["measured"] == found[name]["trainable"]["planned"]
    trainable = sum(p.numel() for p in system.parameters() if p.requires_grad)
    assert sum(found[name]["trainable"]["measured"] for name in parts) == trainable
    # weights, two moments, and the weights again as adapters, fp32
    assert found["checkpoint"]["bytes"]["measured"] > 4 * 4 * trainable
    assert found["checkpoint"]["bytes"]["planned"] == 5 * 4 * trainable  # and the best validated weights
    weights = sum(found[name]["weight_bytes"]["planned"] for name in parts)
    phases = {name: figures for name, figures in found.items() if ": " in name}
    assert found["train: score, back"]["peak_bytes"]["planned"] > weights + 2 * 4 * trainable
    for figures in phases.values():
        assert figures["peak_bytes"]["planned"] > weights
        assert isinstance(figures["peak_bytes"]["measured"], int) == Path("/proc/self/clear_refs").exists()
        for kind in ("measured", "planned"):
            assert figures["seconds"][kind] > 0
            if "tokens" in figures:
                rate = figures["tokens"][kind] / figures["seconds"][kind]
                assert figures["tokens_per_second"][kind] == pytest.approx(rate)
        # both extrapolate from one unit by the same count
        times = [3600 * figures["hours"][kind] / figures["seconds"][kind] for kind in ("measured", "planned")]
        assert times[0] == pytest.approx(times[1])


def chatml(user: str) -> int:
    """Tokens of a prompt, one a byte: a turn is two marks, its role, its text and two line ends."""
    return 2 + len("user") + len(user) + 2 + 1 + len("assistant\n")


def test_table_2_is_measured_beside_its_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = [o for o in TABLE2 if not o.startswith("dataset.")]
    result = measured(overrides, tmp_path, monkeypatch)
    check_figures(result, overrides)
    first = chatml("x" * 10)
    second = chatml("Suggested answer: " + "y" * 5 + "\n\nInstruction: " + "x" * 10)
    assert result["lengths"] == {**LENGTHS, "frame": second - 15}
    # K = 2 drafts of five tokens behind one prompt; behind each draft's prompt the chosen and the rejected answer
    found = result["figures"]
    assert found["train: score, back"]["tokens"] == {
        "measured": 2 * (first + 2 * 5 + 2 * (second + 2 * 5)),
        "planned": 2 * (second - 5 + 2 * 5 + 2 * (second + 2 * 5)),  # the longer frame for both
    }
    assert {name: f["tokens"] for name, f in found.items() if "tokens" in f and name != "train: score, back"} == {
        "train: draw y": {"measured": 3 * 2 * 5, "planned": 3 * 2 * 5},  # for all three pairs at a time
        "evaluate: y": {"measured": 2 * 5, "planned": 2 * 5},
        "evaluate: z": {"measured": 2 * 5, "planned": 2 * 5},
    }


@pytest.mark.slow  # a minute; that of Table 2 goes the same way
def test_table_1_is_measured_beside_its_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = [*TABLE1, "training.evaluate_every=0", "diffusion.batch_size=6", "dataset.generator.batch_size=2"]
    result = measured([*overrides, "plan.known_tokens.table1.text=9"], tmp_path, monkeypatch)
    check_figures(result, overrides)
    question = "Write one caption for each of the 3 images, in order, as a numbered list (1. 2. 3.) and nothing else."
    prompt = chatml("x" * 10 + "\n\n" + question) + len("1.")
    found = result["figures"]
    for kind in ("measured", "planned"):
        assert found["train: score, back"]["tokens"][kind] == 2 * (prompt + 2 * 9)
    phases = ["train: score, back", "evaluate: y", "evaluate: z", "make data: y", "make data: z"]
    assert [name for name in found if ": " in name] == phases
    assert found["evaluate: y"]["tokens"] == {"measured": 9, "planned": 9}  # one prompt
    # an attribute, a prompt of three images; three sequences of a prompt, drawn by the other model
    assert found["dataset.generator"]["parameters"]["measured"] > 0
    for phase, images, at_once in (("evaluate: z", 3, 6), ("make data: z", 9, 2)):
        times = 3600 * found[phase]["hours"]["measured"] / found[phase]["seconds"]["measured"]
        assert times == pytest.approx(images / at_once)


def test_the_benchmark_s_ways_reach_the_same_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL's trainer and ours do the same updates from the same start, so their times can be compared."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "benchmarks"))
    script = load_script("training_step")
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", **LM, vocab_size=300, eos_token_id=2, pad_token_id=0, initializer_range=0.3)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    place = {"model": str(tmp_path), "weights": "pretrained", "device": "cpu", "dtype": "float32"}
    lengths = {"batch": 2, "prompt_tokens": 90, "completion_tokens": 12, "rounds": 2, "rate": 3e-3}
    result = script.run({**place, **lengths})
    losses = [[turn["loss"] for turn in turns] for turns in result["turns"].values()]
    assert len(losses) == 4
    assert losses[0][0] == pytest.approx(0.693147, abs=1e-4)
    assert abs(losses[0][-1] - losses[0][0]) > 1e-3
    for other in losses[1:]:
        assert other == pytest.approx(losses[0], abs=2e-4)
    names = {f"step_{what}_{against}_batch2" for what in ("time", "memory") for against in ("vs_trl", "vs_trl_best")}
    assert {figure["name"] for figure in result["figures"]} == names
    assert all(0 < figure["low"] <= figure["ratio"] <= figure["high"] for figure in result["figures"])
