"""The models of one replica by name, each behind a gate; replaced while requests come.

A model whose settings or file have changed is loaded beside the one that answers, takes over, and the old one finishes what it has begun.
When one of the new models cannot be loaded, everything stays as it was.
"""

import asyncio
from pathlib import Path

from pydantic import BaseModel

from wfray.config.serve import ServeConfig, ServedModel
from wfray.serving.engines import make_backend
from wfray.serving.gate import Gate
from wfray.serving.meter import Figures, Meter


class Hosting(BaseModel):
    """What a replica is to serve."""

    config: ServeConfig
    files: dict[str, str]
    """The file or directory of each model."""
    versions: dict[str, str]
    """Something that changes with the content of each of these."""

    def identity(self, model: ServedModel) -> str:
        """Changes when the model must be loaded again."""
        timing = (self.config.flush_seconds, self.config.stall_seconds, self.config.max_queued, self.config.deadline_seconds)
        return repr((model, self.files[model.name], self.versions[model.name], timing))


class Host:
    """See the module docstring."""

    def __init__(self) -> None:
        self.figures = Figures()
        self.gates: dict[str, Gate] = {}
        self.identities: dict[str, str] = {}
        self.draining: set[asyncio.Task[None]] = set()

    async def apply(self, hosting: Hosting) -> None:
        """Serve what `hosting` says.

        Raises:
            ValueError: a model cannot be loaded.
        """
        wanted = {model.name: hosting.identity(model) for model in hosting.config.models}
        changed = [model for model in hosting.config.models if self.identities.get(model.name) != wanted[model.name]]
        fresh: dict[str, Gate] = {}
        try:
            for model in changed:
                fresh[model.name] = await self.load(model, hosting)
        except BaseException:
            await asyncio.gather(*(gate.backend.close() for gate in fresh.values()))
            raise
        old = {name: gate for name, gate in self.gates.items() if name in fresh or name not in wanted}
        gates = {name: fresh.get(name) or self.gates[name] for name in wanted}
        self.gates.clear()
        self.gates.update(gates)
        self.identities = wanted
        for gate in old.values():
            self.drain(gate, hosting.config.drain_seconds)

    async def load(self, model: ServedModel, hosting: Hosting) -> Gate:
        """A started model behind its gate."""
        config = hosting.config
        backend = make_backend(model, Path(hosting.files[model.name]), config)
        await backend.start()
        return Gate(backend, config.max_queued, config.deadline_seconds, Meter(self.figures, model.name))

    def drain(self, gate: Gate, seconds: float) -> None:
        """Close a gate's backend when it has finished what it has begun, or after `seconds`."""

        async def finish() -> None:
            try:
                await asyncio.wait_for(gate.idle.wait(), seconds)
            except TimeoutError:
                pass  # What is still under way is lost, as `drain_seconds` says.
            await gate.backend.close()

        task = asyncio.create_task(finish())
        self.draining.add(task)
        task.add_done_callback(self.draining.discard)

    def check_health(self) -> None:
        """Raise `RuntimeError` when a model is beyond help."""
        for gate in self.gates.values():
            gate.backend.check_health()

    async def close(self) -> None:
        """End every process."""
        await asyncio.gather(*(gate.backend.close() for gate in self.gates.values()))
        for task in self.draining:
            task.cancel()
