"""Which engine makes a model's answers, and with what arguments.

An engine of another room is one more name in `CLASSES`: the import path of a callable that makes an `Engine`, which a process of its own
imports. A server that speaks OpenAI's API by itself is one more function in `wfray.serving.servers`.
"""

from pathlib import Path

from wfray.config.serve import ServeConfig, ServedModel
from wfray.serving.backend import Backend
from wfray.serving.engine_process import EngineProcess
from wfray.serving.server_process import ServerProcess
from wfray.serving.servers import SERVERS
from wfray.serving.supervised import Life, SupervisedBackend
from wfray.serving.wire import Arguments, Launch

CLASSES = {
    "llama_cpp": "wfray.serving.llama_cpp_engine:LlamaCppEngine",
    "transformers": "wfray.serving.transformers_engine:TransformersEngine",
    "diffusion": "wfray.serving.diffusion_engine:DiffusionEngine",
}


def make_backend(model: ServedModel, file: Path, config: ServeConfig) -> Backend:
    """The backend of a model, not started yet; `file` is its file or directory."""

    async def begin() -> Life:
        if model.engine in SERVERS:
            return await ServerProcess.start(SERVERS[model.engine](model, file), model.slots)
        arguments: Arguments = {"trust_remote_code": True} if model.trust_remote_code else {}
        arguments |= {"file": str(file), "context": model.context, "slots": model.slots, "threads": model.threads}
        return await EngineProcess.start(Launch(engine=CLASSES[model.engine], arguments=arguments), config.flush_seconds)

    return SupervisedBackend(begin, config.stall_seconds)
