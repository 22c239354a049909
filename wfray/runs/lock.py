"""One writer of a directory at a time: an advisory lock that ends with the process that holds it, however that process ends.

Whoever finds it held waits a while: what was started by something that was killed may take its time to notice and to end.
"""

import errno
import fcntl
import time
from pathlib import Path
from typing import IO

LOCK = ".lock"
WAIT_SECONDS, POLL_SECONDS = 90.0, 0.2
"""A driver whose Ray is gone looks for it for a minute."""
WITHOUT_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}
"""What mounted object stores answer: there, that only one writes is up to the user."""


def lock(directory: Path, wait_seconds: float | None = None, name: str = LOCK) -> IO[bytes]:
    """Lock `directory`, or with another `name` some part of it, until the returned file is closed.

    Raises:
        ValueError: another process holds it, and still does after `wait_seconds` (`WAIT_SECONDS` unless given).
    """
    wait_seconds = WAIT_SECONDS if wait_seconds is None else wait_seconds
    file, deadline = (directory / name).open("wb"), time.monotonic() + wait_seconds
    if not locked(file):
        print(f"{str(directory)!r} is being written by another process: waiting up to {wait_seconds:.0f} s for its end", flush=True)
    while not locked(file):
        if time.monotonic() > deadline:
            file.close()
            raise ValueError(
                f"{str(directory)!r} is being written by another process: wait for it or end it, or give this one another `run` or `stage`"
            )
        time.sleep(POLL_SECONDS)
    return file


def locked(file: IO[bytes]) -> bool:
    """Whether the lock is ours now."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise
    return True
