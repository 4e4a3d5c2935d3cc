"""The scene renderer and its captions: levels move pictures, words fix levels, splits stay apart."""

from random import Random

import numpy as np
import pytest

from sysdpo.errors import SettingError
from sysdpo.tasks.progression.scenes import (
    ATTRIBUTES,
    GRADES,
    PLACES,
    caption,
    caption_of,
    grade_center,
    grade_of,
    is_held_out,
    render,
    sample_caption,
)

# fmt: off
PAPER_ATTRIBUTES = [
    "dirty", "daylight", "night", "sunrisesunset", "dawndusk", "sunny", "clouds", "fog", "storm",
    "snow", "warm", "cold", "busy", "beautiful", "flowers", "spring", "summer", "autumn", "winter",
    "glowing", "colorful", "dull", "rugged", "midday", "dark", "bright", "dry", "moist", "windy",
    "rain", "ice", "cluttered", "soothing", "stressful", "exciting", "sentimental", "mysterious",
    "boring", "gloomy", "lush"
]
# fmt: on


def test_attributes_are_the_papers_and_there_are_enough():
    assert len(PAPER_ATTRIBUTES) == 40
    assert set(ATTRIBUTES) <= set(PAPER_ATTRIBUTES)
    assert len(set(ATTRIBUTES)) >= 12
    assert len(set(PLACES)) >= 5


@pytest.mark.parametrize("place", PLACES)
def test_render_is_an_image_fixed_by_its_seed(place):
    first, again, other = (render(place, {"fog": 0.4}, seed) for seed in (3, 3, 4))
    assert first.shape == (32, 32, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_each_attribute_moves_the_picture_further_with_its_level(attribute):
    for place in PLACES:
        base = render(place, {}, 5).astype(float)
        distances = [
            np.abs(render(place, {attribute: level}, 5) - base).mean() for level in (0.0, 0.25, 0.5, 0.75, 1.0)
        ]
        assert distances[0] == 0
        assert all(np.diff(distances) > 0.5), (
            place,
            distances,
        )  # half a grey level of 255, averaged over all pixels


def test_every_scene_starts_at_the_same_exposure():
    luminance = [render(place, {}, seed) @ [0.299, 0.587, 0.114] / 255 for place in PLACES for seed in range(5)]
    assert np.allclose([picture.mean() for picture in luminance], 0.46, atol=0.003)


@pytest.mark.parametrize(
    ("place", "levels", "message"),
    [
        ("beech", {}, "did you mean 'beach'"),
        ("beach", {"foggy": 0.5}, "did you mean 'fog'"),
        ("beach", {"fog": 1.2}, "between 0 and 1"),
        ("beach", {"fog": float("nan")}, "between 0 and 1"),
    ],
)
def test_bad_scene_settings_name_the_remedy(place, levels, message):
    with pytest.raises(SettingError, match=message):
        render(place, levels, 0)


def test_grades_are_ordered_apart_and_recover_their_centres():
    bounds = [bound for interval in GRADES.values() for bound in interval]
    assert bounds == sorted(bounds)
    assert [grade_of(grade_center(grade)) for grade in GRADES] == list(GRADES)
    # halfway rule by hand: none ends at 0.0 and slight begins at 0.2, so 0.09 is none and 0.11 slight
    assert (grade_of(0.09), grade_of(0.11), grade_of(1.0)) == ("none", "slight", "extreme")


def test_captions_name_place_and_attribute():
    class First(Random):
        def choice(self, options):
            return options[0]

        def random(self):
            return 0.9  # the noun form

    rng = First()
    assert caption("lake", "snow", 0.0, rng) == "A lake with no snow."
    assert caption("city street", "fog", 0.5, rng) == "A city street with some fog."
    assert caption("beach", "clouds", 0.97, rng) == "A beach with extremely heavy clouds."
    assert caption_of("field", ["snow", "ice"], [0.75, 0.0], rng) == "A field with heavy snow and no ice."


def test_one_wording_never_asks_for_two_scenes():
    rng = Random(0)
    meaning: dict[str, tuple] = {}
    for _ in range(20_000):
        drawn = sample_caption(rng)
        scene = (drawn.place, tuple(sorted(drawn.levels.items())))
        assert meaning.setdefault(drawn.text, scene) == scene, drawn.text


def test_held_out_captions_are_a_stable_share():
    rng = Random(1)
    texts = {sample_caption(rng).text for _ in range(8000)}
    assert 0.12 < np.mean([is_held_out(text) for text in texts]) < 0.18
    # by sha256sum: the digests begin with a56bd385 (0.646 of 2^32) and 10f4b99f (0.066 of 2^32)
    assert not is_held_out("A lake with no snow.")
    assert is_held_out("A lake with some ice.")


def test_unknown_caption_attribute_offers_the_nearest():
    with pytest.raises(SettingError, match="did you mean 'night'"):
        caption("lake", "nihgt", 0.5, Random(0))
    with pytest.raises(SettingError, match="did you mean 'forest'"):
        caption("forests", "night", 0.5, Random(0))
