"""The noise of block diffusion: which tokens are masked, drawn for each row from the seed and the row's number in the stream.

Per block of a document `t ~ U(0, 1)` and each token of a response is masked with probability `p = (1 - eps) t + eps`; the second copy
has the complementary mask, so that every response token is masked in exactly one of the two. Prompts are never masked. A row's noise
depends on nothing but seed and number: not on how a batch is cut, nor on workers, nor on a restart. A row that comes again in a
later epoch has another number, and so other noise.
"""

import numpy as np
from numpy.typing import NDArray

EPS = 1e-3


def row_noise(seed: int, sample_index: int, positions_S: NDArray[np.integer], block_size: int) -> NDArray[np.bool_]:
    """The first copy's mask of one packed row before prompts are excepted, bool [S].

    Args:
        seed: of the training.
        sample_index: the row's number in the stream.
        positions_S: of each token in its document; blocks begin at multiples of `block_size`.
        block_size: tokens of a block.
    """
    generator = np.random.default_rng([seed, sample_index])
    t_S, uniform_S = generator.random((2, len(positions_S)))
    first_of_block_S = np.arange(len(positions_S)) - positions_S % block_size
    return uniform_S < (1 - EPS) * t_S[first_of_block_S] + EPS
