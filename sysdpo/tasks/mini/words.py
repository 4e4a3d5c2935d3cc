"""The things of the miniature's world: ten categories of sixteen, each thing with a size and a colour by decree."""

from typing import NamedTuple

SIZES = ("small", "large")
COLOURS = ("red", "green", "white", "brown")

# the place in the row gives a thing its attributes: sizes take turns, colours change with every second thing
_ROWS = {
    "fruits": ("cherry apple lime melon lychee coconut date kiwi berry peach grape pear plum mango fig banana"),
    "animals": (
        "ladybird fox frog crocodile mouse swan sparrow bear ant flamingo lizard parrot rabbit sheep squirrel horse"
    ),
    "tools": ("pin saw file axe chisel shovel nail ladder screw drill wrench rake brush hoe awl hammer"),
    "clothes": ("mitten coat sock jacket glove shirt belt boot scarf dress cap skirt vest robe hat suit"),
    "vehicles": ("cart bus kart tram sled ferry canoe truck scooter train bike tractor raft yacht wagon ship"),
    "furniture": ("stool sofa shelf bed lamp wardrobe bench table cushion couch mat desk tray cabinet crate chair"),
    "instruments": (
        "whistle drum flute harp triangle piano banjo cello bell organ recorder guitar horn trumpet fiddle bass"
    ),
    "flowers": (
        "poppy rose clover sunflower daisy lily ivy fern violet peony tulip orchid jasmine dahlia thistle iris"
    ),
    "foods": ("radish pizza pea cabbage garlic bread nut potato tomato salami leek salad egg rice bun pie"),
    "buildings": ("hut castle kiosk tower cabin palace shed barn booth church tent stadium chapel temple cottage mill"),
}


class Thing(NamedTuple):
    """One word of the world and what is true of it."""

    name: str
    category: str
    size: str
    colour: str

    def has(self, attribute: str) -> bool:
        """Whether `attribute` (a category, a size or a colour) is one of this thing's."""
        return attribute in (self.category, self.size, self.colour)


THINGS: tuple[Thing, ...] = tuple(
    Thing(name, category, SIZES[place % 2], COLOURS[place // 2 % 4])
    for category, row in _ROWS.items()
    for place, name in enumerate(row.split())
)
CATEGORIES: tuple[str, ...] = tuple(_ROWS)
THING: dict[str, Thing] = {thing.name: thing for thing in THINGS}


def members(*attributes: str) -> list[str]:
    """The names of all things that have every one of these attributes, in the world's order."""
    return [thing.name for thing in THINGS if all(thing.has(attribute) for attribute in attributes)]
