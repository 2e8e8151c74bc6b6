"""Tensors that a checkpoint holds twice under different names, such as tied embeddings.
Spec: R12.4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import numpy as np

from wcodec.codec.sources import FileWords
from wcodec.reference.planes import DType, Words

#: reads the words of a tensor once more; ``None`` where that cannot be done
ReadWords = Callable[[], Words | FileWords] | None

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
        self._known: dict[tuple[object, ...], list[tuple[int, Any]]] = {}
        self._n = 0

    def find(
        self,
        words: Words | FileWords,
        dtype: DType,
        shape: tuple[int, ...],
        dtype_name: str,
        read_again: ReadWords,
        pieces: bytes | None = None,
    ) -> int | None:
        """Number of an earlier tensor that is the same but for its name, every byte compared. Call
        it for each tensor, in order.

        Parameters
        ----------
        words
            Flat.
        read_again
            Gives the words once more, to compare them with those of later tensors: they must
            still be the same. ``None`` for all tensors if they cannot be read again: then their
            SHA-256 is compared.
        pieces
            What `pieces_of` the words gives, if that is known.
        """
        number, self._n = self._n, self._n + 1
        if words.nbytes < LEAST_NBYTES:
            return None
        pieces = pieces_of(words) if pieces is None else pieces
        alike = self._known.setdefault((dtype.id, shape, dtype_name, pieces), [])
        digest = _digest(words) if read_again is None else b""
        for earlier, other in alike:
            if digest == other if read_again is None else _same(words, other()):
                return earlier
        if len(alike) < _MOST_ALIKE:
            alike.append((number, read_again or digest))
        return None


def pieces_of(words: Words | FileWords) -> bytes:
    """Words at some places of a tensor, which few others have there too."""
    if words.nbytes <= _SMALL_NBYTES:
        return words[:: words.size // _FEW_WORDS or 1].tobytes()
    starts = np.arange(_PIECES) * (words.size - _PIECE_WORDS) // (_PIECES - 1)
    if isinstance(words, FileWords):
        return words.look(starts, _PIECE_WORDS)
    return b"".join(words[i : i + _PIECE_WORDS].tobytes() for i in starts.tolist())


def _same(a: Words | FileWords, b: Words | FileWords) -> bool:
    with _ahead(a), _ahead(b):
        return all(np.array_equal(x, y) for x, y in zip(_parts(a), _parts(b), strict=True))


def _ahead(words: Words | FileWords) -> AbstractContextManager[None]:
    return words.ahead() if isinstance(words, FileWords) else nullcontext()


def _digest(words: Words | FileWords) -> bytes:
    import hashlib  # only pipes need it

    sha256 = hashlib.sha256()
    for part in _parts(words):
        sha256.update(part.data)
    return sha256.digest()


def _parts(words: Words | FileWords) -> Iterator[Words]:
    step = _COMPARED_NBYTES // words.itemsize
    return (words[i : i + step] for i in range(0, words.size, step))
