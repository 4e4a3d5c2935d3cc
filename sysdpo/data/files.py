"""Rows as they stand in files: JSON lines, JSON arrays, CSV, Parquet, folders of shards, `datasets` folders, the hub.

What the columns mean is the business of `formats`. A file is refused in one line that says what would mend it.
"""

import csv
import gzip
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import pyarrow.parquet
from datasets import load_dataset

from sysdpo.data.storage import load_rows, plain_rows
from sysdpo.errors import SettingError, one_line

Record = dict[str, Any]

ROW_LIMIT = 16 * 2**20
"""Bytes a row of a text file may take: a model reads at most a few megabytes, and tokens take 200 times their text."""

ARCHIVES = (b"PK\x03\x04", b"BZh", b"ARRO", b"\x28\xb5\x2f\xfd", b"\xfd7zX", b"7z\xbc\xaf")
"""How zip, bzip2, Arrow, zstandard, xz and 7z files begin."""

SPLIT_OF_HUB = "train"


def read_rows(path: str | Path, setting: str = "dataset.path", split: str | None = None) -> list[Record]:
    """The rows of a file or a folder.

    Args:
        setting: what an error calls the path.
        split: which part of a folder that holds several; None: there must be only one.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        rows = _folder(path, setting, split)
    elif path.is_file():
        if split is not None and split != _split_of(path, path.parent):
            raise SettingError(f"dataset.split={split}: {path} is one file, of no such split; leave it out.")
        rows = _file(path, setting)
    else:
        hint = f" A data set of the hub is {setting.rpartition('.')[0]}.hub={path}." if _is_id(str(path)) else ""
        raise SettingError(f"{setting}={path}: there is no such file or folder.{hint}")
    if not rows:
        raise SettingError(f"{setting}={path}: the data set is empty.")
    return rows


def fetch_rows(repository: str, config: str | None = None, split: str | None = None) -> list[Record]:
    """A split of a data set on the hub, from this machine's cache where it was fetched before."""
    try:
        loaded = load_dataset(repository, config, split=split or SPLIT_OF_HUB)
    except Exception as error:  # not found, no network, no such split: of whatever client lies below
        said = one_line(error, 300)
        raise SettingError(
            f"dataset.hub={repository!r}: cannot be fetched ({type(error).__name__}: {said}); dataset.config and "
            "dataset.split name a part of it; connect to the hub once, or download it and set dataset.path to a file "
            "with the same columns."
        ) from error
    rows = plain_rows(loaded) if hasattr(loaded, "with_format") else [dict(row) for row in loaded]
    if not rows:
        raise SettingError(f"dataset.hub={repository!r}: the data set is empty.")
    return rows


def _is_id(text: str) -> bool:
    return re.fullmatch(r"[\w.-]+/[\w.-]+", text) is not None


# ---- folders -------------------------------------------------------------------------------------------------------

READERS: dict[str, Callable[[Path, str], list[Record]]] = {}
"""By the ending of a file's name; filled in below."""


def _folder(path: Path, setting: str, split: str | None) -> list[Record]:
    if (
        (path / "dataset_dict.json").is_file()
        or (path / "state.json").is_file()
        or (path / "dataset_info.json").exists()
    ):
        return load_rows(path, setting, split)
    found = [file for file in sorted(path.rglob("*")) if file.is_file() and _reader(file) and not _hidden(file, path)]
    shards = [file for file in found if _reader(file) is not None]
    if not shards:
        raise SettingError(
            f"{setting}={path}: is neither a folder that `datasets` has written nor one of "
            f"{', '.join(sorted(READERS))} files."
        )
    endings = sorted({_ending(file) for file in shards})
    if len(endings) > 1:
        raise SettingError(f"{setting}={path}: holds files of several kinds ({', '.join(endings)}); name one of them.")
    parts: dict[str, list[Path]] = {}
    for file in shards:
        parts.setdefault(_split_of(file, path), []).append(file)
    if split is None and len(parts) > 1:
        raise SettingError(
            f"{setting}={path}: has the splits {', '.join(sorted(parts))}; choose one with dataset.split=…"
        )
    if split is not None and split not in parts:
        raise SettingError(f"dataset.split={split}: {path} has {', '.join(sorted(parts))}.")
    chosen = parts[split] if split is not None else next(iter(parts.values()))
    _check_whole(chosen, path, setting)
    return [row for file in chosen for row in _file(file, setting)]


def _check_whole(shards: Sequence[Path], folder: Path, setting: str) -> None:
    """Refuse a part of a set: `train-00000-of-00002` without its second shard."""
    for total in {found[1] for file in shards if (found := re.search(r"-\d+-of-(\d+)", file.name))}:
        there = sum(f"-of-{total}" in file.name for file in shards)
        if there < int(total):
            raise SettingError(f"{setting}={folder}: holds {there} of {int(total)} shards; fetch the others.")


def _hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith((".", "_")) for part in file.relative_to(folder).parts)


def _split_of(file: Path, folder: Path) -> str:
    """`train` of `data/train-00000-of-00002.parquet`, of `train/0001.parquet`, of `train.jsonl`; else "train"."""
    shard = re.fullmatch(r"(.+?)-\d+-of-\d+(-[0-9a-f]+)?", file.name.removesuffix(_ending(file)))
    if shard:
        return shard[1]
    known = re.compile(r"(train|test|validation|valid|val|dev|eval)(_\w+)?")
    for name in (file.name.removesuffix(_ending(file)), *reversed(file.relative_to(folder).parts[:-1])):
        if known.fullmatch(name):
            return name
    return "train"


# ---- files ---------------------------------------------------------------------------------------------------------


def _ending(file: Path) -> str:
    name = file.name.lower()
    return next((e for e in sorted(READERS, key=len, reverse=True) if name.endswith(e)), "")


def _reader(file: Path) -> Callable[[Path, str], list[Record]] | None:
    return READERS.get(_ending(file))


def _file(path: Path, setting: str) -> list[Record]:
    with path.open("rb") as file:
        head = file.read(4)
    if head[:4] == b"PAR1":
        return _parquet(path, setting)
    reader = _reader(path)
    if head.startswith(ARCHIVES):
        raise SettingError(f"{setting}={path}: is an archive; unpack it, and name the file inside.")
    return (reader or _json)(path, setting)


def _open(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"  # whatever its name says
    return gzip.open(path, "rb") if packed else path.open("rb")  # type: ignore[return-value]


def _encoding(head: bytes) -> str:
    """By its first bytes: UTF-8, or UTF-16 and UTF-32 with or without a byte order mark."""
    return json.detect_encoding(head) if head else "utf-8"


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number, line), never a line beyond the limit in memory."""
    try:
        with _open(path) as raw:
            encoding = _encoding(raw.read(4))
            raw.seek(0)
            if encoding in ("utf-8", "utf-8-sig"):
                yield from _utf8_lines(raw, path)
                return
            text = io.TextIOWrapper(raw, encoding, newline="\n")
            number = 0
            while line := text.readline(ROW_LIMIT + 1):
                number += 1
                _check_length(len(line), path, number)
                yield number, line.removeprefix("\ufeff")
    except UnicodeError as error:
        raise SettingError(f"{path.name}: not {encoding.upper()}; {REENCODE}") from error
    except (gzip.BadGzipFile, EOFError) as error:
        raise SettingError(f"{path.name}: is no whole gzip file ({error}); fetch it again, or unpack it.") from error


REENCODE = "save it as UTF-8, for example: iconv -f latin1 -t utf-8 FILE > NEW"


def _utf8_lines(raw: IO[bytes], path: Path) -> Iterator[tuple[int, str]]:
    number = 0
    while line := raw.readline(ROW_LIMIT + 1):
        number += 1
        _check_length(len(line), path, number)
        try:
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise SettingError(f"{path.name}, line {number}: not UTF-8; {REENCODE}") from error


def _check_length(length: int, path: Path, number: int) -> None:
    if length > ROW_LIMIT:
        raise SettingError(
            f"{path.name}, line {number}: is longer than {ROW_LIMIT // 2**20} MB, more than any row may take; shorten "
            "or remove it."
        )


def _json(path: Path, setting: str) -> list[Record]:
    """One object a line, or one array of objects over as many lines as it likes."""
    with _open(path) as raw:
        try:
            head = raw.read(4096)
        except (gzip.BadGzipFile, EOFError) as error:
            raise SettingError(f"{path.name}: is no whole gzip file ({error}); fetch it again.") from error
    start = head.decode(_encoding(head[:4]), errors="ignore").removeprefix("\ufeff").lstrip()
    if start.startswith("[") and _is_array(path):
        return list(_array(path))
    return list(_objects(path))


def _is_array(path: Path) -> bool:
    """Whether the first line is no array by itself: JSON lines may hold arrays, which are refused by their line."""
    first = next((line for _, line in _unlimited(path) if line.strip()), "")
    try:
        return not isinstance(parsed := json.loads(first), list) or all(isinstance(e, dict) for e in parsed)
    except (ValueError, RecursionError):
        return True


def _unlimited(path: Path) -> Iterator[tuple[int, str]]:
    with _open(path) as raw:
        encoding = _encoding(raw.read(4))
        raw.seek(0)
        text = io.TextIOWrapper(raw, encoding, newline="\n", errors="replace")
        yield from enumerate(text, 1)


def _array(path: Path) -> Iterable[Record]:
    with _open(path) as raw:
        content = raw.read()
    try:
        rows = _parsed(content.decode(_encoding(content[:4])).removeprefix("\ufeff"), path.name)
    except UnicodeDecodeError as error:
        raise SettingError(f"{path.name}: not UTF-8; {REENCODE}") from error
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise SettingError(f"{path.name}, row {number}: a row must be a JSON object.")
        yield row


def _objects(path: Path) -> Iterable[Record]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        row = _parsed(line, f"{path.name}, line {number}")
        if not isinstance(row, dict):
            raise SettingError(f"{path.name}, line {number}: a row must be a JSON object.")
        yield row


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise SettingError(
            f"{where}: not valid JSON ({error.msg}); write one object a line, or one array of objects."
        ) from error
    except RecursionError as error:
        raise SettingError(f"{where}: is nested too deeply to be a row; remove or repair it.") from error
    except ValueError as error:  # an integer of more than 4,300 digits
        raise SettingError(f"{where}: holds a number that is too long to be one; write it as a text.") from error


def _csv(path: Path, setting: str) -> list[Record]:
    """A first line of column names; separated by commas, semicolons or tabs, whichever the first line has most of."""
    csv.field_size_limit(ROW_LIMIT)
    lines = (line for _, line in _lines(path))
    first = next(lines, "")
    separator = max(",;\t", key=first.count)
    table = csv.reader(_chain(first, lines), delimiter=separator, strict=True)
    rows: list[Record] = []
    try:
        names = next(table, [])
        if len(set(names)) != len(names):
            raise SettingError(f"{path.name}: two columns have one name; rename one.")
        for number, cells in enumerate(table, 1):
            if not cells:
                continue
            if len(cells) != len(names):
                raise SettingError(
                    f"{path.name}, row {number}: has {len(cells)} cells where the first line names {len(names)} "
                    'columns; put a text with commas, quotes or line ends in "quotes".'
                )
            rows.append(dict(zip(names, cells, strict=True)))
    except csv.Error as error:
        raise SettingError(
            f'{path.name}, line {table.line_num}: {error}; a quote inside a text is written "".'
        ) from error
    return rows


def _chain(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _parquet(path: Path, setting: str) -> list[Record]:
    try:
        return plain_rows(pyarrow.parquet.ParquetFile(path))
    except (OSError, pyarrow.ArrowException, ValueError) as error:
        said = one_line(error, 120)
        raise SettingError(f"{setting}={path}: is no whole Parquet file ({said}); fetch or write it again.") from error


for _name in (".jsonl", ".ndjson", ".json", ".jsonl.gz", ".json.gz"):
    READERS[_name] = _json
for _name in (".csv", ".tsv", ".csv.gz", ".tsv.gz"):
    READERS[_name] = _csv
READERS[".parquet"] = _parquet
