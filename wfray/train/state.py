"""The training state that stands in a checkpoint beside the tensors: what a resumed run needs to go on to the bit.

Step, tokens and the stream's cursor are in `checkpoints.Progress`, which holds this; weights, moments and the weights' average are
tensors of the checkpoint. Everything here is plain data: JSON keeps floats exactly and random states as base64.
"""

import random
from typing import Self, cast

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from wfray.train.clipping import ClippingState
from wfray.train.stopping import StoppingState


class RandomState(BaseModel):
    """The generators of one worker: Python's, numpy's, torch's and, where there is one, the GPU's."""

    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")

    python: bytes
    python_gauss: float | None
    numpy: bytes
    numpy_rest: tuple[int, int, float]
    torch_cpu: bytes
    torch_cuda: bytes | None

    @classmethod
    def capture(cls) -> Self:
        """The generators as they stand."""
        _, words, python_gauss = random.getstate()
        _, keys, *numpy_rest = cast(tuple, np.random.get_state(legacy=True))
        return cls(
            python=np.array(words, dtype="<u4").tobytes(),
            python_gauss=python_gauss,
            numpy=np.asarray(keys, dtype="<u4").tobytes(),
            numpy_rest=cast(tuple[int, int, float], tuple(numpy_rest)),
            torch_cpu=torch.get_rng_state().numpy().tobytes(),
            torch_cuda=torch.cuda.get_rng_state().numpy().tobytes() if torch.cuda.is_available() else None,
        )

    def restore(self) -> None:
        """Set the generators back to this."""
        random.setstate((3, tuple(np.frombuffer(self.python, dtype="<u4").tolist()), self.python_gauss))
        np.random.set_state(("MT19937", np.frombuffer(self.numpy, dtype="<u4"), *self.numpy_rest))
        torch.set_rng_state(torch.tensor(list(self.torch_cpu), dtype=torch.uint8))
        if self.torch_cuda is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(torch.tensor(list(self.torch_cuda), dtype=torch.uint8))


class TrainingState(BaseModel):
    """What the loop remembers from step to step."""

    num_refused: int = 0
    """Steps in a row that were refused because loss or gradient was not finite."""
    clipping: ClippingState = ClippingState()
    stopping: StoppingState = StoppingState()
    random: list[RandomState] = []
    """Of each worker, by rank. Another number of workers starts from the seed instead."""
