"""The precision of products: what a configuration's `auto` means on this machine.

bfloat16 halves memory traffic and, where the hardware multiplies it, time. Where it does not, torch multiplies it element by element: on
a core of an AMD EPYC with AVX2 alone 1.5 GFLOP/s against 28 of float32, and int8 products 0.5; on one with AVX512-BF16 and VNNI 420 and
870 against 95. What `auto` is on a machine never changes there, so restarts stay exact to the bit.
"""

import torch

from wfray.config.base import Precision

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
CAPABILITIES = torch.cpu.get_capabilities()
CPU_MULTIPLIES_BFLOAT16 = any(CAPABILITIES.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))
CPU_MULTIPLIES_INT8 = any(CAPABILITIES.get(name) for name in ("avx512_vnni", "amx_int8", "i8mm"))


def resolved(precision: Precision) -> str:
    """`precision`, or for `auto` bfloat16 on GPUs and on CPUs that multiply it, and float32 elsewhere."""
    if precision != "auto":
        return precision
    return "bfloat16" if torch.cuda.is_available() or CPU_MULTIPLIES_BFLOAT16 else "float32"


def dtype_of(precision: Precision) -> torch.dtype:
    """The dtype of products; see `resolved`."""
    return DTYPES[resolved(precision)]
