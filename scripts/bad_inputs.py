"""Bad inputs of every kind that reaches the program from outside, generated and tried: each is read or refused.

Refused means: an exception whose one line the user is meant to read. Whatever else comes up is a traceback.
`make faults` counts them; a test tries fewer of them.
"""

import copy
import io
import json
import math
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from PIL import Image

from sysdpo.cli.schema.check import check_settings
from sysdpo.components.image.pixels import to_pixels
from sysdpo.data.records import understand
from sysdpo.errors import SettingError
from sysdpo.evaluation.judges.alpaca_eval import AlpacaEvalJudge
from sysdpo.evaluation.judges.endpoint import ChatEndpoint, NoLogprobsError, UnanswerableError
from sysdpo.evaluation.judges.reply import MalformedAnswerError, json_object
from sysdpo.evaluation.win_rate import preference_from_logprobs
from sysdpo.graph import GraphError, SystemGraph
from sysdpo.paths import CONF
from sysdpo.training.checkpoints import load_checkpoint, write_checkpoint

REFUSALS = (SettingError, GraphError, MalformedAnswerError, NoLogprobsError, UnanswerableError)


@dataclass
class BadInputs:
    """A kind of input: how many were tried, and what came of them."""

    kind: str
    tried: int = 0
    refused: int = 0
    read: int = 0
    tracebacks: int = 0
    remarks: list[str] = field(default_factory=list)


NAMES = st.sampled_from(
    ["x", "y", "z", "psi1", "psi2", "values", "type", "training", "a b", "", "\ud800", "\u0000", "ü"]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.integers(10**300, 10**301) | st.floats() | st.text(max_size=12)
ANYTHING = st.recursive(
    SCALARS | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6) | NAMES, inner, max_size=3),
    max_leaves=6,
)


# ---- graphs --------------------------------------------------------------------------------------------------------

VARIABLES = st.dictionaries(
    NAMES,
    st.fixed_dictionaries(
        {},
        optional={
            "role": st.sampled_from(["input", "intermediate", "final"]) | ANYTHING,
            "component": NAMES | ANYTHING,
            "parents": st.lists(NAMES, max_size=3) | st.dictionaries(NAMES, NAMES, max_size=2) | ANYTHING,
            "plate": NAMES | ANYTHING,
            "when": ANYTHING,
        },
    ),
    min_size=1,
    max_size=4,
)


def take_graph(variables: dict[str, Any]) -> None:
    """As a configuration brings it: typed, then drawn."""
    system = {"variables": variables, "components": {name: {"_target_": "a.B"} for name in ("psi1", "psi2", "values")}}
    check_settings({"system": system})
    SystemGraph(variables, system["components"]).to_mermaid()


# ---- configs -------------------------------------------------------------------------------------------------------


@cache
def _config() -> dict[str, Any]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        content = OmegaConf.to_container(compose("config", ["scale=smoke", "judge=alpaca_eval"]), resolve=True)
    return {str(key): value for key, value in content.items()} if isinstance(content, dict) else {}


def _places(content: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    pairs = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [place for key, value in pairs for place in [(*before, key), *_places(value, (*before, key))]]


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    """One value anywhere replaced by anything."""
    changed = copy.deepcopy(_config())
    *before, last = draw(st.sampled_from(_places(changed)))
    node = changed
    for key in before:
        node = node[key]
    node[last] = draw(ANYTHING)
    return changed


# ---- rows ----------------------------------------------------------------------------------------------------------

COLUMNS = st.sampled_from(
    [
        *("x", "prompt", "question", "instruction", "input", "system", "conversations", "messages"),
        *("chosen", "rejected", "status", "score_chosen", "score_rejected", "label", "images"),
    ]
)
TURN = st.fixed_dictionaries({}, optional={"role": ANYTHING, "content": ANYTHING, "from": ANYTHING})
TURNS = st.lists(TURN, max_size=3)
ROWS = st.lists(st.dictionaries(COLUMNS, ANYTHING | TURNS, max_size=5), min_size=1, max_size=3)


def take_rows(rows: list[dict[str, Any]]) -> None:
    variables: dict[str, dict[str, Any]] = {
        "x": {"role": "input"},
        "z": {"role": "final", "component": "psi1", "parents": ["x"]},
    }
    found = understand(rows, SystemGraph(variables, {"psi1": {}}), needs_intermediates=False)
    assert len(found.pairs) + sum(map(len, found.dropped.values())) == len(rows)


# ---- files of bytes: pictures, checkpoints -------------------------------------------------------------------------


@st.composite
def harmed(draw: st.DrawFn, files: Callable[[], list[bytes]]) -> bytes:
    """A whole file cut off, with bytes replaced, put in, left out or put behind."""
    content = bytearray(draw(st.sampled_from(files())))
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(0, len(content) - 1)))
        harm = draw(st.sampled_from(["cut", "replace", "insert", "leave out", "append", "zeros"]))
        some = draw(st.binary(min_size=1, max_size=8))
        if harm == "cut":
            del content[place:]
        elif harm == "replace":
            content[place : place + len(some)] = some
        elif harm == "insert":
            content[place:place] = some
        elif harm == "leave out":
            del content[place : place + len(some)]
        elif harm == "append":
            content += some
        else:
            content[place : place + 64] = bytes(len(content[place : place + 64]))
    return bytes(content)


@cache
def _pictures() -> list[bytes]:
    files = []
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"):
        buffer = io.BytesIO()
        Image.frombytes("RGB", (8, 8), random.Random(0).randbytes(192)).save(buffer, kind)
        files.append(buffer.getvalue())
    return files


def take_picture(content: bytes) -> None:
    pixels = to_pixels(content, 8)
    assert pixels.shape == (3, 8, 8)
    assert 0 <= float(pixels.min()) <= float(pixels.max()) <= 1


@cache
def _checkpoint() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder), {"step": 1, "weights": {"w": torch.arange(8.0)}, "best": {"margin": 0.5}})
        return [(Path(folder) / "step=1.pt").read_bytes()]


def take_checkpoint(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "step=1.pt"
        path.write_bytes(content)
        state, fault = load_checkpoint(path)
    assert state is None or content == _checkpoint()[0]  # nothing that was altered is taken for whole
    if state is None:
        raise SettingError(fault)


# ---- a judge's answers ---------------------------------------------------------------------------------------------

CANDIDATES = st.lists(
    st.fixed_dictionaries({}, optional={"token": st.sampled_from(["m", "M", " m"]) | ANYTHING, "logprob": ANYTHING}),
    max_size=6,
)
CONTENT = st.lists(st.fixed_dictionaries({}, optional={"top_logprobs": CANDIDATES | ANYTHING}), max_size=2) | ANYTHING
CHOICE = st.fixed_dictionaries(
    {},
    optional={
        "logprobs": st.fixed_dictionaries({}, optional={"content": CONTENT}) | ANYTHING,
        "message": st.fixed_dictionaries({}, optional={"content": ANYTHING, "refusal": ANYTHING}) | ANYTHING,
    },
)
BODIES = st.fixed_dictionaries(
    {}, optional={"choices": st.lists(CHOICE, max_size=2) | ANYTHING, "model": ANYTHING, "usage": ANYTHING}
)
ANSWERS = (
    BODIES.map(lambda body: json.dumps(body).encode())
    | st.binary(max_size=60)
    | ANYTHING.map(lambda value: json.dumps(value).encode())
)


def take_answer(content: bytes) -> None:
    judge = AlpacaEvalJudge(ChatEndpoint("http://127.0.0.1:1/v1"), "m", "unused", 0, 0)
    kept = judge._annotation(json_object(content, "sk-secret"))
    preference = preference_from_logprobs(kept["top_logprobs"], False)
    assert math.isnan(preference) or 1 <= preference <= 2
    json.dumps(kept)


KINDS: dict[str, tuple[st.SearchStrategy[Any], Callable[[Any], None]]] = {
    "graphs": (VARIABLES, take_graph),
    "settings": (configs(), check_settings),
    "rows": (ROWS, take_rows),
    "pictures": (harmed(_pictures), take_picture),
    "checkpoints": (harmed(_checkpoint), take_checkpoint),
    "a judge's answers": (ANSWERS, take_answer),
}


def tried(examples: int) -> list[BadInputs]:
    """So many inputs of every kind."""
    return [_tried(kind, examples) for kind in KINDS]


def _tried(kind: str, examples: int) -> BadInputs:
    inputs, take = KINDS[kind]
    found = BadInputs(kind)

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs)
    def one(value: Any) -> None:
        found.tried += 1
        try:
            take(value)
            found.read += 1
        except REFUSALS as error:
            if "\n" in str(error):
                found.tracebacks += 1
                found.remarks.append(f"several lines: {str(error)[:300]!r}")
            else:
                found.refused += 1
        except Exception as error:  # which is what is looked for
            found.tracebacks += 1
            found.remarks.append(f"{type(error).__name__}: {error} of {value!r}"[:600])

    one()
    return found
