"""A broken folder of an image model is one line that names it, whatever is broken."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sysdpo.components.image.pretrained import build_diffusion
from sysdpo.errors import SettingError
from sysdpo.paths import ASSETS

FILES = (
    *("unet/config.json", "unet/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json", "text.json"),
    *("patches.safetensors", "text_encoder/config.json", "text_encoder/model.safetensors"),
)


def load(folder: Path) -> None:
    build_diffusion(bound={}, pretrained=str(folder), dtype="float32", device="cpu")


def test_the_folder_that_the_others_are_made_of_loads(tmp_path: Path) -> None:
    shutil.copytree(ASSETS / "mini_scene_weak", tmp_path / "whole")
    load(tmp_path / "whole")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\x80\x04garbage"], ids=["empty", "list", "mapping", "bytes"])
def test_a_broken_file_is_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    if name in ("scheduler/scheduler_config.json", "unet/config.json") and content == b"{}":
        return  # all of their settings have defaults
    folder = tmp_path / "broken"
    shutil.copytree(ASSETS / "mini_scene_weak", folder)
    (folder / name).write_bytes(content)
    with pytest.raises(SettingError, match=r"^model\.pretrained=") as error:
        load(folder)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("name", ["unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"])
def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "nan"
    shutil.copytree(ASSETS / "mini_scene_weak", folder)
    weights = load_file(folder / name)
    first = next(iter(weights))
    save_file({**weights, first: torch.full_like(weights[first], torch.nan)}, folder / name, metadata={"format": "pt"})
    with pytest.raises(SettingError, match=r"the weights of .* are not finite"):
        load(folder)
