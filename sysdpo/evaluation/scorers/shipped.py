"""The scorer whose weights are in the repository."""

from pathlib import Path

from sysdpo.evaluation.scorers.regressor import SceneRegressor

FOLDER = Path(__file__).resolve().parents[2] / "assets" / "scene_regressor"


def shipped_scene_regressor() -> SceneRegressor:
    """Trained by `scripts/train_scene_regressor.py`; its card lies beside the weights."""
    return SceneRegressor.from_folder(FOLDER)
