"""The processes of a served application, found while others come and go: other tests on this machine end engines of their own."""

from collections.abc import Iterator
from contextlib import suppress

import psutil


def engines_of(application: str) -> list[psutil.Process]:
    """The processes of the engines of its replicas."""
    return [engine for engine, _ in engines_and_replicas(application)]


def replicas_of(application: str) -> list[psutil.Process]:
    """The processes of its replicas that have an engine, once for each."""
    return [replica for _, replica in engines_and_replicas(application)]


def engines_and_replicas(application: str) -> Iterator[tuple[psutil.Process, psutil.Process]]:
    """Every engine with the replica that started it; what ends meanwhile is left out."""
    for process in psutil.process_iter(["cmdline"]):
        if "wfray.serving.process" not in (process.info["cmdline"] or []):
            continue
        with suppress(psutil.NoSuchProcess):
            if (parent := process.parent()) and f":{application}:" in " ".join(parent.cmdline()):
                yield process, parent
