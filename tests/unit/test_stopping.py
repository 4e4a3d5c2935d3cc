"""Being asked to stop: every worker keeps what it has."""

import os
import signal
import time
from pathlib import Path
from typing import Any

from joblib.externals.loky import get_reusable_executor

from sysdpo.runs.stopping import end_workers


def keeps_on_sigterm(folder: Path, seconds: float) -> None:
    """A job that needs a while, once it is asked to stop, until it has kept its state."""

    def keep(*_: Any) -> None:
        time.sleep(seconds)
        (folder / f"kept {seconds}").touch()
        os._exit(143)

    signal.signal(signal.SIGTERM, keep)
    (folder / f"started {seconds}").touch()
    time.sleep(60)


def test_the_first_worker_to_end_does_not_take_the_others_with_it(tmp_path: Path) -> None:
    executor = get_reusable_executor(max_workers=2)
    jobs = [executor.submit(keeps_on_sigterm, tmp_path, seconds) for seconds in (0.0, 2.0)]
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("started *"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    end_workers()
    assert {file.name for file in tmp_path.glob("kept *")} == {"kept 0.0", "kept 2.0"}
    executor.shutdown(wait=True, kill_workers=True)
    assert all(job.done() for job in jobs)
