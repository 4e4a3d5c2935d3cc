"""Scenes: a procedural landscape renderer and the captions that ask for them (table 1 at `laptop`)."""

from sysdpo.tasks.progression.scenes.captions import (
    GRADES,
    SceneCaption,
    caption,
    caption_of,
    grade_center,
    grade_of,
    is_held_out,
    sample_caption,
)
from sysdpo.tasks.progression.scenes.render import ATTRIBUTES, IMAGE_SIZE, PLACES, render

__all__ = [
    "ATTRIBUTES",
    "GRADES",
    "IMAGE_SIZE",
    "PLACES",
    "SceneCaption",
    "caption",
    "caption_of",
    "grade_center",
    "grade_of",
    "is_held_out",
    "render",
    "sample_caption",
]
