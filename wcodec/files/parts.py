"""Parts of a large safetensors file, encoded on their own and joined: the bytes are those that
`encode_file` writes, wherever each part was encoded.

Where a part begins follows from the header alone. Tensors that the file holds twice are found
beforehand, so that no part needs another one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Final

from wcodec.backends import Backend
from wcodec.codec.encoder import Encoder
from wcodec.codec.joining import join_tables
from wcodec.codec.opening import open_source
from wcodec.codec.pipelining import Progress, WriteBehind, ignore_progress
from wcodec.errors import DecodeError, EncodeError, within
from wcodec.files.atomic import AnyPath, atomic_output, folder_for
from wcodec.files.duplicates import Duplicates
from wcodec.files.file import File
from wcodec.files.plain import PlainFile
from wcodec.files.safetensors_header import SafetensorsHeader, SourceTensor
from wcodec.planner.options import EncodeOptions
from wcodec.reference.container import HEADER, Index, SourceKind, write_header, write_index
from wcodec.reference.tables import TablePool
from wcodec.reference.tensors import TensorRecord
from wcodec.reference.tiles import CHUNK_NBYTES

PART_NBYTES: Final = 1 << 28  #: of tensors, after which a part ends
MOST_PARTS: Final = 512  #: of a file: all of them share the numbers of tables

#: numbers of tensors that are there twice, and of the first of the same
Repeats = dict[int, int]


def part_starts(header: SafetensorsHeader) -> list[int]:
    """Number of the first tensor of each part."""
    least = max(PART_NBYTES, header.end // MOST_PARTS)
    starts, nbytes = [0], 0
    for i, t in enumerate(header.tensors):
        if nbytes >= least:
            starts.append(i)
            nbytes = 0
        nbytes += t.nbytes
    return starts


def find_repeats(source: AnyPath) -> tuple[int, Repeats]:
    """How many parts a file has, and which tensors it holds twice, if it has more than one.

    Raises
    ------
    EncodeError
        ``bad_source``: not a well-formed safetensors file.
    """
    with within(source):
        plain, repeats = PlainFile(source), Repeats()
        n = len(part_starts(plain.header))
        seen = Duplicates()
        for i, (t, words, again, pieces) in enumerate(plain.looked_at() if n > 1 else ()):
            of = seen.find(words, t.dtype, t.shape, t.dtype_name, again, pieces)
            if of is not None:
                repeats[i] = of
        plain.source.close()
    return n, repeats


def encode_part(
    source: AnyPath,
    target: AnyPath,
    backend: Backend | None = None,
    progress: Progress = ignore_progress,
    *,
    part: int,
    repeats: Repeats,
    options: EncodeOptions | None = None,
    overwrite: bool = False,
    fsync: bool = True,
) -> tuple[int, int]:
    """Encode one part of a safetensors file to a ``.wcodec`` file of its own, for `join_parts`.

    Parameters
    ----------
    part
        Its number.
    repeats
        As `find_repeats` found them.

    Returns
    -------
    Bytes of the part's tensors, and of the file.

    Raises
    ------
    EncodeError
        As `encode_file`.
    """
    with within(source):
        plain = PlainFile(source)
    starts = part_starts(plain.header)
    first, last = [*starts, len(plain.header.tensors)][part : part + 2]
    encoder, nbytes = Encoder(options, backend), 0
    with (
        atomic_output(target, overwrite=overwrite, inputs=[source], fsync=fsync) as stream,
        WriteBehind(stream, encoder.backend.threads, CHUNK_NBYTES) as f,
        within(source),
    ):
        writer = encoder.start(f, progress, n_parts=len(starts))
        for i, (t, words, _, _) in enumerate(plain.tensors(folder_for(target), first, last), first):
            nbytes += t.nbytes
            if i in repeats:
                progress(t.nbytes)
            else:
                writer.add_later(t.name, words, t.dtype, t.shape, t.dtype_name)
        return nbytes, writer.finish()


def join_parts(
    source: AnyPath,
    target: AnyPath,
    backend: Backend | None = None,
    progress: Progress = ignore_progress,
    *,
    parts: Sequence[AnyPath],
    repeats: Repeats,
    overwrite: bool = False,
    fsync: bool = True,
) -> tuple[int, int]:
    """Join the parts of a file that `encode_part` encoded: records are copied, nothing is decoded.

    Returns
    -------
    Bytes of the source and of the target.

    Raises
    ------
    DecodeError
        A part is damaged, or one of another file.
    EncodeError
        ``bad_source``, ``output_exists``
    """
    with within(source):
        plain = PlainFile(source)
    header, starts = plain.header, part_starts(plain.header)
    if len(starts) != len(parts):
        raise EncodeError("bad_source", f"{len(parts)} parts of {len(starts)} are given")
    pools, tensors = list[TablePool](), list[TensorRecord]()
    with (
        atomic_output(target, overwrite=overwrite, inputs=[source], fsync=fsync) as stream,
        WriteBehind(stream) as f,
    ):
        offset = f.write(write_header())
        for path, (a, b) in zip(parts, pairwise([*starts, len(header.tensors)]), strict=True):
            with File(path, backend) as coded, within(path):
                pools.append(coded.index.tables)
                found = iter(coded.index.tensors)
                for i, t in enumerate(header.tensors[a:b], a):
                    if i in repeats:
                        tensors.append(tensors[repeats[i]].duplicate(t.name, repeats[i]))
                    else:
                        tensors.append(_moved(found, t, offset - HEADER.size))
                source_of_part = open_source(path)
                for piece in source_of_part.pieces(HEADER.size, coded.index.index_offset):
                    offset += f.write(piece.data)
                source_of_part.close()
            progress(sum(t.nbytes for t in header.tensors[a:b]))
        plain.source.check()
        pool, joined = join_tables(pools, starts, tensors)
        index = Index(joined, pool, header.metadata, SourceKind.SAFETENSORS, header.raw)
        f.write(end := write_index(index, offset))
        return header.end, offset + len(end)


def _moved(found: Iterator[TensorRecord], t: SourceTensor, by: int) -> TensorRecord:
    """The next record of a part, with its payload elsewhere."""
    record = next(found, None)
    if record is None or (record.name, record.dtype, record.shape, record.dtype_name) != (
        t.name,
        t.dtype,
        t.shape,
        t.dtype_name,
    ):
        raise DecodeError("bad_value", "this is not the part of the file", tensor=t.name)
    return replace(record, payload_offset=record.payload_offset + by)
