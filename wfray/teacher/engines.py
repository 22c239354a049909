"""The engine and the service that a configuration names."""

from pathlib import Path

from wfray.config.teacher import TeacherConfig
from wfray.quant.precision import resolved
from wfray.teacher.cache import SignalStore
from wfray.teacher.engine import Engine
from wfray.teacher.meter import Meter
from wfray.teacher.service import TeacherService
from wfray.teacher.sglang_engine import SGLangEngine
from wfray.teacher.transformers_engine import TransformersEngine
from wfray.teacher.vllm_engine import VLLMEngine


def make_engine(config: TeacherConfig, directory: Path) -> Engine:
    """Load the model in `directory`.

    Raises:
        ValueError: the engine is not where the configuration says, or cannot load the model.
    """
    dtype = resolved(config.dtype)
    if config.engine == "transformers":
        return TransformersEngine(directory, dtype)
    server = VLLMEngine if config.engine == "vllm" else SGLangEngine
    return server(directory, dtype, Path(str(config.python)), config.threads or 1, config.engine_arguments)


def make_service(config: TeacherConfig, directory: Path) -> TeacherService:
    """A teacher at work; every promised wire was given once.

    Raises:
        ValueError: see `make_engine`; a wire cannot be given; the cache cannot be opened.
    """
    engine, meter = make_engine(config, directory), Meter()
    engine.fingerprint = engine.fingerprint.model_copy(update={"source_sha256": config.source_sha256})
    store = SignalStore(config.cache, engine.fingerprint.digest, meter) if config.cache else None
    service = TeacherService(engine, meter, config.batch_tokens, store)
    service.probe(config.wires)
    return service
