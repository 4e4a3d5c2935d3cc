"""The four roles of the miniature's models: what each is asked, and what its teacher says."""

import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from sysdpo.paths import CONF
from sysdpo.tasks.mini import teachers
from sysdpo.tasks.mini.tasks import Task
from sysdpo.tasks.mini.teachers import IMPERFECT, SKILLED


class Turn(NamedTuple):
    """What a role is given, by the names of its parents, and what it says to that."""

    parents: Mapping[str, str]
    text: str


def user_prompts(systems: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    """Each role's question as its system in `conf/system/` puts it; there is no system prompt in this world.

    Args:
        systems: `{name in conf/system: the roles of its psi1 and psi2}`.
    """
    prompts = {}
    for system, roles in systems.items():
        content: Any = OmegaConf.to_container(OmegaConf.load(CONF / "system" / f"{system}.yaml"), resolve=False)
        for role, component in zip(roles, ("psi1", "psi2"), strict=True):
            prompts[role] = content["components"][component]["prompt"]["user"]
    return prompts


def turns(tasks: Iterable[Task], seed: int, skilled: int = 0) -> Iterator[dict[str, Turn]]:
    """Of every task what the teachers say in each role.

    A second model is given what the first one's imperfect teacher said.

    Args:
        skilled: so many tasks from the first on have the skilled teachers.
    """
    rng = random.Random(f"mini/teachers/{seed}")
    for index, task in enumerate(tasks):
        rates = SKILLED if index < skilled else IMPERFECT
        first, drafted, planned = (teachers.first(task, rng, r) for r in (rates, IMPERFECT, IMPERFECT))
        draft, plan = teachers.as_answer(drafted), teachers.as_plan(planned)
        answer, written = teachers.answer(task, drafted, rng, rates), teachers.write(task, planned, rng, rates)
        yield {
            "draft": Turn({"x": task.prompt}, teachers.as_answer(first)),
            "answer": Turn({"x": task.prompt, "y": draft}, teachers.as_answer(answer)),
            "plan": Turn({"x": task.prompt}, teachers.as_plan(first)),
            "write": Turn({"x": task.prompt, "y": plan}, teachers.as_answer(written)),
        }
