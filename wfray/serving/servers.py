"""Engines that are servers by themselves: how each is started on loopback, and what it cannot do.

| engine | environment | cannot |
|---|---|---|
| vllm | its own Python environment | on CPUs: seeds together with chunked prefill, so its prompts are read whole |
| sglang | its own Python environment | seeds without --enable-deterministic-inference, which no CPU has; on CPUs: prefix reuse |
| bitnet_cpp | a folder with its llama-server | log-probabilities, echo (see `wfray.serving.llama_server`) |

Behind vllm and sglang a completion (not a chat) must say `max_tokens`: they take 16 where none or null is sent. None of the servers is
fetched or built by the project. Sampling is what a request says: a model's own defaults (top_k and the like, in its
generation_config.json) are switched off.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from wfray.config.serve import ServedModel
from wfray.serving.dialects import Dialect
from wfray.serving.directories import refuse_student
from wfray.serving.llama_server import LlamaServerDialect
from wfray.serving.openai_pieces import SERVED_AS, OpenAIDialect

SGLANG_ON_CPU = ["--device", "cpu", "--attention-backend", "torch_native", "--sampling-backend", "pytorch", "--mem-fraction-static", "0.3"]
SGLANG_ON_CPU += ["--disable-overlap-schedule", "--disable-radix-cache", "--disable-cuda-graph"]

SEEDED = "--enable-deterministic-inference"


@dataclass(frozen=True)
class ServerLaunch:
    """How to start a server."""

    command: list[str]
    """Without the port, which is appended as `--port N`."""
    environment: dict[str, str] = field(default_factory=dict)
    dialect: Dialect = field(default_factory=OpenAIDialect)


def on_cpu() -> bool:
    """Whether there is no NVIDIA driver; asking torch would load it into the replica."""
    return not Path("/dev/nvidiactl").exists()


def vllm(model: ServedModel, file: Path) -> ServerLaunch:
    """vLLM's OpenAI server; whole prompts in one pass, since seeds and chunked prefill together end its engine on CPUs."""
    refuse_student(file)
    command = [str(model.python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(file), "--served-model-name", SERVED_AS]
    command += ["--host", "127.0.0.1", "--max-model-len", str(model.context), "--max-num-seqs", str(model.slots)]
    command += ["--enforce-eager"] if on_cpu() else []
    command += ["--max-num-batched-tokens", str(max(model.context, model.slots)), "--no-enable-chunked-prefill", "--max-logprobs", "20"]
    command += ["--generation-config", "vllm"]
    threads = f"0-{model.threads - 1}" if model.threads > 1 else "0"
    environment = {"VLLM_CPU_OMP_THREADS_BIND": threads, "VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    return ServerLaunch([*command, *model.engine_arguments], {**environment, "HF_HUB_OFFLINE": "1"})


def sglang(model: ServedModel, file: Path) -> ServerLaunch:
    """SGLang's server."""
    refuse_student(file)
    command = [str(model.python), "-m", "sglang.launch_server", "--model-path", str(file), "--served-model-name", SERVED_AS]
    command += ["--host", "127.0.0.1", "--context-length", str(model.context), "--max-running-requests", str(model.slots)]
    command += ["--sampling-defaults", "openai", "--skip-server-warmup", *(SGLANG_ON_CPU if on_cpu() else []), *model.engine_arguments]
    environment = {"SGLANG_USE_CPU_ENGINE": "1"} if on_cpu() else {}
    why_no_seeds = None if SEEDED in model.engine_arguments else f"sglang honours seeds only with engine_arguments: [{SEEDED}]"
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(model.threads)}
    return ServerLaunch(command, environment, OpenAIDialect(why_no_seeds))


def bitnet_cpp(model: ServedModel, file: Path) -> ServerLaunch:
    """bitnet.cpp's llama-server; raises `ValueError` where the folder holds none."""
    binary = Path(str(model.binaries)) / "llama-server"
    if not binary.is_file():
        raise ValueError(f"there is no {str(binary)!r}: binaries must be the folder with the programs that bitnet.cpp builds")
    command = [str(binary), "--model", str(file), "--host", "127.0.0.1", "--ctx-size", str(model.context * model.slots)]
    command += ["--parallel", str(model.slots), "--threads", str(model.threads), "--cont-batching"]
    return ServerLaunch([*command, *model.engine_arguments], dialect=LlamaServerDialect(file, model.context))


SERVERS: dict[str, Callable[[ServedModel, Path], ServerLaunch]] = {"vllm": vllm, "sglang": sglang, "bitnet_cpp": bitnet_cpp}
