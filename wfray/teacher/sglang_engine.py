"""sglang as an engine: its server gives the hidden states of a prompt beside one generated token, which is thrown away.

They are JSON numbers: ten times the bytes of bfloat16 on loopback, so this engine is for those who serve with sglang already. The radix
cache is off, since a prompt must give all of its states.
"""

import torch
from torch import Tensor

from wfray.teacher.server_engine import ServerEngine


class SGLangEngine(ServerEngine):
    """See `ServerEngine`."""

    name = "sglang"
    distribution = "sglang"

    def command(self, port: str) -> list[str]:
        """See `ServerEngine.command`."""
        on_cpu = ["--device", "cpu", "--attention-backend", "torch_native", "--sampling-backend", "pytorch", "--mem-fraction-static", "0.3"]
        return [
            *("-m", "sglang.launch_server", "--model-path", str(self.directory), "--served-model-name", "teacher"),
            *("--host", "127.0.0.1", "--port", port, "--dtype", self.dtype, "--enable-return-hidden-states"),
            *("--disable-radix-cache", "--disable-overlap-schedule", "--disable-cuda-graph", "--skip-server-warmup"),
            *([] if torch.cuda.is_available() else on_cpu),
        ]

    def environment(self) -> dict[str, str]:
        """See `ServerEngine.environment`."""
        on_cpu = {} if torch.cuda.is_available() else {"SGLANG_USE_CPU_ENGINE": "1"}
        return {**on_cpu, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(self.threads)}

    def hidden(self, documents: list[list[int]]) -> Tensor:
        """See `ServerEngine.hidden`."""
        body = {"input_ids": documents, "sampling_params": {"max_new_tokens": 1, "temperature": 0}, "return_hidden_states": True}
        answers = self.post("/generate", body).json()
        return torch.cat([torch.tensor(answer["meta_info"]["hidden_states"][0]) for answer in answers])
