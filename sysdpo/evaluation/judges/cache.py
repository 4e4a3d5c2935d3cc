"""Paid answers, kept on disk: one small file per annotation, so that none is ever asked for twice."""

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sysdpo.errors import SettingError
from sysdpo.runs.files import explained, remove, write_bytes

logger = logging.getLogger(__name__)

ROOM = 8192
"""Bytes that an answer may take: five tokens, a name and a bill."""


class AnnotationCache:
    """A folder of JSON files named by the SHA-256 of the request they answer.

    A file appears under its name only when it is whole and on the disk. Killing a run at any moment therefore
    loses only the answers still on their way, and several runs may share the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def prepare(self) -> None:
        """Make the folder; better to fail here than with the first paid answer in hand."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            writable = os.access(self.folder, os.W_OK)
        except OSError:
            writable = False
        if not writable:
            raise SettingError(f"judge.cache_dir: cannot write to {self.folder}; choose another folder.")

    @staticmethod
    def key(request: Mapping[str, Any]) -> str:
        """The request's name: equal for equal content, whatever the order of its fields."""
        canonical = json.dumps(request, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def get(self, key: str) -> dict[str, Any] | None:
        """The stored answer, or None; a file that is damaged, or of another request, is said and counts as absent."""
        path = self._path(key)
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            answer, request = stored["answer"], stored["request"]
            if not isinstance(answer, dict) or self.key(request) != key:
                raise ValueError("of another request")
            return answer
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, TypeError, KeyError, OSError, RecursionError):
            logger.warning("judge cache: %s is damaged; asking for this annotation again.", path)
            return None

    def reserve(self, request: Mapping[str, Any]) -> None:
        """Keep room on the disk for an answer, before it is paid for.

        Raises:
            SettingError: there is none.
        """
        path = self._reserved(self.key(request))
        content = json.dumps({"request": request, "answer": None}).encode()
        with explained(self.folder):
            try:
                for place in (self._path(path.name), path):
                    place.parent.mkdir(parents=True, exist_ok=True)
                with path.open("wb") as file:
                    file.write(content + b" " * ROOM)
                    file.flush()
                    os.fsync(file.fileno())
            except BaseException:
                remove(path)
                raise

    def put(self, request: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
        """Store an answer beside its request, which makes the folder readable by a person."""
        key = self.key(request)
        content = json.dumps({"request": request, "answer": answer}).encode()
        reserved = self._reserved(key)
        if not reserved.exists() or reserved.stat().st_size < len(content):
            write_bytes(self._path(key), content)
            return
        with reserved.open("r+b") as file:  # over what is there: it needs no further room
            file.write(content)
            file.truncate()
            file.flush()
            os.fsync(file.fileno())  # without it a power cut can leave the new name on an empty file
        os.replace(reserved, self._path(key))

    def release(self, keys: Iterable[str]) -> None:
        """Give back the room that was kept for answers that did not come."""
        for key in keys:
            remove(self._reserved(key))
        with contextlib.suppress(OSError):  # another run's answers may be on their way
            self._reserved("").parent.rmdir()

    def _reserved(self, key: str) -> Path:
        """Beside the cache, or in it where that is a disk of its own: what a killed run leaves there is no answer."""
        beside = self.folder.with_name(f".{self.folder.name}.reserved")
        same = self.folder.exists() and self.folder.stat().st_dev == self.folder.parent.stat().st_dev
        return (beside if same else self.folder / ".reserved") / key

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"
