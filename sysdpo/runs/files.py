"""Files that are whole or absent, whenever their writer dies: written beside their place, flushed, checked, renamed.

Whatever a command leaves behind goes through here: metrics, samples, checkpoints, adapters, data sets, reports. A
folder may carry `SHA256SUMS` (the format of coreutils: `sha256sum -c` reads it), by which a truncated, swapped or
missing file is found when the folder is read again.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import socket
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sysdpo.errors import SettingError

SUMS = "SHA256SUMS"
NO_PLACE = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
)
"""Why a file cannot be written although the code is right."""
TORCH_WRITER = re.compile(r"PytorchStreamWriter|inline_container|unexpected pos")
NUMBERED = re.compile(r"\(os error (\d+)\)|\[errno (\d+)\]", re.IGNORECASE)  # safetensors', pyarrow's


def no_place(error: BaseException) -> tuple[str, str | None] | None:
    """(why, file if known) where an exception means that something could not be written; None for any other.

    A write that finds no room has no file name; safetensors, pyarrow and torch raise errors of their own.
    """
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, OSError) and cause.errno in NO_PLACE:
            return cause.strerror or os.strerror(cause.errno), cause.filename
        text = str(cause)
        for found in NUMBERED.finditer(text):
            number = int(found[1] or found[2])
            if number in NO_PLACE:
                return os.strerror(number), None
        if isinstance(cause, RuntimeError) and TORCH_WRITER.search(text):
            return "the disk did not take all of it", None
        cause = cause.__cause__ or cause.__context__
    return None


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn whatever a library raises for want of room or rights into one line that names the file."""
    try:
        yield
    except SettingError:
        raise
    except Exception as error:
        if (why := no_place(error)) is None:
            raise
        raise SettingError(
            f"{path}: {why[0]}; make room or get the right to write, or set outputs=… elsewhere. What was saved is "
            "intact: the same command goes on."
        ) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A fresh place beside `path`, for a file or a folder, that takes its name once the block has ended well.

    Raises:
        SettingError: no room, or no right to write; what was at `path` before is still there.
    """
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = _beside(path)
        try:
            yield fresh
            flush(fresh)
            if fresh.is_dir():
                shutil.rmtree(path, ignore_errors=True)
                os.rename(fresh, path)
            else:
                os.replace(fresh, path)
            _sync(path.parent)
        except BaseException:
            remove(fresh)
            raise


def _beside(path: Path) -> Path:
    """A name that is this process's own; what a killed one of this machine left there is removed."""
    host = re.sub(r"\W", "", socket.gethostname())[:32]
    start = f".{path.name[:120]}.{host}-"
    for stale in path.parent.glob(f"{_literal(start)}*.partial"):
        number = stale.name.removeprefix(start).removesuffix(".partial")
        if number.isdigit() and (int(number) == os.getpid() or not Path(f"/proc/{number}").exists()):
            remove(stale)
    return path.with_name(f"{start}{os.getpid()}.partial")


def _literal(text: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", text)


def remove(path: Path) -> None:
    """A file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def flush(path: Path) -> None:
    """Have a file, or every file of a folder, put on the disk: before that, a new name may stand on nothing."""
    for file in [path, *path.rglob("*")] if path.is_dir() else [path]:
        if not file.is_symlink():
            _sync(file)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems cannot for a folder
            raise
    finally:
        os.close(handle)


def write_bytes(path: Path, content: bytes) -> None:
    with replacing(path) as fresh:
        fresh.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8", "replace"))  # a lone surrogate has no bytes


def write_between(path: Path, begin: str, end: str, text: str) -> None:
    """Put a text between two marks of a page, in place of what stands there."""
    before, rest = path.read_text(encoding="utf-8").split(begin)
    after = rest.split(end)[1]
    write_text(path, f"{before}{begin}\n\n{text}\n\n{end}{after}")


def write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def append_line(path: Path, row: Any) -> None:
    """One line more; a torn one, of a writer that died or found no room, does not count when the file is read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with explained(path), path.open("ab", buffering=0) as file:
        line = (json.dumps(row) + "\n").encode()
        while line:  # a disk that is nearly full takes a part first, then refuses
            line = line[file.write(line) :]


# ---- checksums ---------------------------------------------------------------------------------------------------


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_sums(folder: Path, names: Iterable[str] | None = None) -> None:
    """`SHA256SUMS` of these files, relative to the folder; None: of all that are there."""
    if names is None:
        names = [str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file() and f.name != SUMS]
    lines = [f"{sha256(folder / name)}  {name}\n" for name in sorted(names)]
    write_text(folder / SUMS, "".join(lines) + f"# {len(lines)} files\n")


def damage(folder: Path, skip: tuple[str, ...] = ()) -> str | None:
    """What of the folder is not as `write_sums` found it, in words; None if all is.

    Args:
        skip: files with such an ending are not read.
    """
    sums = read_sums(folder)
    if sums is None:
        return f"{SUMS} is missing or damaged"
    for name, expected in sums.items():
        if name.endswith(skip):
            continue
        try:
            found = sha256(folder / name)
        except OSError:
            return f"{name} is missing or cannot be read"
        if found != expected:
            return f"{name} is not what was written"
    return None


def changed(folder: Path) -> str | None:
    """As `damage`, but files that are older than their checksums, and not empty, are not read: for large weights."""
    sums = read_sums(folder)
    if sums is None:
        return f"{SUMS} is missing or damaged"
    written = (folder / SUMS).stat().st_mtime_ns
    for name in sums:
        try:
            state = (folder / name).stat()
        except OSError:
            return f"{name} is missing or cannot be read"
        if state.st_size == 0:
            return f"{name} is empty"
        if state.st_mtime_ns > written:
            return damage(folder)
    return None


def read_sums(folder: Path) -> dict[str, str] | None:
    """Name -> checksum; None without the file, or where it is not whole."""
    try:
        *lines, last = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return None
    parts = [re.fullmatch(r"([0-9a-f]{64})  (.+)", line) for line in lines]
    if last != f"# {len(lines)} files" or not all(parts):
        return None
    sums = {part[2]: part[1] for part in parts if part is not None}
    return None if any(os.path.isabs(name) or ".." in Path(name).parts for name in sums) else sums


def write_summed(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """JSON lines, and beside them `<name>.sha256`, without which they do not count."""
    remove(_sum_of(path))
    write_jsonl(path, rows)
    write_text(_sum_of(path), f"{sha256(path)}  {path.name}\n")


def is_summed(path: Path) -> bool:
    """Whether a file is there as `write_summed` wrote it."""
    try:
        return _sum_of(path).read_text(encoding="utf-8") == f"{sha256(path)}  {path.name}\n"
    except (OSError, ValueError):
        return False


def _sum_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


# ---- work that is kept row by row --------------------------------------------------------------------------------


def append_rows(path: Path, rows: Iterable[dict[str, Any]], first: int) -> None:
    """Keep rows `first`, `first + 1`, … of a work under way; `read_rows` finds those that are whole."""
    for number, row in enumerate(rows, first):
        text = json.dumps(row)
        append_line(path, {"row": number, "crc": zlib.crc32(text.encode()), "content": text})


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows up to the first that is torn, altered or out of its place; what follows it is cut off."""
    content = path.read_bytes() if path.exists() else b""
    rows: list[dict[str, Any]] = []
    whole = 0
    for line in content.split(b"\n")[:-1]:
        try:
            kept = json.loads(line)
            text = kept["content"]
            if kept["row"] != len(rows) or kept["crc"] != zlib.crc32(text.encode()):
                break
            rows.append(json.loads(text))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            break
        whole += len(line) + 1
    if whole != len(content):
        write_bytes(path, content[:whole])
    return rows
