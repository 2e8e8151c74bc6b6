"""DLPack: device memory handed to other libraries without a copy.
See the DLPack specification, version 1.1.
"""

from __future__ import annotations

import ctypes
from typing import Any, Final

import numpy as np

from wcodec.reference.planes import DType

#: Type codes of DLPack that NumPy's dtypes have no word for.
_CODES: Final = {
    "bfloat16": 4, "float8_e4m3fn": 10, "float8_e4m3fnuz": 11, "float8_e5m2": 12,
    "float8_e5m2fnuz": 13, "float8_e8m0fnu": 14,
}  # fmt: skip


class _Tensor(ctypes.Structure):
    """The start of a ``DLTensor``, with which a ``DLManagedTensor`` starts."""

    _fields_ = (
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8),
    )  # fmt: skip


_pointer_of: Any = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_of.restype, _pointer_of.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)


def typed(words: Any, shape: tuple[int, ...], dtype: DType) -> Any:
    """Device array of `words` with the tensor's shape, and its dtype if NumPy itself has that;
    else of unsigned integers.
    """
    return (words if dtype.name in _CODES else words.view(np.dtype(dtype.numpy))).reshape(shape)


def export(words: Any, shape: tuple[int, ...], dtype: DType) -> Any:
    """A capsule ``dltensor`` of a tensor's words, a flat unsigned device array: the exporter of its
    library, given the right type.
    """
    capsule = typed(words, shape, dtype).__dlpack__()
    if dtype.name in _CODES:
        ctypes.cast(
            _pointer_of(capsule, b"dltensor"), ctypes.POINTER(_Tensor)
        ).contents.code = _CODES[dtype.name]
    return capsule
