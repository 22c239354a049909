"""An object in an actor of its own, used as if it were here.

It is named, not imported: what its module needs, torch and transformers among it, loads where it works and not in the job that
asks, which is up in a fraction of the time.
"""

import pkgutil
from collections.abc import Callable
from typing import Any

import ray

from actors.connection import wait


class Holder:
    """The actor: it makes the object and passes calls on."""

    def __init__(self, name: str, *arguments: Any) -> None:
        self.held = pkgutil.resolve_name(name)(*arguments)

    def call(self, method: str, *arguments: Any) -> Any:
        """`held.method(*arguments)`."""
        return getattr(self.held, method)(*arguments)


class Remote:
    """The job's side: every call waits for its answer, and a `ValueError` there is raised as itself here."""

    def __init__(self, name: str, *arguments: Any, **resources: Any) -> None:
        """Start the actor of `name` (`module:Class`) with `arguments`; `resources` are `num_cpus`, `num_gpus` and `resources`."""
        self._actor: Any = ray.remote(Holder).options(**resources).remote(name, *arguments)

    def __getattr__(self, method: str) -> Callable[..., Any]:
        return lambda *arguments: wait(self._actor.call.remote(method, *arguments))
