"""Paid answers, kept on disk: one small file per annotation, so that none is ever asked for twice."""

import contextlib
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sysdpo.errors import SettingError

logger = logging.getLogger(__name__)


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

    def get(self, key: str) -> Any | None:
        """The stored answer, or None; a file that cannot be read is reported and counts as absent."""
        path = self._path(key)
        try:
            return json.loads(path.read_text(encoding="utf-8"))["answer"]
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, TypeError, KeyError):
            logger.warning("judge cache: %s is damaged; asking for this annotation again.", path)
            return None

    def put(self, request: Mapping[str, Any], answer: Any) -> None:
        """Store an answer beside its request, which makes the folder readable by a person."""
        path = self._path(self.key(request))
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=path.parent, suffix=".partial")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump({"request": request, "answer": answer}, file)
                file.flush()
                os.fsync(file.fileno())  # without it a power cut can leave the new name on an empty file
            os.replace(partial, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(partial)
            raise

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"
