"""The scorers of table 1 at paper scale: the published checkpoint's layout, our trainer, CLIP antonyms."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel

from sysdpo.components.text.codec import byte_tokenizer
from sysdpo.errors import SettingError
from sysdpo.evaluation.judges.reward_model import RewardModelJudge
from sysdpo.tasks.progression.scorers.clip_antonym import MEAN, STD, ClipAntonym, build_clip_antonym
from sysdpo.tasks.progression.scorers.transient import ATTRIBUTES, _check_levels, build_transient_resnet50, prepare

ROOT = Path(__file__).resolve().parents[2]


# ---- the published checkpoint --------------------------------------------------------------------------------------


class Bottleneck(nn.Module):
    """As the published architecture is described: 1 x 1, 3 x 3 with the stride, 1 x 1, and a shortcut."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.downsample = None
        if stride != 1 or before != 4 * width:
            self.downsample = nn.Sequential(
                nn.Conv2d(before, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet50(nn.Module):
    """He et al. (2016) under the names of the published state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        before = 64
        for stage, (width, depth) in enumerate([(64, 3), (128, 4), (256, 6), (512, 3)], 1):
            blocks = []
            for i in range(depth):
                blocks.append(Bottleneck(before, width, 2 if stage > 1 and i == 0 else 1))
                before = 4 * width
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.fc = nn.Linear(2048, 40)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        return self.fc(x.mean((2, 3)))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[ResNet50, Path]:
    torch.manual_seed(0)
    model = ResNet50()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # statistics that a wrong mapping or train mode would miss
            module.running_mean.uniform_(-0.2, 0.2)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    path = tmp_path_factory.mktemp("published") / "500_dict.model"
    torch.save({"model": model.state_dict(), "optm": {"state": {}}}, path)
    return model.eval(), path


def test_the_published_layout_is_the_same_network(published: tuple[ResNet50, Path], monkeypatch: Any) -> None:
    model, path = published
    monkeypatch.setattr("sysdpo.tasks.progression.scorers.transient._check_levels", lambda *_: None)
    scorer = build_transient_resnet50(None, checkpoint=str(path))
    assert not scorer.model.training
    images = [torch.rand(3, 256, 256), torch.rand(3, 300, 280)]
    with torch.no_grad():
        expected = model(torch.stack([prepare(image) for image in images]))
    torch.testing.assert_close(scorer.raw_levels(images), expected, rtol=1e-4, atol=1e-5)


def test_a_look_alike_is_refused_unless_its_hash_is_given(published: tuple[ResNet50, Path]) -> None:
    import hashlib

    _, path = published
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(SettingError, match=r"tell a day landscape.*CelebA"):
        build_transient_resnet50(None, checkpoint=str(path))
    assert build_transient_resnet50(None, checkpoint=str(path), sha256=digest).attributes == ATTRIBUTES
    with pytest.raises(SettingError, match="sha256"):
        build_transient_resnet50(None, checkpoint=str(path), sha256="0" * 64)


def test_a_regressor_that_reads_brightness_passes_the_guard() -> None:
    class Bright:
        def raw_levels(self, images: list[Tensor]) -> Tensor:
            levels = torch.zeros(len(images), 40)
            for i, image in enumerate(images):
                for name, sign in (("bright", 1), ("daylight", 1), ("dark", -1), ("night", -1)):
                    levels[i, ATTRIBUTES.index(name)] = sign * image.mean()
            return levels

    _check_levels(Bright(), "x")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"no weights", "cannot be read"),
        ({"weights": {}}, "has no 'model'"),
        ({"model": {"fc.weight": torch.zeros(40, 8)}}, "no ResNet-50"),
        ({"model": {"fc.weight": print}}, "cannot be read as plain weights"),  # code in a file is never run
    ],
)
def test_files_that_are_something_else(tmp_path: Path, content: Any, part: str) -> None:
    path = tmp_path / "x.model"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(SettingError, match=part):
        build_transient_resnet50(None, checkpoint=str(path))


# ---- our trainer ---------------------------------------------------------------------------------------------------

TINY = {"embedding_size": 8, "hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "layer_type": "basic"}


def _script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / "assets" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def transient(tmp_path: Path) -> list[str]:
    """Images in the data set's format: `bright` is their brightness, everything else 0.5; a folder a webcam."""
    lines, rng = [], np.random.default_rng(0)
    for camera in ("00000064", "90000002"):
        (tmp_path / "images" / camera).mkdir(parents=True)
        for i in range(6):
            level = float(rng.random())
            name = f"{camera}/{i}.jpg"
            Image.fromarray(np.full((40, 50, 3), int(255 * level), np.uint8)).save(tmp_path / "images" / name)
            scores = [0.5] * 40
            scores[ATTRIBUTES.index("bright")] = level
            lines.append("\t".join([name, *(f"{s:.4f},0.9" for s in scores)]))
    (tmp_path / "annotations.tsv").write_text("\n".join(lines) + "\n")
    (tmp_path / "training.txt").write_text("00000064\n90000002/0.jpg\n")
    (tmp_path / "test.txt").write_text("".join(f"90000002/{i}.jpg\n" for i in range(1, 6)))
    files = {"annotations": "annotations.tsv", "images": "images", "training": "training.txt", "test": "test.txt"}
    named = [part for key, name in files.items() for part in (f"--{key}", str(tmp_path / name))]
    return [
        *named,
        "--output",
        str(tmp_path / "out"),
        "--architecture",
        json.dumps(TINY),
        "--device",
        "cpu",
        "--workers",
        "0",
    ]


def test_the_trainer_resumes_exactly_and_writes_what_the_scorer_reads(transient: list[str], tmp_path: Path) -> None:
    script = _script("train_transient")
    rows = script.read_annotations(tmp_path / "annotations.tsv")
    assert [len(script.select(rows, tmp_path / f"{name}.txt")) for name in ("training", "test")] == [7, 5]
    small = [*transient, "--batch-size", "4", "--learning-rate", "0.01"]

    whole = [part if part != str(tmp_path / "out") else str(tmp_path / "whole") for part in small]
    script.main([*whole, "--steps", "4"])
    arguments = script.parse_args([*small, "--steps", "4", "--checkpoint-every", "2"])
    (tmp_path / "out").mkdir()
    seen = 0

    class Killed(Exception):
        pass

    def dying(*args: Any, real: Any = script.batches) -> Any:
        nonlocal seen
        for batch in real(*args):
            seen += 1
            if seen == 4:
                raise Killed
            yield batch

    script.batches, real = dying, script.batches
    data = script.Pictures(script.select(rows, tmp_path / "training.txt"), tmp_path / "images")
    with pytest.raises(Killed):
        script.train(arguments, data, torch.device("cpu"))
    script.batches = real
    script.main([*small, "--steps", "4", "--checkpoint-every", "2"])
    first, second = (build_transient_resnet50(str(tmp_path / name)) for name in ("whole", "out"))
    for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert second.model.config.id2label == dict(enumerate(ATTRIBUTES))
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["images"] == 5
    assert set(metrics["attributes"]) == set(ATTRIBUTES)
    assert 0 <= second.score([torch.rand(3, 40, 50)], ["bright"])[0] <= 1


def test_the_trainer_refuses_a_broken_line(transient: list[str], tmp_path: Path, capsys: Any) -> None:
    script = _script("train_transient")
    lines = (tmp_path / "annotations.tsv").read_text().splitlines()
    (tmp_path / "annotations.tsv").write_text("\n".join([lines[0], lines[1].rsplit("\t", 1)[0]]) + "\n")
    with pytest.raises(SystemExit) as stop:
        script.main([*transient, "--steps", "1"])
    assert stop.value.code == 2
    assert "line 2" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# ---- CLIP antonyms -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip() -> CLIPModel:
    torch.manual_seed(0)
    common = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return CLIPModel(
        CLIPConfig(
            text_config={
                **common,
                "vocab_size": 259,
                "max_position_embeddings": 40,
                "eos_token_id": 2,
                "bos_token_id": 1,
            },
            vision_config={**common, "image_size": 32, "patch_size": 8},
            projection_dim=12,
        )
    ).eval()


def test_levels_are_clip_s_own_softmax(clip: CLIPModel) -> None:
    """CLIPModel.forward gives softmax(logit_scale * cosines) over the two texts; its scale is 1 / temperature."""
    tokenizer = byte_tokenizer()
    pairs = {"bright": ("bright", "dark!!"), "fog": ("foggy", "clear")}
    temperature = 0.05
    scorer = ClipAntonym(clip, tokenizer, pairs, temperature)
    images = [torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    levels = scorer.score(images, ["bright", "fog", "bright"])
    pixels = (torch.stack(images) - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    scale = clip.logit_scale.data.clone()
    clip.logit_scale.data.fill_(float(np.log(1 / temperature)))
    try:
        for i, attribute in enumerate(["bright", "fog", "bright"]):
            tokens = tokenizer(list(pairs[attribute]), padding=True, return_tensors="pt")
            with torch.no_grad():
                logits = clip(
                    input_ids=tokens["input_ids"],
                    attention_mask=tokens["attention_mask"],
                    pixel_values=pixels[i : i + 1],
                ).logits_per_image
            assert levels[i] == pytest.approx(float(logits.softmax(-1)[0, 0]), abs=1e-5)
            assert abs(levels[i] - 0.5) > 1e-3
    finally:
        clip.logit_scale.data.copy_(scale)
    assert len(scorer.score([], [])) == 0


def test_a_swapped_pair_gives_the_complement_and_temperature_softens(clip: CLIPModel) -> None:
    images = [torch.rand(3, 40, 60)]
    texts = ("bright", "dark!!")  # without an end token CLIP reads the highest id, which is a space if there is one
    sharp, swapped, soft = (
        float(ClipAntonym(clip, byte_tokenizer(), {"a": pair}, t).score(images, ["a"])[0])
        for pair, t in ((texts, 0.01), (texts[::-1], 0.01), (texts, 10.0))
    )
    assert sharp + swapped == pytest.approx(1)
    assert abs(soft - 0.5) < abs(sharp - 0.5)


def test_settings_and_a_folder_in_the_hub_s_layout(clip: CLIPModel, tmp_path: Path) -> None:
    clip.save_pretrained(tmp_path / "clip")
    byte_tokenizer().save_pretrained(tmp_path / "clip")
    scorer = build_clip_antonym(str(tmp_path / "clip"), {"fog": ["fog", "clear air"]})
    assert scorer.attributes == ("fog",)
    with pytest.raises(SettingError, match="did you mean 'fog'"):
        scorer.score([torch.rand(3, 32, 32)], ["fogg"])
    with pytest.raises(SettingError, match="antonym"):
        ClipAntonym(clip, byte_tokenizer(), {"fog": ["fog", "fog"]})
    with pytest.raises(SettingError, match="temperature=0"):
        ClipAntonym(clip, byte_tokenizer(), {"fog": ["fog", "clear"]}, temperature=0)
    with pytest.raises(SettingError, match=r"scorer\.pretrained"):
        build_clip_antonym(str(tmp_path / "none"), {"fog": ["fog", "clear"]})


def test_an_unknown_device_is_one_line_whatever_it_would_run() -> None:
    makers = (
        lambda: build_clip_antonym("openai/clip-vit-large-patch14", {"fog": ["fog", "clear"]}, device="gpu"),
        lambda: build_transient_resnet50(None, device="gpu"),
        lambda: RewardModelJudge("owner/name", device="gpu"),
    )
    for make in makers:
        with pytest.raises(SettingError, match="device='gpu': write auto, cpu, cuda"):
            make()
