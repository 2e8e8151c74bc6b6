"""Tensors that a checkpoint holds twice under different names, such as tied embeddings.
Spec: R12.4.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from wcodec.codec.sources import FileWords
from wcodec.reference.planes import DType, Words

ReadWords = Callable[[], Words | FileWords]  #: reads the words of a tensor once more

LEAST_NBYTES: Final = 512  #: smaller tensors cost less than to look for them
_PIECES: Final = 8  #: of a tensor that are compared before all of it
_PIECE_WORDS: Final = 16
_SMALL_NBYTES: Final = 1 << 16  #: of smaller ones, words all over them are
_FEW_WORDS: Final = 64
_MOST_ALIKE: Final = 8  #: tensors alike in these pieces that one is compared with
_COMPARED_NBYTES: Final = 1 << 20  #: at once


class Duplicates:
    """The tensors so far, by what they look like."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], list[tuple[int, ReadWords]]] = {}
        self._n = 0

    def find(
        self,
        words: Words | FileWords,
        dtype: DType,
        shape: tuple[int, ...],
        dtype_name: str,
        read_again: ReadWords,
    ) -> int | None:
        """Number of an earlier tensor that is the same but for its name, every byte compared. Call
        it for each tensor, in order.

        Parameters
        ----------
        words
            Flat.
        read_again
            Gives the words once more, to compare them with those of later tensors:
            they must still be the same.
        """
        number, self._n = self._n, self._n + 1
        if words.nbytes < LEAST_NBYTES:
            return None
        if words.nbytes <= _SMALL_NBYTES:
            pieces = words[:: words.size // _FEW_WORDS].tobytes()
        else:
            starts = np.arange(_PIECES) * (words.size - _PIECE_WORDS) // (_PIECES - 1)
            pieces = b"".join(words[i : i + _PIECE_WORDS].tobytes() for i in starts.tolist())
        alike = self._known.setdefault((dtype.id, shape, dtype_name, pieces), [])
        for earlier, read in alike:
            if _same(words, read()):
                return earlier
        if len(alike) < _MOST_ALIKE:
            alike.append((number, read_again))
        return None


def _same(a: Words | FileWords, b: Words | FileWords) -> bool:
    step = _COMPARED_NBYTES // a.itemsize
    return all(np.array_equal(a[i : i + step], b[i : i + step]) for i in range(0, a.size, step))
