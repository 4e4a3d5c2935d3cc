"""The scorer whose weights are in the repository."""

from sysdpo.paths import ASSETS
from sysdpo.tasks.progression.scorers.regressor import SceneRegressor

FOLDER = ASSETS / "scene_regressor"


def shipped_scene_regressor() -> SceneRegressor:
    """Trained by `scripts/assets/train_scene_regressor.py`; its card lies beside the weights."""
    return SceneRegressor.from_folder(FOLDER)
