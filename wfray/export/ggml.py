"""The few functions of ggml, llama.cpp's tensor library, that its Python package does not wrap."""

import ctypes

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from llama_cpp._ggml import libggml
from numpy.typing import NDArray

FLOATS = ctypes.POINTER(ctypes.c_float)

libggml.ggml_quantize_chunk.restype = ctypes.c_size_t
libggml.ggml_quantize_chunk.argtypes = [
    ctypes.c_int,
    FLOATS,
    ctypes.c_void_p,
    ctypes.c_int64,
    ctypes.c_int64,
    ctypes.c_int64,
    ctypes.c_void_p,
]
libggml.ggml_get_name.restype = ctypes.c_char_p
libggml.ggml_get_name.argtypes = [ctypes.c_void_p]
libggml.ggml_nelements.restype = ctypes.c_int64
libggml.ggml_nelements.argtypes = [ctypes.c_void_p]
libggml.ggml_backend_tensor_get.restype = None
libggml.ggml_backend_tensor_get.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]


def quantize_rows(rows_RC: NDArray[np.float32], kind: GGMLQuantizationType) -> NDArray[np.uint8]:
    """Rows as llama.cpp's own quantizer stores them, uint8 [R, bytes of a row]; C is a multiple of the type's block."""
    num_rows, width = rows_RC.shape
    block, size = GGML_QUANT_SIZES[kind]
    source = np.ascontiguousarray(rows_RC, dtype=np.float32)
    target = np.empty((num_rows, width // block * size), dtype=np.uint8)
    libggml.ggml_quantize_chunk(kind, source.ctypes.data_as(FLOATS), target.ctypes.data, 0, num_rows, width, None)
    return target


def name_of(tensor: int) -> str:
    """The name of a tensor in a graph, given by its address."""
    return str(libggml.ggml_get_name(tensor).decode())


def values_of(tensor: int) -> NDArray[np.float32]:
    """The values of a float32 tensor, copied out, flat."""
    values = np.empty(libggml.ggml_nelements(tensor), dtype=np.float32)
    libggml.ggml_backend_tensor_get(tensor, values.ctypes.data, 0, values.nbytes)
    return values
