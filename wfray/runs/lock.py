"""One writer of a directory at a time: an advisory lock that ends with the process that holds it, however that process ends."""

import errno
import fcntl
from pathlib import Path
from typing import IO

LOCK = ".lock"
WITHOUT_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}
"""What mounted object stores answer: there, that only one writes is up to the user."""


def lock(directory: Path) -> IO[bytes]:
    """Lock `directory` until the returned file is closed.

    Raises:
        ValueError: another process holds it.
    """
    file = (directory / LOCK).open("wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ValueError(
            f"{str(directory)!r} is being written by another process: wait for it or end it, or give this one another `run` or `stage`"
        ) from None
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise
    return file
