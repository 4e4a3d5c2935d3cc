"""A vision-language model as a component: p(text | pictures and texts), for a critic that looks at what was drawn."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from sysdpo.components.base import Parents, TokenSampler, Value
from sysdpo.components.folders import check_finite, loading
from sysdpo.components.hub import check_available, is_hub_id
from sysdpo.components.text.codec import Prompt, byte_tokenizer
from sysdpo.components.text.language_model import LanguageModel
from sysdpo.components.text.precision import hold_in
from sysdpo.components.text.pretrained import Weights, resolve_dtype, shapes_only
from sysdpo.components.text.template import ANSWER, USER
from sysdpo.devices import resolve_device
from sysdpo.errors import SettingError, TooLong
from sysdpo.sampling.decoding import Uncached

MARKS = 0xF0000
"""Private characters that hold the places of pictures in a text while its prompt is made."""
FORMATS = ("PNG", "JPEG", "WEBP")
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Of models with random weights."""


class VisionLanguageModel(LanguageModel):
    """Any `AutoModelForImageTextToText` of transformers. A template names pictures as it names texts: `{draft}`.

    A prompt and a completion are scored by themselves, and every token that is drawn reads the whole sequence again:
    what such models keep between tokens, and how pictures enter a batch, differs from one to the next.

    Args:
        model, processor: as loaded; `build_vision_language_model` makes them from a config.
        prompt: what the model is asked, in terms of the variable's parents.
        settings: of `LanguageModel`; those that pack or remember completions have no effect here, and are refused.
    """

    def __init__(self, model: Any, processor: Any, prompt: Prompt, **settings: Any) -> None:
        for name in ("share_prefix", "head_on_completions", "remember_reference"):
            if name in settings:
                raise SettingError(f"model.{name}: has no effect on a vision-language model; leave it out.")
        if prompt.prefix:
            raise SettingError("prompt.prefix: a vision-language model's answer cannot be begun for it; leave it out.")
        self.processor = processor
        tokenizer = processor.tokenizer
        processor.chat_template = processor.chat_template or tokenizer.chat_template
        if not processor.chat_template:
            raise SettingError(
                "model.pretrained: its processor has no chat template; choose an instruction-tuned model."
            )
        tokenizer.chat_template = None  # the processor's, which knows pictures, is the one that is asked
        plain: dict[str, Any] = {"share_prefix": False, "head_on_completions": False, "remember_reference": False}
        super().__init__(model, tokenizer, prompt, **plain, **settings)
        self._control = [token for token in {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()} if token]
        self.codec.ends_with(self._end())

    def _end(self) -> int:
        """The control token that the chat template writes after an answer."""
        turns = [{"role": "user", "content": _parts(USER, [])}, {"role": "assistant", "content": _parts(ANSWER, [])}]
        after = str(self.processor.apply_chat_template(turns, tokenize=False)).rpartition(ANSWER)[2]
        found = [(after.find(token), -len(token), token) for token in self._control if token in after]
        if not found:
            return self.codec.eos_token_id
        return int(self.processor.tokenizer.convert_tokens_to_ids(min(found)[2]))

    # ---- prompts -------------------------------------------------------------------------------------------------

    def _prompt(self, parents: Mapping[str, Value]) -> dict[str, Tensor]:
        """What the processor makes of a question and its pictures: `input_ids` [1, T] and whatever the model reads."""
        pictures: list[Image.Image] = []
        texts: dict[str, Value] = {}
        for name, value in parents.items():
            values = value if isinstance(value, list | tuple) else [value]
            if values and all(map(is_picture, values)):
                places = "".join(chr(MARKS + len(pictures) + i) for i in range(len(values)))
                pictures += [as_picture(each) for each in values]
                texts[name] = places
            else:
                texts[name] = self._checked(value)
        turns = [
            {"role": message["role"], "content": _parts(message["content"], pictures)}
            for message in self.codec.prompt.messages(texts)
        ]
        made = self.processor.apply_chat_template(
            turns, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
        )
        return {name: value for name, value in made.items() if isinstance(value, Tensor)}

    def _checked(self, value: Value) -> Value:
        text = str(value)
        for token in self._control:
            if token in text:
                raise SettingError(
                    f"a prompt holds {token!r}, which is a sign of the model's own; take it out of the text."
                )
        return "".join(c for c in value if ord(c) < MARKS) if isinstance(value, str) else value

    def check_row(self, parents: Mapping[str, Value], drafts: Mapping[str, int] | None = None) -> None:
        length = self._prompt(parents)["input_ids"].shape[1] + sum((drafts or {}).values())
        limit = self.codec.max_length
        if limit is not None and length + self.codec.max_new_tokens > limit:
            raise TooLong(
                f"a prompt of {length} tokens, pictures and drafts included, and max_new_tokens="
                f"{self.codec.max_new_tokens} exceed the model's context of {limit}; shorten the prompt."
            )

    def check_input(self, name: str, value: Value) -> None:
        if not is_picture(value):
            super().check_input(name, value)

    # ---- the contract of a component -----------------------------------------------------------------------------

    @torch.no_grad()
    def sample(
        self, parents: Parents, n: int, seeds: Sequence[int], sampler: TokenSampler | None = None
    ) -> list[list[Value]]:
        strategy = sampler if sampler is not None else self.generation
        if strategy is None:
            raise SettingError("this language model has no way to generate; set model.generation.")
        drawn: list[list[Value]] = []
        with hold_in(self.dtype, self.model, self._wide):
            for row, seed in zip(parents, seeds, strict=True):
                prompt = self._prompt(row)
                ids = prompt.pop("input_ids").to(self.device)
                (found,) = strategy.draw(
                    Uncached(_Seeing(self.causal_lm, prompt)),
                    ids,
                    torch.ones_like(ids),
                    n=n,
                    seeds=[seed],
                    max_new_tokens=self.codec.max_new_tokens,
                    eos_token_id=self.codec.stop_token_ids,
                    pad_token_id=self.codec.pad_token_id,
                )
                texts = [self.codec.decode(each) for each in found]
                drawn.append(list(dict.fromkeys(texts)) if strategy.distinct else list(texts))
        return drawn

    def log_prob(self, values: Sequence[Value], parents: Parents) -> Tensor:
        return torch.stack([self._log_prob(str(v), row) for v, row in zip(values, parents, strict=True)])

    @torch.no_grad()
    def reference_log_prob(self, values: Sequence[Value], parents: Parents) -> Tensor:
        with self.reference():
            return self.log_prob(values, parents)

    def _log_prob(self, value: str, parents: Mapping[str, Value]) -> Tensor:
        """Summed token log-probabilities of one text: [], nats, fp32."""
        prompt = self._prompt(parents)
        question = prompt.pop("input_ids").to(self.device)
        answer = torch.tensor([self.codec.completion_ids(value)], device=self.device)
        with self._precision():
            output = _Seeing(self.causal_lm, prompt)(torch.cat([question, answer], 1), use_cache=False)
        logits = output.logits[0, question.shape[1] - 1 : -1].float()
        return (logits.gather(-1, answer[0, :, None]).squeeze(-1) - logits.logsumexp(-1)).sum()

    def prompt_tokens(self, parents: Mapping[str, Value]) -> int:
        return int(self._prompt(parents)["input_ids"].shape[1])

    def take_lengths(self, frame: int, tokens: int | None) -> None:
        raise SettingError("a plan cannot count the work of a vision-language model: leave its component out.")


class _Seeing(nn.Module):
    """A model that is shown a prompt's pictures, and which tokens they are, with every sequence that begins with it."""

    def __init__(self, model: Any, seen: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.model, self.seen = model, seen

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> Any:
        rows, length = input_ids.shape
        arguments = {}
        for name, value in self.seen.items():
            value = value.to(input_ids.device)
            if value.is_floating_point():
                value = value.to(self.model.dtype)
            if value.dim() == 2 and value.shape[0] == 1 and name.endswith(("mask", "type_ids")):  # of tokens, [1, T]
                fill = value.new_full((1, length - value.shape[1]), 1 if name == "attention_mask" else 0)
                value = torch.cat([value, fill], 1)
            arguments[name] = torch.cat([value] * rows)
        return self.model(input_ids=input_ids, use_cache=use_cache, **arguments)


def is_picture(value: Value) -> bool:
    return isinstance(value, Image.Image | bytes) or (isinstance(value, Tensor) and value.dim() == 3)


def as_picture(value: Value) -> Image.Image:
    """A tensor [3, H, W] in [0, 1], a picture, or the bytes of a PNG, JPEG or WEBP file, in RGB."""
    if isinstance(value, Image.Image):
        return value.convert("RGB")
    if isinstance(value, Tensor):
        pixels = (value.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
        return Image.fromarray(pixels.permute(1, 2, 0).numpy())
    try:
        return Image.open(io.BytesIO(value), formats=FORMATS).convert("RGB")
    except Exception as error:  # truncated, foreign, too large: of whatever decoder
        raise SettingError("a picture cannot be read; it is truncated, or no PNG, JPEG or WEBP file.") from error


def _parts(text: str, pictures: Sequence[Image.Image]) -> list[dict[str, Any]]:
    """A message's text cut where pictures stand in it."""
    parts: list[dict[str, Any]] = []
    words = ""
    for character in text:
        place = ord(character) - MARKS
        if not 0 <= place < len(pictures):
            words += character
            continue
        parts += [{"type": "text", "text": words}] * bool(words) + [{"type": "image", "image": pictures[place]}]
        words = ""
    return parts + [{"type": "text", "text": words}] * bool(words)


def build_vision_language_model(
    *,
    prompt: Mapping[str, Any],
    pretrained: str | None,
    weights: Weights = "pretrained",
    architecture: Mapping[str, Any] | None = None,
    dtype: str = "auto",
    device: str = "auto",
    seed: int = 0,
    **settings: Any,
) -> VisionLanguageModel:
    """A `VisionLanguageModel` from its config: `conf/model/*.yaml` plus the component's prompt from `conf/system/`.

    Args:
        pretrained: a folder or a hub id; None builds a Llava of `architecture` alone, with one token a byte.
        weights: `random` keeps the architecture and the processor of `pretrained` and draws the weights from `seed`.
        architecture: keys of the model's config that replace those of `pretrained`; None leaves one as it is.
    """
    place = resolve_device(device)
    changes = {key: value for key, value in (architecture or {}).items() if value is not None}
    form: dict[str, Any] = {"dtype": resolve_dtype(dtype, place)}
    if pretrained is None:
        if weights != "random":
            raise SettingError("model.pretrained is not set: name weights, or set model.weights=random.")
        config, processor = _llava(changes)
    else:
        if is_hub_id(pretrained):
            check_available(pretrained)
        with loading("model.pretrained", pretrained):
            config = AutoConfig.from_pretrained(pretrained, **changes)
            processor = AutoProcessor.from_pretrained(pretrained)
    if weights == "random":
        with torch.random.fork_rng(devices=[]), shapes_only(place):
            torch.manual_seed(seed)
            model = AutoModelForImageTextToText.from_config(config, **form)
    else:
        source = str(pretrained)
        with loading("model.pretrained", source):
            model = AutoModelForImageTextToText.from_pretrained(source, config=config, **form)
        check_finite("model.pretrained", source, model)
    user = prompt["user"] if isinstance(prompt["user"], str) else tuple(prompt["user"])
    asked = Prompt(user, prompt.get("system"), prefix=prompt.get("prefix") or "")
    return VisionLanguageModel(model.to(place).eval(), processor, asked, seed=seed, **settings)


def _llava(architecture: Mapping[str, Any]) -> tuple[Any, Any]:
    """A Llava's config (`text_config`, `vision_config`) and a processor with one token a byte."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.llava.processing_llava import LlavaProcessor

    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokens = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    text = {"vocab_size": len(tokenizer), **tokens, **architecture["text_config"]}
    vision = dict(architecture["vision_config"])
    image: Any = tokenizer.convert_tokens_to_ids("<image>")
    config = AutoConfig.for_model("llava", text_config=text, vision_config=vision, image_token_index=image)
    size = {"height": vision["image_size"], "width": vision["image_size"]}
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size=size, crop_size=size),
        tokenizer=tokenizer,
        patch_size=vision["patch_size"],
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        chat_template=CHAT,
        image_token="<image>",
        num_additional_image_tokens=1,  # CLIP's class token, which the strategy `default` takes away again
    )
    return config, processor
