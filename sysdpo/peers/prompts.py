"""Prompts by DSPy: demonstrations that its random search finds, in the components' own `prompt.examples`.

DSPy runs in an environment of its own, `make setup-dspy`, and asks the components over HTTP (`endpoint`). No weight is
changed by `FewShot`; `BetterTogether` then trains the weights on traces of the system with these prompts.
"""

import hashlib
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from sysdpo.components.text.language_model import LanguageModel
from sysdpo.data.redraw import draw_outputs
from sysdpo.errors import SettingError, TooLong
from sysdpo.peers.endpoint import Endpoint
from sysdpo.peers.sft import fine_tune
from sysdpo.peers.task import Task
from sysdpo.progress import bar
from sysdpo.runs.files import write_json, write_jsonl
from sysdpo.seeds import stream
from sysdpo.system import Pair
from sysdpo.training.fingerprint import fingerprint

SCRIPT = Path(__file__).with_name("dspy_search.py")
SPARE = 8
"""Tokens of the context that demonstrations leave free: the longest prompt may be none of the training set's."""
THREADS = 16
"""Prompts that the search asks at the same time, answered as one batch."""


@dataclass(frozen=True)
class FewShot:
    """DSPy's BootstrapFewShotWithRandomSearch on the system's graph, a predictor for each variable.

    What is found is kept in `dspy/found.json` of the run: an interrupted run that had found it does not search again.

    Args:
        python: the interpreter of an environment that has DSPy.
        prompts: of the training set: half to bootstrap from, half to choose by.
        demonstrations: the most that a component gets.
        candidates: sets of demonstrations that are tried, beside none.
        threshold: the least score of an outcome whose values become demonstrations.
    """

    python: str
    prompts: int = 80
    demonstrations: int = 2
    candidates: int = 4
    threshold: float = 0.9
    learns_from_pairs: ClassVar[bool] = False

    def train(self, task: Task) -> dict[str, float]:
        write_jsonl(task.folder / "metrics.jsonl", [])
        return self.search(task)

    def search(self, task: Task) -> dict[str, float]:
        """Set the components' demonstrations; returns what the search took."""
        models = task.language_models("dspy")
        pairs = task.prompts(self.prompts)
        if len(pairs) < 2:
            raise SettingError(f"trainer.prompts={self.prompts}: half are to choose by; give at least 2.")
        variables = [_describe(task, variable.name, models) for variable in task.system.graph.generated]
        content = {
            "variables": variables,
            "inputs": [v.name for v in task.system.graph.inputs],
            "rows": [dict(pair.inputs) for pair in pairs],
            "bootstrap": len(pairs) // 2,
            "max_tokens": max(model.codec.max_new_tokens for model in models.values()),
            "demonstrations": self.demonstrations,
            "candidates": self.candidates,
            "threshold": self.threshold,
            "threads": THREADS,
        }
        own = [content, fingerprint(task.system, None, task.pairs, [], task.settings)]
        digest = hashlib.sha256(json.dumps(own).encode()).hexdigest()[:16]
        file = task.folder / "dspy" / "found.json"
        found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        if found.get("search") != digest:
            spent = self._found(task, models, pairs, content)
            found = {**json.loads(file.read_text(encoding="utf-8")), "spent": spent, "search": digest}
            write_json(file, found)
        for variable in variables:
            _show(task, models[variable["component"]], found["examples"][variable["name"]])
        taken: dict[str, float] = found["spent"]
        return taken

    def _found(
        self, task: Task, models: Mapping[str, LanguageModel], pairs: Sequence[Pair], content: Mapping[str, Any]
    ) -> dict[str, float]:
        """Let DSPy search, which writes `found.json`; returns what that took."""
        programs = self.candidates + 3  # DSPy also tries none, labelled ones (here none), and the first bootstrapped
        with bar("demonstrations", total=programs * (len(pairs) - content["bootstrap"])) as shown:

            def score(asked: dict[str, Any]) -> float:
                rated, _ = task.rank([pairs[asked["row"]]], [[asked["values"]]])
                shown.update(asked["row"] >= content["bootstrap"])
                return rated[0][0]

            endpoint = Endpoint(models, score, task.settings.seed)
            with endpoint.serving() as url:
                write_json(task.folder / "dspy" / "task.json", {**content, "url": url})
                self._run(task.folder / "dspy")
        finals = {v.component for v in task.system.graph.finals}
        answers = sum(endpoint.asked[name] for name in models if name in finals)
        drafts = sum(endpoint.asked[name] for name in models) - answers
        return {"answers": float(answers), "drafts": float(drafts), "judge_calls": float(endpoint.asked["/score"])}

    def _run(self, folder: Path) -> None:
        command = [self.python, str(SCRIPT), str(folder / "task.json"), str(folder / "found.json")]
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
        environment |= {"DSPY_CACHEDIR": str(folder / "cache"), "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        except OSError as error:
            raise SettingError(
                f"trainer.python={self.python}: cannot be started ({error.strerror}); make setup-dspy makes an "
                "environment with DSPy."
            ) from error
        (folder / "log.txt").write_text(done.stdout + done.stderr, encoding="utf-8")
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no output"])[-1]
            raise SettingError(f"trainer.python={self.python}: the search failed: {last}; see {folder / 'log.txt'}")


def _describe(task: Task, name: str, models: Mapping[str, LanguageModel]) -> dict[str, Any]:
    """A variable as the search knows it: its component, its parents, and how it is asked."""
    variable = task.system.graph[name]
    component = variable.component
    if component is None or component not in models or variable.plate is not None or variable.controls:
        raise SettingError(f"trainer=dspy: one trainable language model has to draw {name!r} in every row.")
    drawn = [v.name for v in task.system.graph.generated if v.component == component]
    if len(drawn) > 1:
        raise SettingError(f"trainer=dspy: component {component!r} draws {', '.join(drawn)}; one prompt is searched.")
    prompt = models[component].codec.prompt
    aliases = dict(variable.parents)
    return {
        "name": name,
        "component": component,
        "parents": aliases,
        "system": prompt.system,
        "template": prompt.template(list(aliases)),
    }


def _show(task: Task, model: LanguageModel, examples: Sequence[Mapping[str, str]]) -> None:
    """Give a component as many of the demonstrations as leave room for every training prompt."""
    turns = tuple((each["user"], each["assistant"]) for each in examples)
    (variable,) = [v for v in task.system.graph.generated if model is task.system.components[str(v.component)]]
    coming = {
        alias: max((task.system.component(n).longest for n in task.system.graph[parent].components), default=SPARE)
        for alias, parent in variable.parents
    }
    for n in range(len(turns), -1, -1):
        model.codec.prompt = replace(model.codec.prompt, examples=turns[:n])
        try:
            for pair in task.prompts():
                parents = {alias: pair.inputs.get(parent, "") for alias, parent in variable.parents}
                model.check_row(parents, coming)
        except TooLong:
            continue
        return


@dataclass(frozen=True)
class BetterTogether:
    """Prompts by DSPy, then weights by fine-tuning on the best traces of the system with these prompts (DSPy's
    BetterTogether, alternated once).

    Args:
        prompts: how demonstrations are found.
        samples: traces drawn for each training prompt; the best one counts if its score reaches the threshold.
    """

    prompts: FewShot
    samples: int = 4
    learns_from_pairs: ClassVar[bool] = False

    def train(self, task: Task) -> dict[str, float]:
        spent = self.prompts.search(task)
        pairs = task.prompts()
        drawn = draw_outputs(task.system, pairs, self.samples, stream(task.settings.seed, 1), task.batch_size)
        scores, calls = task.rank(pairs, drawn)
        rows = []
        for samples, own in zip(drawn, scores, strict=True):
            best = max(range(len(own)), key=own.__getitem__)
            if own[best] >= self.prompts.threshold:
                rows.append(samples[best])
        if not rows:
            raise SettingError(
                f"trainer.prompts.threshold={self.prompts.threshold}: no trace of {len(pairs)} prompts reaches it; "
                "lower it."
            )
        fine_tune(task, rows)
        return {
            "answers": spent["answers"] + len(pairs) * self.samples,
            "drafts": spent["drafts"],
            "judge_calls": spent["judge_calls"] + calls,
        }
