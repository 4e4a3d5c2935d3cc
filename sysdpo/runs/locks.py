"""Locks that the system frees when their holder is killed, and that outlast the deletion of their file."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from sysdpo.errors import SettingError
from sysdpo.runs.files import explained

NO_FOLDER_LOCKS = (errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What network file systems say that cannot lock a folder; the lock file still counts there."""


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:  # below /proc and its like
        raise SettingError(f"{folder}: the system makes no folders there; set outputs=… elsewhere.") from error


class Busy(Exception):
    """Another process has the lock."""


@contextmanager
def lock_file(path: Path, wait: bool) -> Iterator[None]:
    """Hold `.<name>.lock` beside `path`.

    Raises:
        Busy: another process has it and `wait` is False.
    """
    with explained(path):
        _make(path.parent)
        lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=-1 if wait else 0)
        try:
            lock.acquire()
        except Timeout:
            raise Busy(str(path)) from None
    try:
        yield
    finally:
        lock.release()


class FolderLock:
    """A lock on the folder itself: who deletes the lock file beside it has not freed it."""

    def __init__(self) -> None:
        self._handle: int | None = None

    @property
    def is_taken(self) -> bool:
        return self._handle is not None

    def take(self, folder: Path, wait: bool = False) -> None:
        """Make the folder if need be and hold it; the one held before is let go.

        Raises:
            Busy: another process has it and `wait` is False.
        """
        with explained(folder):
            _make(folder)
            handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if error.errno in NO_FOLDER_LOCKS:
                pass
            else:
                os.close(handle)
                if error.errno in (errno.EAGAIN, errno.EACCES):
                    raise Busy(str(folder)) from None
                raise
        self.free()
        self._handle = handle

    def free(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
