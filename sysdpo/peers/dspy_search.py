"""Few-shot search by DSPy, in an environment of its own: python dspy_search.py task.json found.json

Imports nothing of this project, which is asked over HTTP: an OpenAI-compatible endpoint serves the components by name,
and `/score` says how good an answer is. The prompts are the system's own: no marks of DSPy's, which a small model that
knows only its own words could not read.
"""

import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

import dspy
from dspy.teleprompt import BootstrapFewShotWithRandomSearch


class OwnPrompts(dspy.Adapter):
    """Asks with the component's template, demonstrations as earlier turns; the whole reply is the value."""

    def __init__(self, system: str | None, template: str) -> None:
        super().__init__()
        self.system, self.template = system, template

    def format(self, signature: Any, demos: list[dict[str, Any]], inputs: dict[str, Any]) -> list[dict[str, Any]]:
        (answer,) = signature.output_fields
        names = list(signature.input_fields)
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for demo in demos:
            if all(name in demo for name in (*names, answer)):
                messages.append({"role": "user", "content": self._asked({name: demo[name] for name in names})})
                messages.append({"role": "assistant", "content": demo[answer]})
        return [*messages, {"role": "user", "content": self._asked({name: inputs[name] for name in names})}]

    def _asked(self, values: dict[str, Any]) -> str:
        return self.template.format(**values)

    def parse(self, signature: Any, completion: str) -> dict[str, Any]:
        (answer,) = signature.output_fields
        return {answer: completion}


class System(dspy.Module):
    """The variables of the graph in order, a predictor each."""

    def __init__(self, variables: list[dict[str, Any]], lms: dict[str, Any]) -> None:
        super().__init__()
        self.variables = variables
        for variable in variables:
            predictor = dspy.Predict(f"{', '.join(variable['parents'])} -> {variable['name']}")
            setattr(self, f"draw_{variable['name']}", predictor)
        # in the context of each call: a predictor's own model is forgotten by the search, which resets it
        self.contexts = {
            v["name"]: {"adapter": OwnPrompts(v["system"], v["template"]), "lm": lms[v["component"]]} for v in variables
        }

    def forward(self, **inputs: Any) -> Any:
        values = dict(inputs)
        for variable in self.variables:
            with dspy.context(**self.contexts[variable["name"]]):
                parents = {alias: values[name] for alias, name in variable["parents"].items()}
                drawn = getattr(self, f"draw_{variable['name']}")(**parents)
            values[variable["name"]] = getattr(drawn, variable["name"])
        return dspy.Prediction(**{v["name"]: values[v["name"]] for v in self.variables})


def post(url: str, content: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(content).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as reply:
        found: dict[str, Any] = json.load(reply)
        return found


def main(task_file: str, found_file: str) -> None:
    task = json.loads(Path(task_file).read_text(encoding="utf-8"))
    url, variables = task["url"], task["variables"]
    common = {"api_base": f"{url}/v1", "api_key": "none", "cache": False, "num_retries": 0}
    lms = {
        name: dspy.LM(f"openai/{name}", max_tokens=task["max_tokens"], temperature=1.0, **common)
        for name in {v["component"] for v in variables}
    }
    dspy.configure(lm=next(iter(lms.values())))

    def score(example: Any, prediction: Any, trace: Any = None) -> float:
        values = {v["name"]: prediction[v["name"]] for v in variables}
        return float(post(f"{url}/score", {"row": example.row, "values": values})["score"])

    names, bootstrap = task["inputs"], task["bootstrap"]
    examples = [dspy.Example(**row, row=i).with_inputs(*names) for i, row in enumerate(task["rows"])]
    search = BootstrapFewShotWithRandomSearch(
        metric=score,
        max_bootstrapped_demos=task["demonstrations"],
        max_labeled_demos=0,
        num_candidate_programs=task["candidates"],
        num_threads=task["threads"],
        metric_threshold=task["threshold"],
        max_errors=10 * len(examples),  # a demonstration that does not fit the context is a failure, which loses
    )
    program = search.compile(System(variables, lms), trainset=examples[:bootstrap], valset=examples[bootstrap:])
    found = {}
    for variable in variables:
        demos = [dict(demo) for demo in getattr(program, f"draw_{variable['name']}").demos]
        adapter = OwnPrompts(None, variable["template"])
        found[variable["name"]] = [
            {
                "user": adapter._asked({alias: demo[alias] for alias in variable["parents"]}),
                "assistant": demo[variable["name"]],
            }
            for demo in demos
        ]
    scores = [[each["seed"], each["score"]] for each in program.candidate_programs]
    Path(found_file).write_text(json.dumps({"examples": found, "scores": scores}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
