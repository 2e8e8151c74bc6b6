"""All tensors of a version in memory: decoded, or made of those of the version before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from wcodec.backends import Backend
from wcodec.codec.pipelining import Progress, ignore_progress
from wcodec.deltas.applying import change, target_for
from wcodec.deltas.targets import Target, words_in
from wcodec.errors import DecodeError
from wcodec.files.file import File
from wcodec.files.loading import arrays_of
from wcodec.files.saving import ArraysBase, Taken, take_array
from wcodec.reference.differences import Difference, content_hash
from wcodec.reference.planes import Words
from wcodec.reference.tensors import TensorRecord

State = dict[str, Taken]  #: in the order of the version's file; each has its own memory
NOTHING: Final[Mapping[str, Any]] = {}


def take(given: Any, name: str) -> Taken:
    """A tensor of NumPy or PyTorch, or one that was taken already, as the format takes it."""
    if isinstance(given, Taken):
        return given
    if not isinstance(given, np.ndarray) and hasattr(given, "data_ptr"):
        from wcodec.torch.dtypes import take as take_tensor

        return take_tensor(given, name)
    return take_array(given, name)


class OpenVersion(File):
    """A file of a chain. What it differs from is in memory."""

    def use_base(self, tensors: State) -> None:
        """Take these as the base; the caller has checked that they are."""
        self._base = ArraysBase(tensors, take, self.decoder.backend)


def decoded(file: File, progress: Progress = ignore_progress) -> State:
    """All tensors of a file, every checksum checked.

    Raises
    ------
    DecodeError
    """
    state = State()
    for t, array in arrays_of(file):
        state[t.name] = _taken(file, t, words_in(array, t.dtype))
        progress(t.nbytes)
    return state


def advance(
    state: State, file: File, live: Mapping[str, Any] = NOTHING, full: bool = False
) -> State:
    """Turn tensors into those of a file that holds differences from them, in place where they keep
    dtype and shape.

    Parameters
    ----------
    state
        What the file differs from; not to be used afterwards.
    live
        A caller's tensors, which are changed where there is one that fits.
    full
        As of `change`.

    Returns
    -------
    The tensors of the file, but those of `live`.

    Raises
    ------
    DecodeError
        ``bad_base``: a tensor is not the one that the file differs from.
    """
    new, targets = State(), dict[str, Target]()
    for t in file.index.tensors:
        target = _fitting(file, t, live) if t.name in live else None
        if target is None:
            new[t.name] = _taken(file, t, _room(state, file, t))
            target = Target(new[t.name].words, file.decoder)
        targets[t.name] = target
    change(file, targets, full)
    return new


def _taken(file: File, t: TensorRecord, words: Words) -> Taken:
    return Taken(words, t.dtype, t.shape, file.stated.get(t.name))


def _fitting(file: File, t: TensorRecord, live: Mapping[str, Any]) -> Target | None:
    """The memory of a caller's tensor, if it has this dtype and shape."""
    try:
        return target_for(file, t, live)
    except DecodeError:
        return None


def _room(state: State, file: File, t: TensorRecord) -> Words:
    """The words that become those of `t`: of the tensor before, or new ones."""
    before = state.get(t.name)
    if before is not None and (before.dtype, before.shape) == (t.dtype, t.shape):
        return before.words
    if t.duplicate_of is None and t.difference != Difference.NONE:
        raise DecodeError(
            "bad_base", "the parent has no tensor of this name, dtype and shape", tensor=t.name
        )
    return np.empty(t.nbytes // t.dtype.word_nbytes, t.dtype.word_type)


def check_fits(file: File, live: Mapping[str, Any]) -> None:
    """Whether a caller's tensors can become those of a file.

    Raises
    ------
    DecodeError
        ``bad_base``: one is missing, or has another dtype or shape.
    """
    for t in file.index.tensors:
        target_for(file, t, live)


def do_fit(file: File, live: Mapping[str, Any]) -> bool:
    """As `check_fits`, as an answer."""
    return all(_fitting(file, t, live) is not None for t in file.index.tensors)


def copied(tensors: Mapping[str, Any], old: State) -> State:
    """Copies of tensors, in the memory of `old` where that fits."""
    new = State()
    for name, given in tensors.items():
        t, before = take(given, name), old.pop(name, None)
        if before is not None and (before.dtype, before.shape) == (t.dtype, t.shape):
            np.copyto(before.words, t.words)
            new[name] = t._replace(words=before.words)
        else:
            new[name] = t._replace(words=t.words.copy())
    return new


def as_arrays(state: State) -> dict[str, NDArray[Any]]:
    """Tensors as arrays of NumPy; opaque bytes are uint8."""
    return {
        name: t.words.view(np.uint8).view(t.dtype.numpy).reshape(t.shape)
        for name, t in state.items()
    }


def hash_of(state: State, backend: Backend) -> str:
    """The content hash (R11.4), hexadecimal."""
    crc32 = backend.crc32
    return content_hash((n, t.dtype, t.shape, crc32(t.words)) for n, t in state.items()).hex()
