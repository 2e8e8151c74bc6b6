"""How much memory decoding takes beside the index and what is decoded, before it is taken."""

from __future__ import annotations

from typing import Final

from wcodec.backends import Backend
from wcodec.codec.pipelining import CHUNK_BUFFERS
from wcodec.reference.container import Index
from wcodec.reference.tables import MAX_PROB_BITS
from wcodec.reference.tensors import Lists, TensorRecord

PIECE_NBYTES: Final = 1 << 25  #: words of an array that are decoded at once
MOST_NBYTES: Final = 1 << 23  #: words of small tensors that are coded at once
BATCH_WORDS: Final = (
    1 << 22
)  #: listed words of sparse tensors that are put into their places at once
STREAM_NBYTES: Final = 1 << 23  #: words that are decoded at once on their way to a file
_LISTED_NBYTES: Final = 64  #: of a listed word at most: gaps, words twice, place, room to decode
_LIST_NBYTES: Final = 512  #: of a segment with listed words
_LUT_NBYTES: Final = 4 << MAX_PROB_BITS  #: what decodes by a table


def working_nbytes(index: Index, backend: Backend) -> int:
    """Bytes that decoding the tensors of a file, one after another, takes at most.

    Not counted are the index (`wcodec.reference.memory.Memory`), arrays that are given to the
    caller, and what backends keep from call to call whatever they decode.
    """
    small = min(index.data_nbytes, MOST_NBYTES)
    most = max((_of_tensor(t, backend) for t in index.tensors), default=0)
    n_listed = sum(t.lists.words.geometry.cols for t in index.tensors if t.lists is not None)
    n_segments = sum(t.lists.touched.size for t in index.tensors if t.lists is not None)
    lists = min(n_listed, BATCH_WORDS) * _LISTED_NBYTES + n_segments * _LIST_NBYTES
    return max(most, 4 * small, lists) + len(index.tables) * _LUT_NBYTES


def _of_tensor(t: TensorRecord, backend: Backend) -> int:
    """Buffers for chunks of words and for the records that they come from, what the backend needs,
    and of a difference the words of the base.
    """
    if not t.nbytes:
        return 0
    if t.lists is not None:
        return _of_lists(t, t.lists, backend)
    g, size = t.geometry, t.dtype.word_nbytes
    height, width = min(g.segment_rows, g.rows), min(g.segment_cols, g.cols)
    segment = height * width
    band = segment if height == 1 else height * g.cols  # words that are decoded at once at least
    piece, stream = (min(t.nbytes, max(n, band * size)) for n in (PIECE_NBYTES, STREAM_NBYTES))
    n_segments = -(-piece // (segment * size))
    records = min(t.payload_nbytes, n_segments * _record_nbytes(segment, t.coded_dtype.n_planes))
    n_buffers = CHUNK_BUFFERS + backend.at_once
    working = backend.decoding_nbytes(segment, piece // size, size)
    return n_buffers * stream + 2 * records + working + (3 * piece if t.difference else 0)


def _of_lists(t: TensorRecord, lists: Lists, backend: Backend) -> int:
    """Of a sparse tensor: buffers for chunks of words, one for the base, and its lists, of which at
    worst all are decoded at once: records, gaps, words, old words, places.
    """
    size, n_buffers = t.dtype.word_nbytes, CHUNK_BUFFERS + backend.at_once
    stream = min(t.nbytes, max(PIECE_NBYTES, t.geometry.segment_cols * size))
    n_listed, n_gaps = (part.geometry.cols for part in (lists.words, lists.gaps))
    of_words = backend.decoding_nbytes(max(1, n_listed), max(1, n_listed), size)
    return (
        (n_buffers + 1) * stream + t.payload_nbytes + n_gaps + n_listed * (3 * size + 16) + of_words
    )


def _record_nbytes(n_words: int, n_planes: int) -> int:
    """The most bytes that the record of a segment has (chapter 10): streams, modes, classes,
    patches.
    """
    return n_planes * (3 * n_words + 512) + 6 * n_words + 256
