"""Rows with texts, numbers, lists and images as `datasets` directories that open without this project."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value, concatenate_datasets, load_from_disk
from datasets import Image as ImageFeature
from PIL import Image
from pyarrow.parquet import ParquetFile

from sysdpo import processes
from sysdpo.errors import SettingError, one_line
from sysdpo.runs.files import replacing, sha256, write_sums
from sysdpo.runs.locks import FolderLock, lock_file

log = logging.getLogger(__name__)

LONGEST_NAME = 1_024
"""Characters of a text that may name a file."""

PART = 100
"""Rows that are handled at a time: a column of one Arrow array ends at 2 GB, which 800 pairs of photographs fill."""


def made_once(path: Path, proof: Path, fault: Callable[[], str | None] | None = None) -> AbstractContextManager[bool]:
    """Whether `path` is still to be made; meanwhile other commands that want it wait.

    Args:
        path: what jobs that run side by side share.
        proof: exists once it is whole.
        fault: what is wrong although `proof` exists, in words; then it is made anew.
    """
    return processes.held_by_first(_made_once(path, proof, fault))


@contextmanager
def _made_once(path: Path, proof: Path, fault: Callable[[], str | None] | None) -> Iterator[bool]:
    def is_whole(say: bool) -> bool:
        if not proof.exists():
            return False
        wrong = fault() if fault is not None else None
        if wrong is not None and say:
            log.warning("%s: %s; made anew", path, wrong)
        return wrong is None

    if is_whole(say=False):
        yield False
        return
    own = FolderLock()
    with lock_file(path, wait=True):
        if proof != path:  # a folder: who deletes the lock's file has not freed it
            own.take(path, wait=True)
        try:
            yield not is_whole(say=True)
        finally:
            own.free()
        if proof.exists():  # whoever still waits for this file will find that nothing is left to do
            path.with_name(f".{path.name}.lock").unlink(missing_ok=True)


def save_rows(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write a `datasets` directory, whole or not at all; PIL images and image bytes become `datasets.Image`."""
    features = Features({key: _feature([row[key] for row in rows]) for key in rows[0]})
    parts = [[dict(row) for row in rows[start : start + PART]] for start in range(0, len(rows), PART)]
    with replacing(path) as fresh:
        concatenate_datasets([Dataset.from_list(part, features=features) for part in parts]).save_to_disk(str(fresh))
        write_sums(fresh)


def load_rows(path: Path, setting: str = "dataset.path", split: str | None = None) -> list[dict[str, Any]]:
    """The rows of a `datasets` directory; images stay encoded, as bytes, and equal ones are kept once."""
    try:
        loaded = load_from_disk(str(path))
    except FileNotFoundError as error:
        raise SettingError(
            f"{setting}={path}: is neither a file nor a folder that `datasets` has written; a file is missing."
        ) from error
    except Exception as error:  # a file of it is truncated, empty or foreign: of whatever library reads it
        said = one_line(error, 120)
        raise SettingError(
            f"{setting}={path}: cannot be read as `datasets` wrote it ({said}); write or fetch it again."
        ) from error
    if not isinstance(loaded, Dataset):
        if split is None:
            raise SettingError(
                f"{setting}={path}: has the splits {', '.join(loaded)}; name the folder of one, or set dataset.split=…"
            )
        if split not in loaded:
            raise SettingError(f"dataset.split={split}: {path} has {', '.join(loaded)}.")
        loaded = loaded[split]
    elif split not in (None, path.name, str(loaded.split)):
        raise SettingError(f"dataset.split={split}: {path} holds one part, of no such name; leave it out.")
    return plain_rows(loaded)


def plain_rows(table: Dataset | ParquetFile) -> list[dict[str, Any]]:
    """Rows as they are stored: no image is decoded, and a picture that is only named stays `{bytes: None, path: …}`."""
    if isinstance(table, ParquetFile):
        parts = table.iter_batches(batch_size=PART)
    else:
        parts = table.with_format("arrow").iter(batch_size=PART)
    known: dict[bytes, bytes] = {}
    return [{key: _plain(value, known) for key, value in row.items()} for part in parts for row in part.to_pylist()]


def fingerprint(rows: Iterable[Mapping[str, Any]]) -> str:
    """What identifies the content of a data set: equal for equal rows in equal order, wherever and however stored."""
    total = hashlib.sha256()
    for row in rows:
        line = json.dumps(row, sort_keys=True, default=_content)  # escapes keep half characters apart
        total.update(hashlib.sha256(line.encode()).digest())
    return total.hexdigest()[:16]


def with_named_files(rows: Iterable[Mapping[str, Any]], folder: Path) -> Iterator[dict[str, Any]]:
    """The rows, each text that names a file in the data set's own folder beside the digest of what is in that file."""
    root = folder.resolve()

    def walk(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: walk(part) for key, part in value.items()}
        if isinstance(value, list):
            return [walk(part) for part in value]
        return value if not isinstance(value, str) or (held := file_of(value)) is None else [value, held]

    @lru_cache(maxsize=100_000)
    def file_of(name: str) -> str | None:
        if not name or len(name) > LONGEST_NAME:
            return None
        try:
            path = (root / name).resolve()
            return sha256(path) if path.is_relative_to(root) and path.is_file() else None
        except (OSError, ValueError):  # a text that no file can have as its name
            return None

    return (walk(row) for row in rows)


def _content(value: Any) -> str:
    if isinstance(value, Image.Image):
        value = f"{value.mode}{value.size}".encode() + value.tobytes()
    kept = value if isinstance(value, bytes) else repr(value).encode()
    return f"{type(value).__name__} {hashlib.sha256(kept).hexdigest()}"


def _feature(values: Sequence[Any]) -> Any:
    first = next((v for v in values if v is not None), "")
    if isinstance(first, Mapping):
        return {key: _feature([v[key] for v in values]) for key in first}
    if isinstance(first, list | tuple):
        return List(_feature([element for value in values for element in value]))
    if isinstance(first, Image.Image | bytes):
        return ImageFeature()
    kinds = {bool: "bool", int: "int64", float: "float64", str: "string"}
    if type(first) not in kinds:
        raise SettingError(f"a data set cannot hold values of type {type(first).__name__}.")
    return Value(kinds[type(first)])


def _plain(value: Any, known: dict[bytes, bytes]) -> Any:
    if isinstance(value, Mapping):
        if set(value) == {"bytes", "path"}:
            content = value["bytes"]
            return value if content is None else known.setdefault(content, content)
        return {key: _plain(v, known) for key, v in value.items()}
    return [_plain(v, known) for v in value] if isinstance(value, list) else value
