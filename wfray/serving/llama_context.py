"""llama.cpp through the low-level calls of llama-cpp-python: one model, and a key-value cache of one stream a slot.

Streams are apart (`kv_unified` off), so that attention of a short answer does not run over the cache of long ones; a whole stream can be
copied to another, which is how a common beginning is shared. Streams whose numbers follow each other in a batch are computed together,
others one after the other, for each of which all weights are read again. Token ids, positions and slots of a batch are numpy views of
llama.cpp's own memory. Tokens a pass are bounded (`BATCH_TOKENS`), so that answers under way go on while a long prompt is read. Flash
attention is off: on CPUs it sums in 16 bits, which moves log-probabilities by a tenth.
"""

import ctypes
from pathlib import Path

import llama_cpp
import numpy as np
from llama_cpp._internals import LlamaModel
from llama_cpp._logger import set_verbose
from numpy.typing import NDArray

from wfray.serving.sampling import Logits

BATCH_TOKENS = 512
MAX_TOKEN_BYTES = 1024


class LlamaContext:
    """See the module docstring."""

    def __init__(self, file: Path, context: int, slots: int, threads: int) -> None:
        """Load `file`.

        Args:
            file: a GGUF file.
            context: tokens that a slot holds.
            slots: sequences side by side.
            threads: CPU threads.

        Raises:
            ValueError: it is missing, corrupt or unknown to llama.cpp, or it was trained for a shorter context.
        """
        self.model = load(file)
        trained = self.model.n_ctx_train()
        if context > trained:
            raise ValueError(f"context {context} of {str(file)!r} exceeds the {trained} positions that the model was trained for")
        self.vocab_size = self.model.n_vocab()
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max, params.kv_unified = context * slots, slots, False
        params.n_batch = params.n_ubatch = BATCH_TOKENS
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.no_perf = True
        self.context = llama_cpp.llama_init_from_model(self.model.model, params)
        if self.context is None:
            raise ValueError(f"llama.cpp has no memory for {slots} slots of {context} tokens of {str(file)!r}: lower slots or context")
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.batch = llama_cpp.llama_batch_init(BATCH_TOKENS, 0, 1)
        self.tokens = self.view(self.batch.token)
        self.positions = self.view(self.batch.pos)
        self.wanted = self.view(self.batch.logits)
        np.ctypeslib.as_array(self.batch.n_seq_id, (BATCH_TOKENS,))[:] = 1
        self.size = 0
        self.token_bytes = [self._bytes_of(token) for token in range(self.vocab_size)]
        """What each token says, special ones included."""

    def view(self, pointer: ctypes._Pointer) -> NDArray[np.int32]:
        """llama.cpp's array as numpy's."""
        return np.ctypeslib.as_array(pointer, (BATCH_TOKENS,))

    @property
    def room(self) -> int:
        """Tokens that the batch can still take."""
        return BATCH_TOKENS - self.size

    def put(self, slot: int, tokens: list[int], first: int, wants_all: bool, wants_last: bool) -> range:
        """Put tokens of a slot, at positions from `first` on, into the batch; the rows at which they stand."""
        rows = range(self.size, self.size + len(tokens))
        self.tokens[rows.start : rows.stop] = tokens
        self.positions[rows.start : rows.stop] = np.arange(first, first + len(tokens))
        self.wanted[rows.start : rows.stop] = wants_all
        if wants_last:
            self.wanted[rows.stop - 1] = 1
        for row in rows:
            self.batch.seq_id[row][0] = slot
        self.size = rows.stop
        return rows

    def compute(self) -> None:
        """Compute the batch, whose logits can be read until the next one."""
        self.batch.n_tokens, self.size = self.size, 0
        if code := llama_cpp.llama_decode(self.context, self.batch):
            raise RuntimeError(f"llama_decode failed with code {code}")

    def logits(self, row: int) -> Logits:
        """The logits [V] of a row that wanted them; a view, overwritten by the next batch."""
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(self.context, row), (self.vocab_size,))

    def keep(self, slot: int, length: int) -> bool:
        """Cut a slot to its first `length` tokens; False where the model's memory cannot be cut, and then the slot is empty."""
        if llama_cpp.llama_memory_seq_rm(self.memory, slot, length, -1):
            return True
        llama_cpp.llama_memory_seq_rm(self.memory, slot, -1, -1)
        return False

    def copy(self, source: int, target: int) -> None:
        """Make a slot equal to another one."""
        llama_cpp.llama_memory_seq_rm(self.memory, target, -1, -1)
        llama_cpp.llama_memory_seq_cp(self.memory, source, target, -1, -1)

    def tokenize(self, text: str, add_special: bool) -> list[int]:
        """Token ids of a text, special tokens recognised; `add_special` puts the beginning-of-text token where the model wants one."""
        data = text.encode()
        buffer = (llama_cpp.llama_token * (len(data) + 8))()
        count = llama_cpp.llama_tokenize(self.model.vocab, data, len(data), buffer, len(buffer), add_special, True)
        if count < 0:
            raise RuntimeError(f"llama.cpp cannot tokenize {len(data)} bytes")
        return buffer[:count]

    def _bytes_of(self, token: int) -> bytes:
        buffer = (ctypes.c_char * MAX_TOKEN_BYTES)()
        size = llama_cpp.llama_token_to_piece(self.model.vocab, token, buffer, MAX_TOKEN_BYTES, 0, True)
        assert size >= 0, f"token {token} has more than {MAX_TOKEN_BYTES} bytes"
        return buffer.raw[:size]

    def is_end(self, token: int) -> bool:
        """Whether a token ends an answer."""
        return bool(llama_cpp.llama_vocab_is_eog(self.model.vocab, token))

    def close(self) -> None:
        """Free everything."""
        llama_cpp.llama_batch_free(self.batch)
        llama_cpp.llama_free(self.context)
        self.model.close()


def load(file: Path) -> LlamaModel:
    """The weights.

    Raises:
        ValueError: the file is missing, corrupt or of an architecture that llama.cpp does not know.
    """
    if not file.is_file():
        raise ValueError(f"there is no model file {str(file)!r}; run jobs.export, or name a GGUF file")
    try:
        set_verbose(False)
        llama_cpp.llama_backend_init()
        return LlamaModel(path_model=str(file), params=llama_cpp.llama_model_default_params(), verbose=False)
    except ValueError as error:
        raise ValueError(f"llama.cpp cannot load {str(file)!r} ({error}): truncated, corrupt, or of an unknown architecture") from None
