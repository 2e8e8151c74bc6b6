"""Memory that `apply` changes in place."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wcodec.codec.decoder import Decoder
from wcodec.errors import DecodeError
from wcodec.reference.planes import DType, Words
from wcodec.reference.tensors import TensorRecord


class Target:
    """An array that is changed in place, and what decodes for it.

    Parameters
    ----------
    words
        All of it, flat.
    """

    def __init__(self, words: Words, decoder: Decoder) -> None:
        self.words, self.decoder = words, decoder

    @property
    def address(self) -> object:
        """Where the words lie."""
        return self.words.__array_interface__["data"][0]

    def load(self) -> Any:
        """The words on the decoder's device: themselves, if that is the host."""
        return self.decoder.backend.to_device(self.words)

    def store(self, device: Any) -> None:
        """Take over what has become of what `load` gave."""
        self.decoder.backend.to_host(device, self.words)

    def to_host(self) -> Words:
        """The words on the host; not to be changed."""
        return self.words

    def replace(self, words: Words) -> None:
        """Take other words, which are on the host."""
        np.copyto(self.words, words)

    def finish(self) -> None:
        """Called when the words have changed."""


def words_in(array: NDArray[Any], dtype: DType) -> Words:
    """The words of a contiguous array, flat."""
    return array.reshape(-1).view(np.uint8).view(dtype.word_type)


def unlike(t: TensorRecord, dtype: str, shape: tuple[int, ...]) -> DecodeError:
    """What is wrong with a tensor of another dtype or shape."""
    return DecodeError(
        "bad_base",
        f"it is {t.dtype_name or t.dtype.name} of shape {list(t.shape)}; the tensor to change is "
        f"{dtype} of shape {list(shape)}",
        tensor=t.name,
    )
