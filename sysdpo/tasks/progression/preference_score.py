"""How well three images follow an attribute from low to high: the two figures of table 1 (eq. 8)."""

from typing import Any

import numpy as np
import numpy.typing as npt

from sysdpo.errors import SettingError


def preference_score(scores: Any) -> npt.NDArray[np.float64]:
    """q = -(a1 - a3 + |a2 - (a1 + a3) / 2|): the end must exceed the start, the middle lie half-way (eq. 8).

    Args:
        scores: attribute levels [..., 3] of the first, second and third image, each in [0, 1];
            a list, an array or a tensor on any device.

    Returns:
        float64 [...], each in [-1.5, 1]. 1 is the even, full progression (0, .5, 1).

    Raises:
        SettingError: the last dimension is not 3, or a level is NaN or outside [0, 1]; names the row.
    """
    first, middle, last = np.moveaxis(_levels(scores), -1, 0)
    return -(first - last + np.abs(middle - (first + last) / 2))


def order_consistency(scores: Any) -> float:
    """Share of sequences, in [0, 1], whose levels [N, 3] rise strictly: a1 < a2 < a3. A tie is not a rise."""
    levels = _levels(scores)
    if levels.ndim != 2 or len(levels) == 0:
        raise SettingError(f"scores: order consistency needs shape [N, 3] with N >= 1, not {list(levels.shape)}.")
    return float(np.mean((levels[:, 0] < levels[:, 1]) & (levels[:, 1] < levels[:, 2])))


def _levels(scores: Any) -> npt.NDArray[np.float64]:
    if hasattr(scores, "detach"):
        scores = scores.detach().cpu().double()  # numpy knows neither bfloat16 nor devices
    levels = np.asarray(scores, dtype=np.float64)
    if levels.ndim == 0 or levels.shape[-1] != 3:
        raise SettingError(
            f"scores: the last dimension must hold the 3 images of a sequence; the shape is {list(levels.shape)}."
        )
    wrong = np.argwhere(~((levels >= 0) & (levels <= 1)))  # written so that NaN is caught too
    if len(wrong):
        index = tuple(int(i) for i in wrong[0])
        row = index[0] if len(index) == 2 else index[:-1]
        where = f"row {row}" if len(index) > 1 else "the sequence"
        raise SettingError(
            f"scores: {where}, image {index[-1] + 1} has level {levels[index]}; levels lie in [0, 1]: "
            "clamp the scorer's output, or drop sequences that were never drawn."
        )
    return levels
