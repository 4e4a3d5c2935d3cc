"""Table 1's data and measure: prompts, pairs from the system's samples, scores, and what is refused."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import load_from_disk
from PIL import Image

from sysdpo.components.image.pixels import to_picture, to_pixels
from sysdpo.data import storage
from sysdpo.data.sources import hold_out
from sysdpo.data.storage import load_rows, save_rows
from sysdpo.errors import SettingError
from sysdpo.sampling.monte_carlo import MonteCarlo
from sysdpo.sampling.strategies import Sampler
from sysdpo.system import CompoundSystem, Pair
from sysdpo.tasks.progression import source as progression
from sysdpo.tasks.progression.measure import Progression
from sysdpo.tasks.progression.prompts import NOUNS, make_prompts
from sysdpo.tasks.progression.sequences import score_sequences, strip
from sysdpo.tasks.progression.source import Progressions
from sysdpo.training.loop import TrainingSettings, check_pairs
from sysdpo.training.objectives import Direct, Sampling
from tests.image_systems import image, make_diffusion, make_image_pairs, make_llm_diffusion

PLACES = ["beach", "lake", "field"]


class Redness:
    """The mean of the red channel is the level of whatever is asked."""

    name = "redness"
    attributes = ("fog", "snow")

    def score(self, images: Sequence[Any], attributes: Sequence[str]) -> list[float]:
        assert len(images) == len(attributes)
        return [float(i[0].mean()) for i in images]


def grey(*levels: float) -> list[torch.Tensor]:
    return [torch.full((3, 8, 8), float(level)) for level in levels]


# ---- prompts -----------------------------------------------------------------------------------------------------


def test_evaluation_shares_no_place_and_attribute_with_training() -> None:
    train, evaluation = make_prompts(list(NOUNS), PLACES, 16, 8, seed=0)
    assert (len(train), len(evaluation)) == (640, 320)
    assert not {(p.place, p.attribute) for p in train} & {(p.place, p.attribute) for p in evaluation}
    assert len({p.x for p in train}) == 640
    assert {p.place for p in evaluation} == set(PLACES)
    for attribute in NOUNS:
        styles = [p.style for p in train if p.attribute == attribute]
        assert {styles.count(s) for s in styles} == {4}
    assert make_prompts(["fog"], PLACES, 3, 3, seed=0)[0] == make_prompts(["fog", "ice"], PLACES, 3, 3, seed=0)[0][:3]


def test_half_of_the_places_can_be_held_out() -> None:
    places = [*PLACES, "city street"]
    train, evaluation = make_prompts(["fog", "ice"], places, 16, 16, seed=0, held_out_places=2)
    for attribute in ("fog", "ice"):
        seen, unseen = ({p.place for p in prompts if p.attribute == attribute} for prompts in (train, evaluation))
        assert (len(seen), len(unseen), seen | unseen) == (2, 2, set(places))
    # a third of four places is one: what None takes, in the same order of chance
    third = make_prompts(["fog"], places, 8, 8, seed=0)[1]
    assert third == make_prompts(["fog"], places, 8, 8, seed=0, held_out_places=1)[1]


@pytest.mark.parametrize("held_out", [0, 3, -1])
def test_every_attribute_needs_places_on_both_sides(held_out: int) -> None:
    with pytest.raises(SettingError, match=f"held_out_places={held_out}.*less than the 3 places"):
        make_prompts(["fog"], PLACES, 1, 1, seed=0, held_out_places=held_out)


def test_the_forty_attributes_are_those_of_the_regressor() -> None:
    assert len(NOUNS) == 40
    assert [list(NOUNS)[i] for i in (0, 7, 24, 30, 39)] == ["dirty", "fog", "dark", "ice", "lush"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["fogg"], PLACES, 1, 1), "did you mean 'fog'"),
        ((["fog"], PLACES, 17, 1), "prompts_per_attribute=17: 2 places give 16"),
        ((["fog"], ["lake"], 1, 1), "at least two"),
    ],
)
def test_prompts_that_cannot_be_made(arguments: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make_prompts(*arguments, seed=0)


# ---- the builder -------------------------------------------------------------------------------------------------


def build(system: CompoundSystem, folder: Path, **settings: Any) -> Any:
    defaults = {"prompts_per_attribute": 2, "evaluation_prompts_per_attribute": 1, "samples": 3, "batch_size": 4}
    source = Progressions(Redness(), PLACES, **{**defaults, **settings})
    return source.prepare(system, folder, needs_intermediates=True)


def test_pairs_are_ranked_stored_and_read_again(tmp_path: Path) -> None:
    system = make_llm_diffusion()
    data = build(system, tmp_path / "a", validation=1)
    again = build(make_llm_diffusion(), tmp_path / "a", validation=1)
    assert [p.chosen for p in data.train] == [p.chosen for p in again.train]
    assert not {p.inputs["x"] for p in data.train} & {p.inputs["x"] for p in data.validation}
    assert {"x", "attribute", "place"} <= set(data.evaluation[0])
    for pair in (*data.train, *data.validation):
        assert pair.extra["chosen_score"] > pair.extra["rejected_score"]
        scored = score_sequences(Redness(), [[to_pixels(z, 8) for z in pair.chosen["z"]]], ["fog"])[0]
        assert scored.score == pytest.approx(pair.extra["chosen_score"], abs=0.02)  # stored with 8 bits a channel
    row = load_from_disk(str(tmp_path / "a" / "train"))[0]
    assert isinstance(row["chosen"]["z"][0], Image.Image)
    log_prob = system.log_prob([data.train[0].row("chosen")])["y"]
    assert data.train[0].extra["chosen_log_prob"]["y"] == pytest.approx(log_prob.item(), abs=1e-3)
    system.check_rows([p.row("rejected") for p in data.train])
    assert Direct().compare(system, data.train[:2], [0, 1]).margin.tolist() == [0.0, 0.0]


def test_a_killed_build_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = build(make_llm_diffusion(), tmp_path / "whole")
    scored, calls = progression.score_sequences, []

    def killed(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return scored(*arguments)

    monkeypatch.setattr(progression, "score_sequences", killed)
    with pytest.raises(KeyboardInterrupt):
        build(make_llm_diffusion(), tmp_path / "killed")
    resumed = build(make_llm_diffusion(), tmp_path / "killed")
    assert len(calls) == 2 + 2  # three batches in all: one was kept
    assert [p.chosen for p in resumed.train] == [p.chosen for p in whole.train]


def test_data_made_of_other_prompts_are_not_taken(tmp_path: Path) -> None:
    """The folder's name is a hash of the config, which names a file of prompts and does not know what is in it."""
    path = tmp_path / "prompts.jsonl"

    def write(word: str) -> None:
        rows = [{"x": f"{word} {a} {i}", "attribute": a, "style": "s"} for a in Redness.attributes for i in range(3)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    write("first")
    data = build(make_llm_diffusion(), tmp_path / "a", prompts=str(path))
    assert {p.inputs["x"].split()[0] for p in data.train} == {"first"}
    build(make_llm_diffusion(), tmp_path / "a", prompts=str(path))
    write("second")
    with pytest.raises(SettingError, match=rf"dataset\.prompts={path}: has other prompts than when"):
        build(make_llm_diffusion(), tmp_path / "a", prompts=str(path))
    with pytest.raises(SettingError, match=r"dataset\.prompts=.*none\.jsonl: there is no such file"):
        build(make_llm_diffusion(), tmp_path / "b", prompts=str(tmp_path / "none.jsonl"))


def test_validation_leaves_something_to_train_on(tmp_path: Path) -> None:
    data = build(make_llm_diffusion(), tmp_path / "a", validation=99)
    settings = TrainingSettings(steps=1, batch_size=1, micro_batch_size=1, learning_rate=1e-3, beta=0.1)
    with pytest.raises(SettingError, match=rf"dataset\.validation leaves nothing of {len(data.validation)} pairs"):
        check_pairs(data.train, data.validation, settings)


def test_validation_prompts_lie_at_equal_distances_with_all_their_pairs() -> None:
    pairs = [Pair(i, {"x": f"prompt {i // 2}"}, {"z": "a"}, {"z": "b"}) for i in range(24)]  # 12 prompts, 2 pairs each
    held, kept = hold_out(pairs, 6)
    assert [p.index for p in held] == [4, 5, 12, 13, 20, 21]  # prompts 2, 6 and 10
    assert sorted(p.index for p in held + kept) == list(range(24))
    assert hold_out(pairs, 0) == ([], pairs)


def test_another_model_may_draw_the_pairs(tmp_path: Path) -> None:
    system = make_llm_diffusion()
    own = build(system, tmp_path / "own")
    other = build(system, tmp_path / "other", generator=lambda: make_diffusion(seed=9))
    by_x = {p.inputs["x"]: p for p in own.train}
    assert any(p.chosen["z"] != by_x[p.inputs["x"]].chosen["z"] for p in other.train)
    texts = {p.chosen["y"] for p in own.train} | {p.rejected["y"] for p in own.train}
    assert {p.chosen["y"] for p in other.train} & texts


def test_a_model_that_only_draws_pairs_keeps_no_second_copy() -> None:
    drawer = make_diffusion(seed=9, train=False)
    system = progression._with_images_from(make_llm_diffusion(), lambda: drawer)
    assert system.component("diffusion") is drawer
    assert "diffusion" not in system.trainable
    assert drawer.frozen_copies() == []


def test_unparsed_texts_are_kept_and_rejected(tmp_path: Path) -> None:
    system = make_llm_diffusion()
    parser: Any = system.component("parser")
    function = parser.function
    parser.function = lambda text: function(text) if len(text) > 8 else []
    data = build(system, tmp_path / "a", samples=4)
    card = json.loads((tmp_path / "a" / "card.json").read_text())
    assert 0 < card["unparsed"] < card["sequences"] == 16
    unparsed = [p for p in data.train if p.rejected["captions"] == []]
    assert unparsed
    assert all(p.rejected["z"] == [] and p.extra["rejected_score"] == -1 for p in unparsed)
    terms = Direct().compare(system, unparsed[:1], [0]).margin
    terms.sum().backward()
    assert any(p.grad is not None and bool(p.grad.any()) for p in system.component("captioner").parameters())


def test_rows_of_every_kind_survive_storage(tmp_path: Path) -> None:
    picture = to_picture(image(0))
    rows = [{"a": 1, "b": [], "c": {"z": [picture, picture]}}, {"a": 2, "b": [0.5], "c": {"z": []}}]
    save_rows(rows, tmp_path / "set")
    loaded = load_rows(tmp_path / "set")
    assert [r["b"] for r in loaded] == [[], [0.5]]
    first, second = loaded[0]["c"]["z"]
    assert first is second
    assert torch.equal(to_pixels(first, 8), to_pixels(picture, 8))


def test_many_images_never_meet_in_one_arrow_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """6,000 pairs of photographs are 7.5 GB a column, and an array ends at 2: rows are handled in parts."""
    sizes = []
    from_list = storage.Dataset.from_list
    monkeypatch.setattr(storage, "PART", 2)
    monkeypatch.setattr(storage.Dataset, "from_list", lambda rows, **k: sizes.append(len(rows)) or from_list(rows, **k))
    rows = [{"a": i, "z": [to_picture(image(i)), to_picture(image(0))]} for i in range(5)]
    save_rows(rows, tmp_path / "set")
    assert sizes == [2, 2, 1]
    files = sorted((tmp_path / "set").rglob("*"))
    loaded = load_rows(tmp_path / "set")
    assert sorted((tmp_path / "set").rglob("*")) == files  # reading writes nothing beside the data
    assert [row["a"] for row in loaded] == [0, 1, 2, 3, 4]
    for i, row in enumerate(loaded):
        assert torch.equal(to_pixels(row["z"][0], 8), to_pixels(rows[i]["z"][0], 8))  # type: ignore[index]
        assert row["z"][1] is loaded[0]["z"][0]  # equal images are kept once, also over parts


# ---- the measure -------------------------------------------------------------------------------------------------


def test_the_worked_examples_of_appendix_e_and_an_unparsed_text() -> None:
    sequences = [grey(1, 0.5, 0), grey(0, 1, 0.9), grey(0, 0.5, 1), []]
    rows = [{"x": str(i), "attribute": name} for i, name in enumerate(["fog", "fog", "snow", "snow"])]
    outputs = [{"y": "t", "captions": [], "z": z} for z in sequences]
    metrics, records = Progression(Redness(), "z").measure(rows, outputs, None)
    q = [-1.0, 0.35, 1.0, -1.0]
    assert [r["preference_score"] for r in records] == pytest.approx(q, abs=1e-6)
    assert metrics["preference_score"]["value"] == pytest.approx(np.mean(q))
    assert metrics["preference_score"]["se"] == pytest.approx(np.std(q, ddof=1) / 2)
    assert metrics["order_consistency"]["value"] == 25.0
    assert metrics["parse_failures"]["value"] == 25.0
    assert metrics["attributes"]["snow"]["order_consistency"] == {"value": 50.0, "se": 50.0, "n": 2}
    assert metrics["scorer"] == "redness"
    # a record's numbers are named and counted as the metrics are: seeds can be pooled row by row
    assert [r["order_consistency"] for r in records] == [0.0, 0.0, 100.0, 0.0]
    assert [r["parse_failures"] for r in records] == [0.0, 0.0, 0.0, 100.0]
    assert records[3]["picture"] is None
    assert records[2]["picture"].size == (12 * (3 * 8 + 2 * 2), 12 * 8)


def test_best_of_n_counts_the_best_of_each_row() -> None:
    sequences = [grey(1, 0.5, 0), grey(0, 0.5, 1), [], grey(0, 1, 0.9)]
    rows = [{"x": x, "attribute": "fog"} for x in ("a", "a", "b", "b")]
    outputs = [{"y": "t", "captions": [], "z": z} for z in sequences]
    measure = Progression(Redness(), "z", best_of=2)
    assert measure.draws == 2
    metrics, records = measure.measure(rows, outputs, None)
    assert [r["preference_score"] for r in records] == pytest.approx([1.0, 0.35], abs=1e-6)
    assert metrics["preference_score"]["n"] == 2


def test_the_share_of_captions_that_name_the_place_is_measured_where_rows_have_one() -> None:
    rows = [{"x": x, "attribute": "fog", "place": "city street"} for x in "ab"]
    outputs = [
        {"captions": ["A City Street.", "A street.", "The city street in fog."], "z": grey(0, 0.5, 1)},
        {"captions": [], "z": []},
    ]
    metrics, records = Progression(Redness(), "z", captions="captions").measure(rows, outputs, None)
    assert [r["place_named"] for r in records] == pytest.approx([200 / 3, 0.0])
    assert metrics["place_named"]["value"] == pytest.approx(100 / 3)
    placeless = [{**rows[0], "place": ""}, rows[1]]
    assert "place_named" not in Progression(Redness(), "z", captions="captions").measure(placeless, outputs, None)[0]


def test_a_strip_shows_the_images_from_left_to_right() -> None:
    picture = np.asarray(strip([torch.full((3, 40, 40), level) for level in (0, 0.5, 1)]))
    assert picture.shape == (80, 248, 3)  # twice 40, and two gaps of 2
    assert [int(picture[0, x, 0]) for x in (0, 79, 80, 84, 163, 247)] == [0, 0, 255, 128, 128, 255]


# ---- one clear line ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [float("nan"), 1.5])
def test_a_scorer_outside_its_range_is_named_with_its_row(level: float) -> None:
    class Broken(Redness):
        def score(self, images: Sequence[Any], attributes: Sequence[str]) -> list[float]:
            return [0.5] * 4 + [level] + [0.5]

    with pytest.raises(SettingError, match=r"scorer redness: row 1, image 2 has level"):
        score_sequences(Broken(), [grey(0, 0, 0), grey(0, 0, 0)], ["fog", "fog"])


def test_a_sequence_of_two_images_has_no_preference_score() -> None:
    with pytest.raises(SettingError, match="row 0 has 2 images"):
        score_sequences(Redness(), [grey(0, 1)], ["fog"])


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (png(to_picture(image(0)))[:-60], "truncated"),
        (b"no picture", "cannot be read"),
        (Image.new("CMYK", (8, 8)), "mode 'CMYK'"),
        (Image.new("RGB", (9, 8)), "8 x 9 pixels where the model has 8 x 8"),
        (torch.full((3, 8, 8), 2.0), r"outside \[0, 1\]"),
        (torch.full((3, 8, 8), float("nan")), r"outside \[0, 1\]"),
        ("picture.png", "not str"),
    ],
)
def test_images_that_cannot_be_scored(value: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        to_pixels(value, 8)
    system, pair = make_llm_diffusion(), make_image_pairs(2)[0]
    row = pair.row("chosen")
    row["z"][1] = value
    with pytest.raises(SettingError, match=f"row 1, z: .*{message}"):
        system.check_rows([pair.row("rejected"), row])


def test_captions_and_images_must_be_equally_many() -> None:
    row = make_image_pairs(2)[0].row("chosen")
    with pytest.raises(SettingError, match="row 0: 'z' has 2 values where plate 'captions' has 3"):
        make_llm_diffusion().check_rows([{**row, "z": row["z"][:2]}])


def test_sysdpo_sampling_is_refused_for_a_diffusion_model() -> None:
    with pytest.raises(SettingError, match=r"'diffusion' has no exact likelihood.*objective=direct"):
        Sampling(Sampler(draw=MonteCarlo(), k=2)).check(make_llm_diffusion())


def test_a_bound_needs_noise_and_one_caption() -> None:
    component = make_diffusion()
    with pytest.raises(SettingError, match="one noise seed a row"):
        component.log_ratio([image(0)], [{"c": "a"}])
    with pytest.raises(SettingError, match="draws from one caption"):
        component.check_parents("diffusion", ["a", "b"])
    with pytest.raises(SettingError, match="no exact likelihood"):
        component.log_prob([image(0)], [{"c": "a"}])


@pytest.mark.parametrize(
    ("bound", "message"),
    [
        ({"reduction": "max"}, "bound.reduction: unknown 'max'"),
        ({"weighting": "snr"}, "bound.weighting: unknown 'snr'"),
        ({"draws": 0}, "bound.draws=0"),
        ({"strength": 2500}, "set bound.beta"),
        ({"strengt": 1}, "strengt"),
    ],
)
def test_bounds_that_make_no_sense(bound: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make_diffusion(bound=bound)


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"r": 2, "lora_dropout": 0.1}, r"lora_dropout=0\.1: must be 0"),
        ({"rank": 2}, "model.lora=.*rank"),
        ({"r": 2, "target_modules": ["nothing"]}, r"model\.lora\.target_modules=\['nothing'\]"),
    ],
)
def test_adapters_that_make_no_sense(lora: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make_diffusion(lora=lora)


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    component = make_diffusion()
    component.unet.save_pretrained(tmp_path / "unet")
    config = json.loads((tmp_path / "unet" / "config.json").read_text())
    config["block_out_channels"] = [8, 16]
    (tmp_path / "unet" / "config.json").write_text(json.dumps(config))
    with pytest.raises(SettingError, match="another architecture"):
        make_diffusion(pretrained=str(tmp_path), weights="pretrained")
    with pytest.raises(SettingError, match="there is no folder"):
        make_diffusion(pretrained="./nowhere", weights="pretrained")


@pytest.mark.parametrize("lacking", ["unet", "scheduler", "vae", "tokenizer", "text_encoder"])
def test_a_pipeline_that_lacks_a_part_is_refused(tmp_path: Path, lacking: str) -> None:
    made: Any = make_diffusion(kind="sd")
    [(tokenizer, text_encoder)] = made.captions.encoder.encoders
    parts = {
        "unet": made.unet,
        "scheduler": made.scheduler,
        "vae": made.codec.vae,
        "tokenizer": tokenizer,
        "text_encoder": text_encoder,
    }
    for name, part in parts.items():
        if name != lacking:
            part.save_pretrained(tmp_path / name)
    with pytest.raises(SettingError, match=rf"its {lacking} cannot be read"):
        make_diffusion(pretrained=str(tmp_path), weights="pretrained")


def test_observations_name_sides_and_timesteps() -> None:
    component = make_diffusion()
    component.log_ratio([image(0), image(1), image(2)], [{"c": "a"}] * 3, [4, 5, 4])
    seen = component.diagnostics()
    assert {"denoising_error/chosen", "denoising_error/rejected_reference"} <= set(seen)
    assert len([name for name in seen if name.startswith("accuracy/t")]) == 1  # one pair: images 0 and 2
    assert component.diagnostics() == {}


def test_a_pair_that_is_there_twice_is_observed_twice() -> None:
    """Its preferred images first, as an objective hands them over: the same values as of the pair alone, each twice."""
    alone, twice = make_diffusion(), make_diffusion()
    alone.log_ratio([image(0), image(1)], [{"c": "a"}] * 2, [4] * 2)
    twice.log_ratio([image(0), image(0), image(1), image(1)], [{"c": "a"}] * 4, [4] * 4)
    expected = {name: [value for value in values for _ in "ab"] for name, values in alone.diagnostics().items()}
    assert twice.diagnostics() == {name: pytest.approx(values, rel=1e-5) for name, values in expected.items()}
