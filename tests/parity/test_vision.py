"""A vision-language model against transformers' own loss and generation, and the critic's system trained as one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from PIL import Image

from sysdpo.components.text.vision import VisionLanguageModel, as_picture, build_vision_language_model
from sysdpo.errors import SettingError
from sysdpo.losses import preference_loss
from sysdpo.sampling.monte_carlo import MonteCarlo
from sysdpo.system import Pair
from sysdpo.training.objectives import Direct
from tests.composed import build, compose_system
from tests.image_systems import image
from tests.systems import perturb

ASKED = "<|im_start|>user\n<image>\nIt should show: a lake<|im_end|>\n<|im_start|>assistant\n"
PROMPT = {"user": "{draft}\nIt should show: {x}"}


def make_critic(**settings: Any) -> VisionLanguageModel:
    model: Any = compose_system("picture_critic").critic
    keys = {k: v for k, v in model.items() if k not in ("_target_", "generation", "lora")}
    lora = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]}
    defaults = {"generation": MonteCarlo(temperature=0.0), "max_new_tokens": 6, "lora": lora}
    return build_vision_language_model(prompt=PROMPT, **{**keys, **defaults, **settings})


def parents(seed: int) -> dict[str, Any]:
    return {"x": "a lake", "draft": as_picture(image(seed, 16))}


def test_the_log_probability_is_minus_the_model_s_own_loss() -> None:
    component = make_critic(lora=None)
    rows = [parents(1), parents(2), parents(1)]
    ours = component.log_prob(["dull", "too dark", "dull"], rows)
    model, processor = component.causal_lm, component.processor
    for value, answer, row in zip(ours, ("dull", "too dark", "dull"), rows, strict=True):
        made = processor(
            text=ASKED + answer + ("<|im_end|>" if len(answer) < 6 else ""), images=row["draft"], return_tensors="pt"
        )
        count = min(len(answer) + 1, 6)  # one token a byte, and the turn's end where the limit leaves room
        ids = made["input_ids"] if len(answer) < 6 else made["input_ids"][:, : -(len(answer) - 6) or None]
        labels = ids.clone()
        labels[:, :-count] = -100
        loss = model(input_ids=ids, pixel_values=made["pixel_values"], labels=labels).loss
        torch.testing.assert_close(value, -loss * count, rtol=1e-5, atol=1e-5)
    assert ours[0] == ours[2]


def test_a_picture_is_looked_at_whatever_holds_it(tmp_path: Path) -> None:
    component = make_critic(lora=None)
    picture = as_picture(image(1, 16))
    picture.save(tmp_path / "p.png")
    tensor = torch.from_numpy(__import__("numpy").asarray(picture).copy()).permute(2, 0, 1) / 255
    kinds = [picture, (tmp_path / "p.png").read_bytes(), tensor]
    values = component.log_prob(["dull"] * 3, [{"x": "a lake", "draft": kind} for kind in kinds])
    assert values[0] == values[1] == values[2]
    assert (component.log_prob(["dull"], [parents(2)]) - values[0]).abs() > 1e-6


def test_greedy_texts_are_those_of_generate() -> None:
    component = make_critic(lora=None)
    (texts,) = component.sample([parents(3)], 1, [0])
    made = component.processor(text=ASKED, images=parents(3)["draft"], return_tensors="pt")
    with torch.no_grad():
        ids = component.causal_lm.generate(**made, do_sample=False, max_new_tokens=6)
    assert texts == [component.codec.decode(ids[0, made["input_ids"].shape[1] :].tolist())]


def test_policy_reference_and_adapter(tmp_path: Path) -> None:
    component = make_critic()
    values, rows = ["dull", "bright"], [parents(1), parents(2)]
    assert component.log_ratio(values, rows).tolist() == [0.0, 0.0]
    perturb(component, 0.3)
    ratio = component.log_ratio(values, rows)
    assert ratio.abs().min() > 1e-5
    component.save(str(tmp_path))
    fresh = make_critic(lora=None)
    before = fresh.log_prob(values, rows)
    PeftModel.from_pretrained(fresh.causal_lm, str(tmp_path))
    torch.testing.assert_close(fresh.log_prob(values, rows) - before, ratio, rtol=1e-4, atol=1e-5)
    restored = make_critic()
    restored.restore(str(tmp_path))
    torch.testing.assert_close(restored.log_ratio(values, rows), ratio)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            {"x": "<image> of a lake", "draft": Image.new("RGB", (16, 16))},
            "'<image>', which is a sign of the model's own",
        ),
        ({"x": "a lake", "draft": b"\x89PNG\r\n\x1a\n and no more"}, "a picture cannot be read"),
    ],
)
def test_what_cannot_be_shown_is_one_line(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(SettingError, match=reason):
        make_critic().check_row(row)


def test_writer_painter_and_critic_are_trained_as_one_system() -> None:
    """Two passes of the loop: the critic looks at the first picture, then at the second; all three get gradients."""
    system = build("picture_critic", ["max_new_tokens=4"])
    drawn = system.generate([{"x": "a lake"}, {"x": "a road"}], [1, 2])
    assert {"draft", "critique_1", "z_1", "critique", "better", "z"} <= set(drawn[0])
    pictures = [drawn[0][name] for name in ("draft", "z_1", "z")]
    assert all(picture.shape == (3, 32, 32) for picture in pictures)
    names = [v.name for v in system.graph.generated]
    chosen, rejected = ({name: row[name] for name in names} for row in drawn)
    system.train_only(["writer", "painter", "critic"])
    compared = Direct().compare(system, [Pair(0, {"x": "a lake"}, chosen, rejected)], [0])
    assert compared.margin.tolist() == pytest.approx([0.0], abs=1e-4)
    preference_loss(compared.margin, 0.1).sum().backward()
    for name in ("writer", "painter", "critic"):
        assert any(p.grad is not None and bool(p.grad.any()) for p in system.component(name).parameters()), name
