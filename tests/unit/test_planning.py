"""A plan against reality: counts and bytes of what is really built, a real update's peak, arithmetic by hand."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from torch.profiler import ProfilerActivity, profile

from sysdpo.components.base import Component
from sysdpo.errors import SettingError
from sysdpo.experiment.build import build_system
from sysdpo.losses import preference_loss
from sysdpo.planning import cost
from sysdpo.planning.hardware import gpu
from sysdpo.planning.meter import Meter, shapes
from sysdpo.planning.missing import missing
from sysdpo.planning.plan import Plan, count, make_plan
from sysdpo.planning.prediction import Update, on_meta, predict_drawing, predict_update
from sysdpo.planning.text import render
from sysdpo.planning.workload import Workload
from sysdpo.sampling.decoding import next_token_logits
from sysdpo.system import CompoundSystem, Pair
from sysdpo.training.objectives import Direct

CONF = Path(__file__).resolve().parents[2] / "conf"
WIDE = [
    "llm.architecture.hidden_size=128",
    "llm.architecture.intermediate_size=256",
    "llm.architecture.num_hidden_layers=3",
    "+llm.architecture.vocab_size=2000",
]


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("plan", ["scale=smoke", "device=cpu", "max_draft_tokens=${max_new_tokens}", *overrides])


def shapes_of(config: DictConfig) -> CompoundSystem:
    return build_system(OmegaConf.create(on_meta(OmegaConf.to_container(config, resolve=True))))  # type: ignore[arg-type]


# ---- counts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides",
    [
        ["experiment=table2"],
        ["experiment=table2", "llm.lora=null"],
        ["experiment=table2", "llm.architecture.tie_word_embeddings=false", "llm.dtype=bfloat16"],
        ["experiment=table1"],
    ],
)
def test_parameters_and_bytes_are_those_of_the_real_system(overrides: list[str]) -> None:
    config = composed(*overrides)
    real, planned = build_system(config), shapes_of(config)
    for system in (real, planned):
        system.train_only(list(system.components))
    for name in real.components:
        expected, part = [], count(planned.component(name))
        for network in real.component(name).networks().values():
            expected += list(network.parameters())
        assert part.parameters == sum(p.numel() for p in expected), name
        assert part.trainable == sum(p.numel() for p in expected if p.requires_grad), name
        buffers = [b for network in real.component(name).networks().values() for b in network.buffers()]
        assert part.weight_bytes == sum(t.numel() * t.element_size() for t in (*expected, *buffers)), name
        copies = [p for network in real.component(name).frozen_copies() for p in network.parameters()]
        assert part.reference_bytes == sum(p.numel() * p.element_size() for p in copies), name
    assert not any(p.device.type != "meta" for p in planned.parameters())


def test_optimizer_bytes_are_adam_s() -> None:
    config = composed("experiment=table2")
    real = build_system(config)
    trainable = [p for p in real.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable)
    for parameter in trainable:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    state = [v for s in optimizer.state.values() for k, v in s.items() if k != "step"]
    planned = shapes_of(config)
    assert sum(count(planned.component(n)).optimizer_bytes for n in planned.components) == sum(t.nbytes for t in state)


# ---- memory --------------------------------------------------------------------------------------------------------


def peak_allocated(work: Any) -> int:
    """The most bytes that the CPU allocator had given out at once beyond those at the start, as the profiler saw it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


class RealUpdate:
    """One real update of two components on three pairs of equal lengths, and what a plan is told of it."""

    def __init__(self, *overrides: str, checkpointing: bool) -> None:
        self.config = composed("experiment=table2", "objective=direct", "max_new_tokens=64", *WIDE, *overrides)
        OmegaConf.set_struct(self.config, False)
        self.config.llm.update({"gradient_checkpointing": checkpointing, "remember_reference": False})
        self.system = build_system(self.config)
        self.pairs = [
            Pair(i, {"x": f"{i}" * 60}, *({"y": side * 50, "z": side.upper() * 50} for side in ("abc"[i], "def"[i])))
            for i in range(3)
        ]
        self()  # tokenizers and lazy parts; gradients are in place from here on
        self.gradients = sum(p.grad.nbytes for p in self.system.parameters() if p.grad is not None)

    def __call__(self) -> None:
        margin = Direct().compare(self.system, self.pairs, [0, 1, 2]).margin
        preference_loss(margin, 0.1).sum().backward()

    def planned(self) -> Update:
        shaped = shapes_of(self.config)
        for name, parents in {"psi1": {"x": ""}, "psi2": {"x": "", "y": ""}}.items():
            frame = self.system.component(name).prompt_tokens(parents)
            shaped.component(name).take_lengths(frame, 50 + 1)  # one token a byte, and the end token
        return predict_update(shaped, Direct(), Workload(shaped, prompt=60, text=50, elements=1), 3)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_plan_lies_on_the_safe_side_of_a_real_update_by_at_most_two_percent(checkpointing: bool) -> None:
    update = RealUpdate(checkpointing=checkpointing)
    real = peak_allocated(update) + update.gradients
    if checkpointing:  # each of two times three layers keeps the state of the random numbers, which no GPU holds
        real -= 2 * 3 * torch.get_rng_state().nbytes
    planned = update.planned()
    assert real <= planned.meter.peak <= 1.02 * real
    if checkpointing:
        update.config.llm.gradient_checkpointing = False
        without = update.planned()
        assert planned.meter.peak < 0.8 * without.meter.peak
        assert sum(planned.saved.values()) < 0.5 * sum(without.saved.values())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_peak_on_a_gpu_is_within_a_fifth(checkpointing: bool) -> None:
    update = RealUpdate("device=cuda", checkpointing=checkpointing)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    update()
    real = torch.cuda.max_memory_allocated() - before + update.gradients
    assert update.planned().meter.peak == pytest.approx(real, rel=0.2)


def test_the_cache_of_a_real_generation_has_the_planned_bytes() -> None:
    config = composed("experiment=table2", "max_new_tokens=10", *WIDE)
    real = build_system(config).component("psi1")
    ids = torch.zeros(3, 29, dtype=torch.long)
    with torch.no_grad():
        _, cache = next_token_logits(real.causal_lm, ids, torch.ones_like(ids), torch.arange(29).expand(3, -1))  # type: ignore[union-attr]
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert held == 2 * 3 * 3 * 2 * (128 // 4) * 29 * 4  # keys and values, layers, texts, heads, width, tokens, fp32
    planned = predict_drawing(shapes_of(config).component("psi1"), 3, prompt=20)
    assert planned.cache == pytest.approx(held, rel=0.02)  # masks and positions beside it
    assert planned.meter.peak > planned.cache


def test_a_drawing_by_hand() -> None:
    class Grows(Component):
        def drawing(self, n: int, prompt: int) -> Iterator[int]:
            cache = torch.empty(n, 1_000)
            yield 0
            cache = torch.cat([cache, torch.empty(n, 10)], dim=1)  # the old one is given back once the new is there
            yield 7

    drawn = predict_drawing(Grows(), 2)
    assert drawn.cache == 2 * 1_010 * 4
    assert drawn.meter.peak == 2 * (1_000 + 10 + 1_010) * 4
    assert sum(drawn.meter.kernels.values()) == drawn.steps == 7


def test_bytes_alive_by_hand() -> None:
    meter = Meter()
    with shapes(), meter:
        a = torch.empty(1000)  # 4,000 bytes
        b = a + 1  # 8,000
        assert meter.live == 8_000
        a = a[:10]  # a view keeps the whole storage
        assert meter.live == 8_000
        del a
        assert meter.live == 4_000
        b = b * 2  # the old one lives until the new one is there
    assert (meter.live, meter.peak) == (4_000, 8_000)


def test_operations_by_hand() -> None:
    meter = Meter()
    with shapes():
        layer = torch.nn.Linear(32, 48, bias=False)
        x = torch.empty(10, 32, requires_grad=True)
        with meter:
            layer(x).sum().backward()
    assert meter.flops == 3 * 2 * 10 * 32 * 48  # forward, gradient of the input, gradient of the weight
    seconds = meter.seconds(flops_per_s=1.0, bytes_per_s=float("inf"), launch_s=0.0)
    assert seconds == meter.flops
    launches = sum(meter.kernels.values())
    assert meter.seconds(float("inf"), float("inf"), 2.0) == 2.0 * launches
    with shapes(), Meter() as attention:
        q = torch.empty(1, 4, 64, 8)
        torch.nn.functional.scaled_dot_product_attention(q, q, q)
    assert attention.flops == 2 * 2 * 4 * 64 * 64 * 8
    assert attention.peak < 4 * 64 * 64 * 4 + 2 * q.nbytes  # scores are never stored whole


# ---- the plan ------------------------------------------------------------------------------------------------------


def fits(plan: Plan) -> bool:
    return plan.needed <= 0.92 * 2**30 * gpu(plan.content["plan"]["gpu"]).memory_gib


@pytest.mark.parametrize(
    ("experiment", "method"), [("table2", "sysdpo_sampling"), ("table2", "prompted"), ("table1", "sysdpo_direct")]
)
def test_every_kind_of_row_has_a_plan(experiment: str, method: str) -> None:
    config = composed(f"experiment={experiment}", f"method={method}")
    plan = make_plan(config)
    text = render(plan, config)
    assert fits(plan)
    assert plan.hours > 0
    for word in ("parameters", "fits", "hours expected", "disk", "missing here"):
        assert word in text
    assert any(phase.name.startswith("train") for phase in plan.phases) == (method != "prompted")


@pytest.mark.parametrize("system", ["routing", "tool_augmented"])
def test_choices_and_tools_have_a_plan(system: str) -> None:
    """Each component that may draw a variable is planned for; a tool draws nothing on the GPU."""
    plan = make_plan(composed("experiment=table2", f"system={system}"))
    names = {phase.name for phase in plan.phases}
    if system == "routing":
        assert {"train: draw choice", "evaluate: z by brief_expert", "make data: z by whole_expert"} <= names
    else:
        assert {"train: draw expression", "evaluate: z"} <= names
        assert not any("result" in name for name in names)
    assert plan.fullest is not None
    assert set(plan.fullest.saved) == {name for name, part in plan.parts.items() if part.trainable}


def test_images_are_counted_as_the_data_builder_makes_them() -> None:
    plan = make_plan(composed("experiment=table1", "method=before", "dataset.pairs_per_prompt=2", "dataset.samples=3"))
    # twelve attributes of the scene scorer, one prompt each, the two widest of three gaps, two sides, three images
    assert cost.disk(plan)["image pairs"] == pytest.approx(12 * 2 * 2 * 3 * 32 * 32 * 1.6)
    [drawn] = [phase for phase in plan.phases if phase.name == "make data: z"]
    assert drawn.note.startswith("108 images")


def test_what_is_missing_and_what_the_judge_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr("sysdpo.planning.missing.is_cached", lambda _: False)
    config = composed(
        "experiment=table2",
        "judge=alpaca_eval",
        "dataset=orca_pairs",
        "llm.pretrained=owner/name",
        "llm.weights=pretrained",
    )
    content: Any = OmegaConf.to_container(config, resolve=True)
    lacks = " ".join(missing(config, content))
    for part in ("https://huggingface.co/owner/name", "OPENAI_API_KEY", "Intel/orca_dpo_pairs"):
        assert part in lacks
    absent = composed("experiment=table1", "scorer=transient_resnet50", "scorer.folder=/no/such/folder")
    assert "scorer.folder" in " ".join(missing(absent, OmegaConf.to_container(absent, resolve=True)))  # type: ignore[arg-type]
    price = cost.judge(content)
    assert "386 calls" in price  # 193 rows against the chosen answer and the untrained system's
    prompt = 386 * (170 + 220 + 2 * 220)
    assert f"${(prompt * 2.5 + 386 * 10) / 1e6:.2f}" in price
    with pytest.raises(SettingError, match="did you mean 'h200'"):
        gpu("h20")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("experiment", "overrides"),
    [
        ("table2", ["plan.gpu=h200"]),
        ("table2", ["plan.gpu=a100_80gb"]),
        ("table1", ["plan.gpu=a100_80gb", "plan.one_gpu_each=true"]),
    ],
)
def test_the_paper_s_tables_fit(experiment: str, overrides: list[str]) -> None:
    config = composed("scale=paper", f"experiment={experiment}", *overrides)
    plan = make_plan(config)
    assert fits(plan), render(plan, config)
