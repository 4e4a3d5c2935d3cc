"""A procedural landscape renderer: the images of table 1 at `laptop`, with attribute levels known exactly.

`PLACES` x `ATTRIBUTES` (twelve of the forty scene attributes of the paper), each attribute a continuous level
in [0, 1]. A scene is painted back to front: sky and land, clouds, sun, ground cover, then what light and air
do to the whole picture. Cover (clouds, snow, ...) takes the share of the surface that the level says; light
(bright, dark, night, warm) and air (fog) move the whole picture by a geometric or linear share.
"""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from sysdpo.errors import SettingError, nearest

IMAGE_SIZE = 32
HORIZON = 14
"""Mean row of the horizon; a scene's own lies within one row of it."""

PLACES = ("beach", "mountain", "forest", "city street", "lake", "field")
ATTRIBUTES = (
    "bright",
    "dark",
    "fog",
    "snow",
    "ice",
    "night",
    "clouds",
    "flowers",
    "autumn",
    "warm",
    "lush",
    "sunny",
)

Floats = NDArray[np.float64]
Canvas = Floats
"""RGB picture [H, W, 3] in [0, 1]."""

ZENITH = np.array([0.40, 0.56, 0.78])
SKYLINE_AIR = np.array([0.56, 0.68, 0.82])
CLOUD = np.array([0.88, 0.88, 0.89])
SUN = np.array([1.00, 0.90, 0.25])
FOG = np.array([0.78, 0.79, 0.80])
SNOW = np.array([0.94, 0.95, 0.97])
ICE = np.array([0.52, 0.86, 0.94])
BLOSSOMS = np.array([[0.90, 0.20, 0.62], [0.95, 0.38, 0.74], [0.76, 0.22, 0.80]])
LEAVES = np.array([[0.86, 0.42, 0.10], [0.80, 0.30, 0.08], [0.90, 0.55, 0.14]])
GREENS = np.array([[0.12, 0.50, 0.12], [0.18, 0.60, 0.16], [0.08, 0.42, 0.12]])
NIGHT_SKY = np.array([0.05, 0.06, 0.22])
NIGHT_LIGHT = np.array([0.16, 0.20, 0.42])
NEUTRAL_LUMINANCE = 0.46
"""Mean luminance that every scene has before its attributes: `bright` and `dark` are measured from here."""


def render(place: str, levels: Mapping[str, float], seed: int) -> NDArray[np.uint8]:
    """Paint one scene.

    Args:
        place: one of `PLACES`.
        levels: attribute -> level in [0, 1]; an attribute left out has level 0.
        seed: layout of the scene (skyline, textures, where cover lies), whatever the levels.

    Returns:
        [32, 32, 3] uint8, RGB.

    Raises:
        SettingError: an unknown place or attribute, or a level outside [0, 1].
    """
    if place not in _PAINTERS:
        raise SettingError(f"scene place: {nearest(place, PLACES)}")
    for name, value in levels.items():
        if name not in ATTRIBUTES:
            raise SettingError(f"scene attribute: {nearest(name, ATTRIBUTES)}")
        if not 0.0 <= value <= 1.0:
            raise SettingError(
                f"scene attribute {name!r}: level {value} is outside [0, 1]; give a level between 0 and 1"
            )
    level = {name: float(levels.get(name, 0.0)) for name in ATTRIBUTES}
    rng = np.random.default_rng(seed)

    horizon = HORIZON + int(rng.integers(-1, 2))
    rows = np.arange(IMAGE_SIZE)[:, None]
    sky = np.clip(rows / horizon, 0, 1)[..., None] * (SKYLINE_AIR - ZENITH) + ZENITH
    sky = np.broadcast_to(sky, (IMAGE_SIZE, IMAGE_SIZE, 3)).copy()
    land, on_land = _PAINTERS[place](rng, horizon)
    cover_noise = {name: _cover_order(rng, size) for name, size in _GRAIN.items()}
    sun_row, sun_column = rng.uniform(4.0, 5.5), rng.uniform(8.0, 23.0)
    stars = rng.random((IMAGE_SIZE, IMAGE_SIZE))
    lamps = rng.random((IMAGE_SIZE, IMAGE_SIZE))

    picture = np.where(on_land[..., None], land, sky)
    picture = _expose(picture)
    ground = rows >= horizon
    picture = _cover(picture, ~on_land, cover_noise["clouds"], level["clouds"], CLOUD, softness=0.25, opacity=1.0)
    picture = _sun(picture, ~on_land, sun_row, sun_column, level["sunny"])
    for name, colours in (("lush", GREENS), ("autumn", LEAVES), ("flowers", BLOSSOMS)):
        palette = colours[(lamps * len(colours)).astype(int) % len(colours)]
        share = level[name] * (0.6 if name == "flowers" else 1.0)
        picture = _cover(picture, on_land, cover_noise[name], share, palette)
    picture = _cover(picture, on_land & ground, cover_noise["ice"], level["ice"], ICE)
    picture = _cover(picture, on_land, cover_noise["snow"], level["snow"], SNOW)
    picture = _night(picture, ~on_land, stars, lamps, level["night"])
    picture = _fog(picture, rows, horizon, level["fog"])
    picture = _light(picture, level["warm"], level["bright"], level["dark"])
    return (np.clip(picture, 0, 1) * 255).round().astype(np.uint8)


# --- what attributes do -------------------------------------------------------------------------------------

_GRAIN = {"clouds": 5, "lush": 3, "autumn": 3, "flowers": 1, "ice": 4, "snow": 4}
"""Pixels across one patch of each kind of cover."""


def _cover(
    picture: Canvas,
    where: NDArray[np.bool_],
    order: Floats,
    share: float,
    colour: Floats,
    softness: float = 0.1,
    opacity: float = 0.85,
) -> Canvas:
    """Paint `share` of the pixels in `where` with `colour`: those first in `order`, with a soft edge.

    Less than full `opacity` leaves the place recognisable under a full cover.
    """
    if share == 0:
        return picture
    # Rank inside the region, so that the covered share is the level whatever the region's shape.
    rank = np.ones_like(order)
    rank[where] = (np.argsort(np.argsort(order[where])) + 0.5) / max(1, int(where.sum()))
    threshold = share * (1 + softness) - softness / 2
    amount = opacity * np.clip((threshold - rank) / softness + 0.5, 0, 1)
    return picture + (amount * where)[..., None] * (colour - picture)


def _sun(picture: Canvas, sky: NDArray[np.bool_], row: float, column: float, level: float) -> Canvas:
    """A disc whose area grows in proportion to the level, with a glow of the same proportion."""
    if level == 0:
        return picture
    rows, columns = np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE]
    distance = np.hypot(rows - row, columns - column)
    radius = 5.5 * np.sqrt(level)
    disc = np.clip(radius - distance + 0.5, 0, 1)
    glow = 0.5 * level * np.exp(-np.square(np.maximum(distance - radius, 0) / 4.0))
    opacity = np.maximum(disc, glow) * sky
    return picture + opacity[..., None] * (SUN - picture)


def _night(picture: Canvas, sky: NDArray[np.bool_], stars: Floats, lamps: Floats, level: float) -> Canvas:
    """Sky and light fall geometrically, so that level 0.5 is dusk; stars and lamps come out in proportion."""
    if level == 0:
        return picture
    exponent = level**1.3  # early dusk is slow
    dusk_sky = picture * (NIGHT_SKY / SKYLINE_AIR) ** exponent
    dusk_land = picture * NIGHT_LIGHT**exponent
    picture = np.where(sky[..., None], dusk_sky, dusk_land)
    shining = (stars > 0.97) & sky
    lit = (lamps > 0.985) & ~sky
    picture = np.where(shining[..., None], picture + level * (0.8 - picture), picture)
    return np.where(lit[..., None], picture + level * (np.array([0.95, 0.80, 0.40]) - picture), picture)


def _fog(picture: Canvas, rows: NDArray[np.int_], horizon: int, level: float) -> Canvas:
    """Linear towards fog colour; the foreground keeps a little more of its own."""
    depth = np.clip(1.0 - 0.25 * (rows - horizon) / (IMAGE_SIZE - horizon), 0.75, 1.0)[..., None]
    return picture + 0.94 * level * depth * (FOG - picture)


def _light(picture: Canvas, warm: float, bright: float, dark: float) -> Canvas:
    """Colour temperature as gains of the channels; exposure up towards white, down towards black."""
    picture = np.clip(picture, 0, 1) * np.array([1.55, 0.98, 0.38]) ** warm
    picture = 1 - (1 - np.clip(picture, 0, 1)) * (1 - 0.80 * bright)
    return picture * (1 - 0.85 * dark)


def _expose(picture: Canvas) -> Canvas:
    """One gain on all pixels that brings the mean luminance to `NEUTRAL_LUMINANCE`."""
    return np.clip(picture * (NEUTRAL_LUMINANCE / (picture @ LUMINANCE).mean()), 0, 1)


LUMINANCE = np.array([0.299, 0.587, 0.114])


# --- textures -----------------------------------------------------------------------------------------------


def _smooth_noise(rng: np.random.Generator, grain: int) -> Floats:
    """[32, 32] noise in [0, 1] whose patches are about `grain` pixels across: bilinear value noise."""
    cells = IMAGE_SIZE // grain + 2
    lattice = rng.random((cells, cells))
    position = np.arange(IMAGE_SIZE) / grain
    low = position.astype(int)
    share = position - low
    rows = lattice[low] * (1 - share[:, None]) + lattice[low + 1] * share[:, None]
    return rows[:, low] * (1 - share) + rows[:, low + 1] * share


def _cover_order(rng: np.random.Generator, grain: int) -> Floats:
    """The order in which pixels are covered: patches first, single pixels second."""
    return _smooth_noise(rng, grain) + 0.15 * rng.random((IMAGE_SIZE, IMAGE_SIZE))


def _textured(rng: np.random.Generator, colour: tuple[float, float, float], roughness: float) -> Canvas:
    """A [32, 32, 3] surface of one colour whose brightness varies by +- `roughness`."""
    shade = 1 + roughness * (2 * _smooth_noise(rng, 2) - 1)
    return np.array(colour) * shade[..., None]


# --- places: each paints the land and says where it is ------------------------------------------------------

Painter = Callable[[np.random.Generator, int], tuple[Canvas, NDArray[np.bool_]]]


def _below(line: Floats) -> NDArray[np.bool_]:
    """The pixels below a skyline given as one row per column."""
    return np.arange(IMAGE_SIZE)[:, None] >= line[None, :]


def _ridge(rng: np.random.Generator, base: float, height: float, grain: int) -> Floats:
    """A skyline [32]: rows, at most `height` above `base`."""
    return base - height * _smooth_noise(rng, grain)[0]


def _beach(rng: np.random.Generator, horizon: int) -> tuple[Canvas, NDArray[np.bool_]]:
    land = _textured(rng, (0.30, 0.38, 0.46), 0.10)
    shore = horizon + 5 + 2.0 * _smooth_noise(rng, 8)[0]
    land = np.where(_below(shore)[..., None], _textured(rng, (0.74, 0.68, 0.54), 0.08), land)
    return land, _below(np.full(IMAGE_SIZE, horizon))


def _mountain(rng: np.random.Generator, horizon: int) -> tuple[Canvas, NDArray[np.bool_]]:
    columns = np.arange(IMAGE_SIZE)
    peaks = rng.uniform(4, 28, size=3)
    heights = rng.uniform(4.0, 6.0, size=3)
    slope = rng.uniform(0.6, 0.9)
    ridge = np.min([horizon - h + slope * np.abs(columns - c) for c, h in zip(peaks, heights, strict=True)], axis=0)
    ridge = np.minimum(ridge, horizon)
    land = _textured(rng, (0.42, 0.40, 0.40), 0.22)
    land = np.where(_below(np.full(IMAGE_SIZE, horizon + 3))[..., None], _textured(rng, (0.47, 0.45, 0.35), 0.14), land)
    return land, _below(ridge)


def _forest(rng: np.random.Generator, horizon: int) -> tuple[Canvas, NDArray[np.bool_]]:
    crowns = _ridge(rng, horizon - 1, 4.0, 3)
    land = _textured(rng, (0.36, 0.38, 0.26), 0.25)
    foot = horizon + 8
    for column in rng.choice(IMAGE_SIZE, size=8, replace=False):
        land[horizon:foot, column] = (0.30, 0.24, 0.18)
    land = np.where(_below(np.full(IMAGE_SIZE, foot))[..., None], _textured(rng, (0.45, 0.41, 0.32), 0.16), land)
    return land, _below(crowns)


def _city_street(rng: np.random.Generator, horizon: int) -> tuple[Canvas, NDArray[np.bool_]]:
    roofs = np.full(IMAGE_SIZE, float(horizon))
    land = _textured(rng, (0.46, 0.46, 0.46), 0.05)
    column = 0
    while column < IMAGE_SIZE:
        width, height = int(rng.integers(4, 8)), int(rng.integers(2, 7))
        wall = np.array([0.50, 0.45, 0.42]) * rng.uniform(0.7, 1.2)
        block = slice(column, column + width)
        roofs[block] = horizon - height
        land[: horizon + 4, block] = wall
        land[horizon - height + 1 : horizon + 3 : 2, column + 1 : column + width - 1 : 2] = (0.30, 0.32, 0.36)
        column += width
    land[horizon + 4 : horizon + 6] = (0.56, 0.55, 0.53)
    middle = int(rng.integers(13, 19))
    land[horizon + 7 :: 4, middle : middle + 2] = (0.74, 0.73, 0.70)
    land[horizon + 8 :: 4, middle : middle + 2] = (0.74, 0.73, 0.70)
    return land, _below(roofs)


def _lake(rng: np.random.Generator, horizon: int) -> tuple[Canvas, NDArray[np.bool_]]:
    hills = _ridge(rng, horizon, 3.5, 9)
    land = _textured(rng, (0.40, 0.42, 0.36), 0.12)
    water = _textured(rng, (0.36, 0.42, 0.50), 0.06)
    water[rng.integers(horizon + 3, IMAGE_SIZE - 2, size=4)] *= 1.15
    land = np.where(_below(np.full(IMAGE_SIZE, horizon + 2))[..., None], water, land)
    return land, _below(hills)


def _field(rng: np.random.Generator, horizon: int) -> tuple[Canvas, NDArray[np.bool_]]:
    land = _textured(rng, (0.58, 0.54, 0.36), 0.12)
    furrows = (np.arange(IMAGE_SIZE)[:, None] + rng.integers(0, 3)) % 3 == 0
    land = np.where(furrows[..., None], land * 0.85, land)
    return land, _below(_ridge(rng, horizon + 0.5, 1.5, 8))


_PAINTERS: dict[str, Painter] = {
    "beach": _beach,
    "mountain": _mountain,
    "forest": _forest,
    "city street": _city_street,
    "lake": _lake,
    "field": _field,
}
