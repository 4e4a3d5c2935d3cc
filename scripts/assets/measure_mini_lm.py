"""What the miniature's language model is judged by before any system is aligned; writes its card."""

import random
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from mini_lm_batches import MAX_NEW_TOKENS, SYSTEMS, collate, completion_loss, encode
from transformers import PreTrainedModel

from sysdpo.components.text.codec import Prompt, TextCodec
from sysdpo.components.text.language_model import LanguageModel
from sysdpo.components.text.pretrained import load_causal_lm
from sysdpo.sampling.monte_carlo import MonteCarlo
from sysdpo.tasks.mini import teachers
from sysdpo.tasks.mini.instructions import draw_tasks
from sysdpo.tasks.mini.roles import turns, user_prompts
from sysdpo.tasks.mini.tasks import FAMILIES, Task
from sysdpo.tasks.mini.teachers import IMPERFECT
from sysdpo.tasks.mini.tokenizer import vocabulary
from sysdpo.tasks.verifiable.score import score

SAMPLES = 4
"""Samples of one prompt, as many as a table's training set draws."""

BATCH = 256

_RATES = {
    "own_words": "words of a role's own are right",
    "first_wish": "a draft meets, or a plan notes, a wish for the format",
    "answer_keeps_words": "an answer keeps the draft's words; else: words of its own",
    "answer_keeps_form": "an answer treats a wish as the draft did; else: as the next line says",
    "answer_wish": "an answer meets a wish by itself",
    "write_keeps_words": "an answer from a plan keeps its words; else: words of its own",
    "write_noted": "an answer from a plan meets a wish that the plan noted",
    "write_unnoted": "an answer from a plan meets a wish that the plan forgot",
    "wrong_value": "where a wish is not met, another mark or word stands there; else: none",
}

TEXT: dict[str, Callable[[teachers.Attempt], str]] = {"draft": teachers.as_answer, "plan": teachers.as_plan}


@torch.no_grad()
def held_out_loss(model: PreTrainedModel, codecs: dict[str, TextCodec], tasks: int, seed: int) -> dict[str, float]:
    """Nats a token by role, on prompts of the evaluation share."""
    said = [encode(each, codecs) for each in islice(turns(draw_tasks("evaluation", seed), seed), tasks)]
    return {role: round(completion_loss(model, *collate([each[role] for each in said])).item(), 4) for role in codecs}


GENERATION = MonteCarlo(temperature=0.7, top_p=0.9, distinct=False)
"""As `conf/model/mini_lm.yaml` has it, and every other model at a small scale."""


def evaluate(folder: Path, tasks: int, seed: int) -> dict[str, Any]:
    """Both untrained systems on prompts of the evaluation share."""
    model, tokenizer = load_causal_lm(str(folder.resolve()), dtype="float32", device="cpu")
    speakers = {
        role: LanguageModel(model, tokenizer, Prompt(user), generation=GENERATION, max_new_tokens=MAX_NEW_TOKENS)
        for role, user in user_prompts(SYSTEMS).items()
    }
    codecs = {role: speaker.codec for role, speaker in speakers.items()}
    drawn = list(islice(draw_tasks("evaluation", seed), tasks))
    return {
        "prompts": tasks,
        "loss": held_out_loss(model, codecs, tasks, seed),
        **{
            name: _system(speakers[first], speakers[second], TEXT[first], drawn)
            for name, (first, second) in SYSTEMS.items()
        },
    }


def _system(
    first: LanguageModel, second: LanguageModel, text: Callable[[teachers.Attempt], str], tasks: Sequence[Task]
) -> dict[str, Any]:
    """Scores of answers after the first model's own text, and after texts that are better, worse or none at all."""
    rng = random.Random(0)
    repeated = [task for task in tasks for _ in range(SAMPLES)]
    own = _say(first, [{"x": task.prompt} for task in repeated], 0)
    answers = _answers(second, repeated, own)
    by_prompt = [answers[i : i + SAMPLES] for i in range(0, len(answers), SAMPLES)]
    families = defaultdict(list)
    for task, value in zip(repeated, answers, strict=True):
        families[task.family].append(value)
    others = {
        "perfect": [text(teachers.right(task, rng)) for task in tasks],
        "another prompt's": own[SAMPLES::SAMPLES] + own[:1],
        "none": ["" for _ in tasks],
    }
    return {
        "score": _mean(answers),
        "families": {family: _mean(values) for family, values in families.items()},
        "perfect_answers": _mean([float(value == 1.0) for value in answers]),
        "differing": _mean([float(max(v) > min(v)) for v in by_prompt]),
        "after": {
            "its own": _mean(answers),
            **{name: _mean(_answers(second, tasks, texts)) for name, texts in others.items()},
        },
    }


def _answers(second: LanguageModel, tasks: Sequence[Task], texts: Sequence[str]) -> list[float]:
    parents = [{"x": task.prompt, "y": given} for task, given in zip(tasks, texts, strict=True)]
    return [score(task.oracle, said) for task, said in zip(tasks, _say(second, parents, 1), strict=True)]


def _say(speaker: LanguageModel, parents: Sequence[dict[str, str]], stream: int) -> list[str]:
    said: list[str] = []
    for start in range(0, len(parents), BATCH):
        part = parents[start : start + BATCH]
        seeds = [(start + i) * 2 + stream for i in range(len(part))]
        said += [str(row[0]) for row in speaker.sample(part, 1, seeds)]
    return said


def _mean(values: Sequence[float]) -> float:
    return round(statistics.fmean(values), 3)


def write_card(folder: Path, metrics: dict[str, Any]) -> None:
    """`card.md`: world, training and measured criteria, filled from `metrics`."""
    held_out = metrics["held_out"]
    systems = [held_out[name] for name in SYSTEMS]
    lines = {
        "score of the untrained system": [each["score"] for each in systems],
        "share of perfect answers": [each["perfect_answers"] for each in systems],
        f"share of prompts whose {SAMPLES} samples differ in score": [each["differing"] for each in systems],
        **{
            f"score after a first text that is {kind}": [each["after"][kind] for each in systems]
            for kind in systems[0]["after"]
        },
    }
    template = (Path(__file__).parent / "mini_lm_card.md").read_text()
    fields = {key: value for key, value in metrics.items() if key != "held_out"}
    fields |= {
        "vocabulary": len(vocabulary()),
        "prompts": held_out["prompts"],
        "samples": SAMPLES,
        "examples": "\n".join(f"    {task.prompt}" for task in islice(draw_tasks("base", 0), 4)),
        "rates": "\n".join(f"| {_RATES[key]} | {value} |" for key, value in IMPERFECT._asdict().items()),
        "systems": _rows(lines),
        "losses": ", ".join(f"{role} {value:.3f}" for role, value in held_out["loss"].items()),
        "families": _rows({name: [each["families"][name] for each in systems] for name in FAMILIES}),
    }
    (folder / "card.md").write_text(template.format(**fields))


def _rows(lines: Mapping[str, Sequence[float]]) -> str:
    return "\n".join(
        f"| {name} | " + " | ".join(f"{value:.2f}" for value in values) + " |" for name, values in lines.items()
    )
