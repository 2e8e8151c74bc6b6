"""`apply`: a file of differences turns tensors in memory into those that it holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, BinaryIO, Final, NamedTuple

import numpy as np

from wcodec.codec.arrays import as_array
from wcodec.codec.sparse import SomeLists, check_gaps, put_lists
from wcodec.codec.working import BATCH_WORDS
from wcodec.deltas.targets import Target, unlike, words_in
from wcodec.errors import DecodeError, within
from wcodec.files.atomic import AnyPath
from wcodec.files.bases import InMemory
from wcodec.files.file import Buffer, File
from wcodec.reference.differences import Difference
from wcodec.reference.sparse import PutStatus
from wcodec.reference.tensors import TensorRecord

CHECKS: Final = ("sampled", "full")


class Applied(NamedTuple):
    """What `apply` has done.

    Attributes
    ----------
    changed
        Names of the tensors that have become new, in the file's order.
    unchanged
        Names of those that were it already.
    """

    changed: list[str]
    unchanged: list[str]


def apply(
    delta: AnyPath | BinaryIO | Buffer | File,
    tensors: Mapping[str, Any],
    *,
    checked: str = "sampled",
    max_nbytes: int | None = None,
    max_memory: int | None = None,
) -> Applied:
    """Turn tensors in memory into those of a file that holds differences from them.

    Where few words have changed, these alone are read and written. A tensor is changed as a whole
    or not at all, and one that is the new one already stays as it is: after an error, or when in
    doubt, the same call can be made again.

    Parameters
    ----------
    delta
        A file of `save_file` or bytes of `save`, or an open file; made with the tensors' present
        values as its base. Tensors that it holds as a whole replace those that are there.
    tensors
        By name, at least those of the file, of the same dtypes and shapes: writeable C-contiguous
        arrays of NumPy, or tensors of PyTorch on the CPU or a GPU. Others may be among them.
    checked
        ``"sampled"``: where words are listed, they and those that they come from are checked
        against a CRC-32, and no others are read; tensors that are stored in another way are checked
        as a whole. ``"full"``: all tensors are read and checked as a whole.
    max_nbytes, max_memory
        As of `wcodec.open`.

    Returns
    -------
    Which tensors have changed.

    Raises
    ------
    DecodeError
        ``bad_base``: a tensor is missing, or is neither the one that the file differs from nor the
        new one. That one is as it was; others may be new already.
    TypeError, ValueError
        What is given in place of a tensor cannot be changed in place.

    Notes
    -----
    Two calls at once must not change the same tensors. Where the file has a tensor twice, the
    second one becomes a copy of the first, whatever it was.

    See also
    --------
    spec/wcodec.md, 12.1
    """
    if not isinstance(tensors, Mapping):
        raise TypeError(f"tensors are given by name; this is a {type(tensors).__name__}")
    full = is_full(checked)
    if isinstance(delta, File):
        return _apply(delta, tensors, full)
    with File(delta, max_nbytes=max_nbytes, max_memory=max_memory) as file:
        return _apply(file, tensors, full)


def is_full(checked: str) -> bool:
    """Whether all words are checked. Raises `ValueError`: it is none of `CHECKS`."""
    if checked not in CHECKS:
        raise ValueError(f"checked {checked!r} is none of {', '.join(CHECKS)}")
    return checked == "full"


def _apply(file: File, tensors: Mapping[str, Any], full: bool) -> Applied:
    with within(file.path):
        targets = {t.name: target_for(file, t, tensors) for t in file.index.tensors}
    return change(file, targets, full)


def change(file: File, targets: Mapping[str, Target], full: bool) -> Applied:
    """`apply` to memory.

    Parameters
    ----------
    targets
        By name, one for each tensor of the file, of its words.
    full
        Whether all words are checked.
    """
    changed, records = set[str](), file.index.tensors
    for batch in _batches([t for t in records if t.duplicate_of is None], targets):
        some = [(t, targets[t.name]) for t in batch]
        with file.guarded():
            put = _replace if batch[0].lists is None else _put_listed
            put(file, some, full, changed)
    for t in records:
        if t.duplicate_of is not None:
            _repeat(t, targets[t.name], targets[file.original(t).name], changed)
    names = file.keys()
    return Applied(
        [name for name in names if name in changed], [n for n in names if n not in changed]
    )


def _batches(
    tensors: list[TensorRecord], targets: Mapping[str, Target]
) -> Iterator[list[TensorRecord]]:
    """Tensors that are changed together: sparse ones of one coded dtype and difference on one
    device, of up to `BATCH_WORDS` listed words; or one of another kind.
    """
    kinds = dict[Any, list[TensorRecord]]()
    for t in tensors:
        kind = (t.coded_dtype, t.difference, targets[t.name].decoder)
        kinds.setdefault(t.name if t.lists is None else kind, []).append(t)
    for batch in kinds.values():
        some, n_words = list[TensorRecord](), 0
        for t in batch:
            n = t.lists.words.geometry.cols if t.lists is not None else 0
            if some and n_words + n > BATCH_WORDS:
                yield some
                some, n_words = [], 0
            some.append(t)
            n_words += n
        yield some


# ---- memory of tensors ---------------------------------------------------------------------------
def target_for(file: File, t: TensorRecord, tensors: Mapping[str, Any]) -> Target:
    """The memory of the tensor that is to become `t`.

    Raises
    ------
    DecodeError
        ``bad_base``: there is none of this dtype and shape.
    """
    given, stated = tensors.get(t.name), file.stated.get(t.name)
    if given is None:
        raise DecodeError("bad_base", "there is no tensor of this name to change", tensor=t.name)
    if type(given) is not np.ndarray and hasattr(given, "data_ptr"):
        from wcodec.deltas.torch_tensors import target_of

        return target_of(given, t, stated, file.decoder)
    if not isinstance(given, np.ndarray):
        raise TypeError(f"{t.name!r}: a {type(given).__name__} is not changed in place")
    array = as_array(given)
    shape = t.shape if stated is None else tuple(stated.packed_shape)
    if array.dtype != t.dtype.numpy or array.shape != shape:
        raise unlike(t, str(array.dtype), array.shape)
    if not (array.flags.c_contiguous and array.flags.writeable and array.flags.aligned):
        raise ValueError(
            f"{t.name!r}: only a C-contiguous, aligned, writeable array is changed in place"
        )
    return Target(words_in(array, t.dtype), file.decoder)


# ---- changing it ---------------------------------------------------------------------------------
def _neither(t: TensorRecord) -> DecodeError:
    return DecodeError(
        "bad_base",
        "the tensor is neither the one that the file differs from nor the new one",
        tensor=t.name,
    )


def _replace(
    file: File, some: list[tuple[TensorRecord, Target]], _: bool, changed: set[str]
) -> None:
    """Turn words into those of a tensor that is not sparse, and enter its name in `changed`, unless
    they are these already.
    """
    ((t, target),) = some
    words, decoder, base = target.to_host(), target.decoder, None
    if decoder.backend.crc32(words) == t.crc32:
        return
    if t.difference != Difference.NONE:
        base = InMemory(words.reshape(t.geometry.rows, t.geometry.cols))
    try:
        new = decoder.tensor(file.source, t, file.index.tables, base=base)
    except DecodeError as e:
        if e.code == "bad_checksum" and e.offset is None and base is not None:  # of the tensor
            raise _neither(t) from e
        raise
    target.replace(words_in(new, t.dtype))
    target.finish()
    changed.add(t.name)


def _put_listed(
    file: File, some: list[tuple[TensorRecord, Target]], full: bool, changed: set[str]
) -> None:
    """As `_replace`, of sparse tensors of one kind."""
    decoder = some[0][1].decoder
    words = [target.load() for _, target in some]
    listing = [i for i, (t, _) in enumerate(some) if t.lists and t.lists.touched.size]
    lists = [
        SomeLists.of(t, np.arange(t.geometry.n_segments), k)
        for k, (t, _) in enumerate(some[i] for i in listing)
    ]
    undo, wrong, right = dict[int, tuple[Any, Any]](), list[int](), list[int]()
    try:
        if listing:
            arrays = [words[i] for i in listing]
            put, segments = put_lists(
                decoder.buffers, file.source, lists, arrays, file.index.tables
            )
            wrong = [listing[k] for k in put.wrong_arrays(segments)]
            n_put = np.bincount(segments.of, put.status == PutStatus.PUT.value, len(listing))
            ends = segments.ends_of(len(listing)).tolist()
            for i, n, (a, b) in zip(listing, n_put.tolist(), pairwise(ends), strict=True):
                if n > 0 and i not in wrong:
                    undo[i] = put.places[a:b], put.before[a:b]
        for i, (t, _) in enumerate(some):
            if full and i not in wrong and decoder.backend.crc32_of(words[i]) != t.crc32:
                wrong.append(i)
            elif i in undo:
                right.append(i)
    finally:  # what is not known to be right stays as it was
        for i in set(undo) - set(right):
            decoder.backend.put(words[i], *undo[i])
    for i in right:
        some[i][1].store(words[i])
        some[i][1].finish()
        changed.add(some[i][0].name)
    if listing:
        check_gaps(lists, put, segments)
    if wrong:
        raise _neither(some[min(wrong)][0])


def _repeat(t: TensorRecord, target: Target, of: Target, changed: set[str]) -> None:
    """As `_replace`, of a tensor that is another one again, which is there. What it was before does
    not matter: it may repeat that one only now.
    """
    if target.address != of.address and target.decoder.backend.crc32_of(target.load()) != t.crc32:
        target.replace(of.to_host())
        target.finish()
        changed.add(t.name)
