"""The exact scene scorer and the learned one: hand-made pictures, renders of known level, refused input."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sysdpo.errors import SettingError
from sysdpo.tasks.progression.scenes import ATTRIBUTES, PLACES, render
from sysdpo.tasks.progression.scorers.regressor import SceneRegressor
from sysdpo.tasks.progression.scorers.scene import SceneScorer, rank_correlation

ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT / "sysdpo" / "assets"


def as_tensor(picture: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(picture).permute(2, 0, 1).float() / 255


def flat(red: float, green: float, blue: float) -> torch.Tensor:
    return torch.tensor([red, green, blue], dtype=torch.float32).reshape(3, 1, 1).expand(3, 32, 32).clone()


def test_knows_the_renderers_attributes():
    assert set(SceneScorer().attributes) == set(ATTRIBUTES)


def test_flat_pictures_score_as_computed_by_hand():
    scorer = SceneScorer()
    grey = flat(0.676, 0.676, 0.676)  # half way from the neutral luminance 0.46 to 0.892
    assert scorer.score([grey], ["bright"]) == pytest.approx([0.5], abs=1e-6)
    assert scorer.score([grey], ["dark"]) == pytest.approx([0.0])
    assert scorer.score([flat(0, 0, 0)], ["dark"]) == pytest.approx([1.0])
    green = flat(0.20, 0.35, 0.10)  # green exceeds red by 0.15: half way from 0.05 to 0.25
    assert scorer.score([green], ["lush"]) == pytest.approx([0.5], abs=1e-6)
    half_snow = flat(0.3, 0.3, 0.3)
    half_snow[:, 24:] = 0.9  # the lower half of the ground, rows 16 to 31
    assert scorer.score([half_snow], ["snow"]) == pytest.approx([0.5], abs=1e-6)


def test_darkness_alone_is_not_night():
    levels = {
        name: SceneScorer().score([as_tensor(render("lake", {name: 1.0}, 0))], ["night"])[0]
        for name in ("dark", "night")
    }
    assert levels["dark"] < 0.1
    assert levels["night"] > 0.9


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_measures_the_true_level_on_renders(attribute):
    rng = np.random.default_rng(11)
    levels = rng.random(120)
    pictures = [
        as_tensor(render(PLACES[row % len(PLACES)], {attribute: level}, row)) for row, level in enumerate(levels)
    ]
    measured = SceneScorer().score(pictures, [attribute])
    assert rank_correlation(levels, measured) > 0.95
    assert np.abs(levels - measured).mean() < 0.08


def test_rank_correlation_by_hand():
    # ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: covariance 4.5, sums of squares 4.5 and 5, so sqrt(4.5 / 5)
    assert rank_correlation([0, 1, 1, 2], [10, 20, 30, 40]) == pytest.approx(np.sqrt(0.9))
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)


def test_pil_tensor_and_array_read_alike():
    picture = render("beach", {"fog": 0.5}, 0)
    scorer = SceneScorer()
    scores = scorer.score([Image.fromarray(picture), as_tensor(picture), as_tensor(picture).numpy()], ["fog"])
    assert scores == pytest.approx([scores[0]] * 3, abs=1e-6)
    assert scorer.score([], []).shape == (0,)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(3, 16, 16), "scene image 1: 16 x 16"),
        (torch.zeros(1, 32, 32), "scene image 1: shape"),
        (torch.full((3, 32, 32), 1.5), "scene image 1: values outside"),
        (torch.full((3, 32, 32), float("nan")), "scene image 1: values outside"),
        (torch.zeros(3, 32, 32, dtype=torch.uint8), "scene image 1: uint8"),
        (Image.new("L", (32, 32)), "scene image 1: mode 'L'"),
        (Image.new("RGB", (32, 30)), "scene image 1: 30 x 32"),
    ],
)
def test_unreadable_images_are_refused_by_row(image, message):
    with pytest.raises(SettingError, match=message):
        SceneScorer().score([torch.zeros(3, 32, 32), image], ["fog"])


def test_unknown_attribute_and_wrong_count():
    with pytest.raises(SettingError, match="unknown 'clouding'; did you mean 'clouds'"):
        SceneScorer().score([flat(0, 0, 0)], ["clouding"])
    with pytest.raises(SettingError, match="2 attributes for 3 images"):
        SceneScorer().score([flat(0, 0, 0)] * 3, ["fog", "snow"])


def test_regressor_returns_from_its_folder_and_scores_by_column(tmp_path):
    torch.manual_seed(0)
    model = SceneRegressor(["fog", "snow"], width=8).eval()
    with torch.no_grad():  # no picture counts: the outputs are the biases
        model.head.weight.zero_()
        model.head.bias.copy_(torch.tensor([0.25, 1.75]))
    model.save(tmp_path)
    loaded = SceneRegressor.from_folder(tmp_path)
    images = [flat(0.1, 0.2, 0.3), flat(0.3, 0.2, 0.1)]
    assert loaded.score(images, ["snow", "fog"]) == pytest.approx([1.0, 0.25])
    with pytest.raises(SettingError, match="did you mean 'fog'"):
        loaded.score(images, ["foggy"])


def test_regressor_refuses_missing_and_foreign_weights(tmp_path):
    with pytest.raises(SettingError, match="missing"):
        SceneRegressor.from_folder(tmp_path)
    SceneRegressor(["fog"], width=8).save(tmp_path)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"width": 8', '"width": 16'))
    with pytest.raises(SettingError, match="does not fit"):
        SceneRegressor.from_folder(tmp_path)


def test_shipped_regressor_reads_levels_it_was_not_trained_on():
    model = SceneRegressor.from_folder(ASSETS / "scene_regressor")
    assert set(model.attributes) == set(ATTRIBUTES)
    rng = np.random.default_rng(12)
    for attribute in ATTRIBUTES:
        levels = rng.random(60)
        pictures = [as_tensor(render(PLACES[row % 6], {attribute: x}, 10**6 + row)) for row, x in enumerate(levels)]
        assert rank_correlation(levels, model.score(pictures, [attribute])) > 0.9, attribute


def test_the_trainer_writes_every_key_and_the_loader_needs_nothing_else(tmp_path, monkeypatch):
    path = ROOT / "scripts" / "assets" / "train_scene_regressor.py"
    spec = importlib.util.spec_from_file_location("train_scene_regressor", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    shipped = json.loads((ASSETS / "scene_regressor" / "metrics.json").read_text())
    compared = {"images": 1, "attributes": shipped["generated"]["attributes"]}  # drawing pictures takes minutes
    monkeypatch.setattr(script, "compare_on_generated", lambda *_, **__: compared)
    monkeypatch.setattr(script, "RENDERS_EACH", 3)
    arguments = ["--steps", "3", "--batch-size", "4", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [path.name, *arguments])
    script.main()
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written.keys() == shipped.keys()
    assert written["parameters"] == shipped["parameters"]
    assert written["steps"] == 3
    assert [row.keys() for row in written["renders"].values()] == [row.keys() for row in shipped["renders"].values()]
    assert {path.name for path in tmp_path.iterdir()} == {p.name for p in (ASSETS / "scene_regressor").iterdir()}
    for name in ("metrics.json", "card.md"):
        (tmp_path / name).unlink()
    assert SceneRegressor.from_folder(tmp_path).attributes == ATTRIBUTES
    monkeypatch.undo()
    script.write_card(tmp_path, shipped)  # the shipped card says what the shipped metrics say, nothing by hand
    assert (tmp_path / "card.md").read_text() == (ASSETS / "scene_regressor" / "card.md").read_text()
