"""From arrays to files in the format and back: plan, kernels, container.

`Encoder` and `Decoder` are the long form; `encode` and `decode` are one array in one call.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from wcodec.codec.decoder import Decoder
from wcodec.codec.encoder import Encoder
from wcodec.codec.sources import BufferSource
from wcodec.planner.options import EncodeOptions

__all__ = ["BufferSource", "Decoder", "Encoder", "decode", "encode"]


def encode(array: NDArray[Any], options: EncodeOptions | None = None) -> bytes:
    """Encode an array into bytes that `decode` turns back into it, bit for bit.

    Parameters
    ----------
    array
        Any shape; bool, int8 to int64, uint8 to uint64, float16/32/64, complex64/128, and bfloat16
        and float8 of ``ml_dtypes``, in any byte order. Numbers, lists of them, buffers, and what
        speaks DLPack are taken as NumPy takes them. What holds more than values is refused, such as
        masked arrays, quantities with units, and tables with labels: the rest would be lost.

    Raises
    ------
    EncodeError
        ``unsupported_dtype``, ``resource_limit``

    See also
    --------
    spec/wcodec.md, chapter 3
    """
    return Encoder(options).encode(array)


def decode(
    data: Any,
    out: NDArray[Any] | None = None,
    *,
    max_nbytes: int | None = None,
    max_memory: int | None = None,
) -> NDArray[Any]:
    """Decode the bytes of `encode`.

    Parameters
    ----------
    data
        bytes, or anything with a contiguous buffer.
    out
        Array of the same shape and dtype to decode into, to spare the allocation.
    max_nbytes, max_memory
        As of `Decoder`.

    Raises
    ------
    DecodeError
    """
    return Decoder(None, max_nbytes, max_memory).decode(data, out)
