"""What a backend is: a page to read before writing one.

A backend is three kernels over the segments of a tensor, checksums, and the transfers around them.
It never sees a file: the host parses, checks and plans (`wcodec.reference`), and hands it a
`SegmentPlan` whose every field is within the rules of the spec, so that a kernel has only the
payload's bytes to distrust.

Rules, each held by ``wcodec conformance --backend NAME``:

1. The same plan gives the same bytes, status and words as ``wcodec.reference.segments``,
   on every machine.
2. A kernel never reads outside of a record nor writes outside of its output,
   whatever the payload holds.
3. Content is never an exception: `decode_segments` returns a status for each segment. Of several
   faults, BAD_STREAM goes before BAD_TILE_MODE, and that before BAD_PATCH; but lower planes with
   coder CONTEXT, which may take their contexts from plane 0, are decoded after the check of the
   tile modes, so that their streams are not BAD_STREAM if a mode is none.
4. Inputs are not changed. Empty input (no segments) works.
5. Calls from several threads at once work.

Register a class under the entry point group ``wcodec.backends``, or name it as
``package.module:Class``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wcodec.reference import differences, sparse
from wcodec.reference.checksums import crc32, crc32_each
from wcodec.reference.contexts import joint_histogram
from wcodec.reference.differences import Difference
from wcodec.reference.planes import DType
from wcodec.reference.records import check_plan
from wcodec.reference.segments import SegmentPlan, Status
from wcodec.reference.sparse import Changes, ListedSegments, Put, PutStatus
from wcodec.reference.tables import Table, read_tables
from wcodec.reference.tiles import Geometry

__all__ = [
    "Backend",
    "Changes",
    "Checksums",
    "DType",
    "Difference",
    "EncodedSegments",
    "Geometry",
    "ListedSegments",
    "Put",
    "PutStatus",
    "SegmentPlan",
    "Status",
]


class EncodedSegments(NamedTuple):
    """Result of `Backend.encode_segments`.

    Attributes
    ----------
    payload
        uint8, in the backend's memory: the segment records one after another.
    n_units
        uint32 of shape (n_planes, n), on the host:
        16-byte units of each stream (RANS, CONTEXT), 0 for other planes.
    n_patches
        uint32 of shape (n,), on the host.
    """

    payload: Any
    n_units: NDArray[np.uint32]
    n_patches: NDArray[np.uint32]


class Checksums(NamedTuple):
    """CRC-32s (spec: chapter 11).

    Attributes
    ----------
    records
        uint32 of shape (n,), on the host: of the segment records.
    words
        Of the bytes of all words, row by row.
    """

    records: NDArray[np.uint32]
    words: int


class Backend(ABC):
    """Kernels over segments. Arrays of words and payloads are in the backend's own memory
    ("device").

    Parameters
    ----------
    threads
        CPU threads to use; ``None`` for one a core. Backends that use none ignore it.

    Raises
    ------
    wcodec.errors.BackendUnavailable
        From the constructor, with what to install, if this machine cannot run the backend.
    """

    name: ClassVar[str] = ""
    #: whether an object can be used in a child of the process that has made it
    survives_fork: ClassVar[bool] = True
    #: calls in threads of their own that are worth making at once, as one transfers while another
    #: computes
    at_once: ClassVar[int] = 0

    #: whether geometries of its plans, and of `histogram`, may be `Spans`
    takes_spans: ClassVar[bool] = False

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads

    def info(self) -> dict[str, str]:
        """What `wcodec backends` shows: versions, device, variant."""
        return {}

    # ---- transfers: the identity where the device is the host
    def to_device(self, array: NDArray[Any]) -> Any:
        """Copy of a host array on the device (the array itself if that is the host)."""
        return array

    def to_host(self, array: Any, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Copy of a device array on the host, in `out` if given (otherwise the array itself if that
        is the device).
        """
        if out is None:
            return np.asarray(array)
        if out is not array:
            np.copyto(out, np.asarray(array))
        return out

    def target(self, out: NDArray[Any]) -> Any:
        """Device array to decode into what goes to a C-contiguous host array (the array itself if
        that is the device).
        """
        return out

    # ---- kernels
    @abstractmethod
    def histogram(
        self,
        words: Any,
        geometry: Geometry,
        dtype: DType,
        *,
        segments: NDArray[np.int64] | None = None,
        planes: tuple[int, ...] | None = None,
        mode: int = 0,
        base: int | None = None,
        fill: int = 0,
    ) -> NDArray[np.int64]:
        """Count the symbols of each plane of each segment.

        Parameters
        ----------
        words
            Unsigned device array of shape ``(geometry.rows, geometry.cols)``, C-contiguous,
            aligned to its words.
        segments
            Ids of the segments to count, ascending; ``None`` for all.
        planes
            Byte planes to count, ascending, 0 for the top one; ``None`` for all.
        mode
            One of `prediction.MODES`; counts are of what it makes of the bytes.
            Only with `base` None.
        base
            ``None``: count bytes. Otherwise count the symbols of layout PAIRS with this window base
            too: for words of more than a byte those of plane 0, which come before those of
            `planes`; for one-byte words, whose base is 0, those of nothing else, and `planes` are
            nibble planes.
        fill
            With `base`: the 4-bit code of words outside the window,
            and of the missing neighbour of an odd last one.

        Returns
        -------
        int64 of shape (number of segments, number of histograms of each, 256), on the host.
        """

    def histograms(
        self,
        words: Any,
        geometry: Geometry,
        dtype: DType,
        modes: Sequence[int],
        *,
        segments: NDArray[np.int64] | None = None,
        planes: tuple[int, ...] | None = None,
    ) -> NDArray[np.int64]:
        """As `histogram`, of bytes, for several modes: of shape (number of modes, of segments, of
        planes, 256). This will do; a backend may look at the words once.
        """
        what: dict[str, Any] = {"segments": segments, "planes": planes}
        return np.stack([self.histogram(words, geometry, dtype, mode=m, **what) for m in modes])

    def joint_histogram(
        self,
        symbols: NDArray[np.uint8],
        rows: NDArray[np.int64],
        cols: NDArray[np.int64],
        bins: NDArray[np.uint8],
        shape: tuple[int, int],
    ) -> NDArray[np.int64]:
        """Count symbols by lines, which are sums of a number of the row and one of the column.

        This will do; a backend may have a faster one. All arrays are on the host.

        Parameters
        ----------
        symbols
            uint8 of shape (height, width), fewer than 2^32.
        rows, cols
            int64 of shape (height,) and (width,): not negative.
        bins
            uint8 of shape (256,): what each symbol counts as.
        shape
            Lines, and bins: all sums and all of `bins` are below these.

        Returns
        -------
        int64 of this shape: how many symbols of a line count as a bin.
        """
        return joint_histogram(symbols, rows, cols, bins, shape)

    @abstractmethod
    def encode_segments(self, plan: SegmentPlan, words: Any) -> EncodedSegments:
        """Encode all segments of a plan; `words` as for `histogram`. Spec: chapter 10.

        In layout PAIRS of words larger than a byte, where plane 0 has coder RANS, its table may
        lack pairs of codes. Of such a pair the second code becomes the segment's `fill`, or else
        the first, or else both, whichever the table codes first, and words whose code that changes
        get patches (spec: chapter 14). No table lacks the pair of two `fill`.
        """

    @abstractmethod
    def decode_segments(self, plan: SegmentPlan, payload: Any, out: Any) -> NDArray[np.uint8]:
        """Decode all segments of a plan. Spec: chapter 10.

        Parameters
        ----------
        payload
            uint8 device array of ``plan.offsets[-1]`` bytes, 16-byte aligned.
        out
            Unsigned device array of shape ``(geometry.rows, geometry.cols)``, C-contiguous,
            aligned to its words: filled.

        Returns
        -------
        uint8 of shape (n,), on the host: a `Status` a segment.
        Words of a segment that is not OK are unspecified.
        """

    def decoding_nbytes(self, segment: int, piece: int, word_nbytes: int) -> int:
        """The most bytes of host memory that `decode_segments` takes and does not keep.

        Parameters
        ----------
        segment, piece
            Words of the largest segment, and of all that are decoded at once.
        """
        return piece * (16 + 10 * word_nbytes)

    # ---- differences from a base: these will do where the device is the host
    def subtract_base(self, words: Any, base: Any, difference: Difference) -> Any:
        """What is coded in place of `words`, a new device array;
        `base` is one of the same shape and type. Spec: R12.5.
        """
        return differences.subtract(words, base, difference)

    def add_base(self, coded: Any, base: Any, difference: Difference) -> int:
        """Inverse of `subtract_base`: `coded` becomes the words. Returns their CRC-32."""
        differences.add(coded, base, difference)
        return self.crc32(coded)

    # ---- sparse tensors: these will do where the device is the host
    def list_changes(self, words: Any, base: Any, segment: int, most: int) -> Changes | None:
        """The words that differ from those of a base; ``None`` if they are more than `most`.
        Spec: 12.1.

        Parameters
        ----------
        words, base
            Unsigned device arrays of shape (n,) and the same type, C-contiguous.
        segment
            Words of a segment.
        """
        if np.count_nonzero(words != base) > most:
            return None
        return sparse.list_changes(words, base, segment)

    def places_of(
        self,
        gaps: Any,
        n_gaps: NDArray[np.int64],
        n_listed: NDArray[np.int64],
        starts: NDArray[np.int64],
        sizes: NDArray[np.int64],
    ) -> tuple[Any, NDArray[np.bool_]]:
        """As `wcodec.reference.sparse.places_of`: `gaps`, and the places that are returned, are on
        the device, all else on the host. No place is outside of its segment.
        """
        return sparse.places_of(gaps, n_gaps, n_listed, starts, sizes)

    def take(self, words: Any, places: Any) -> Any:
        """``words[places]``, a new device array of shape (n,); the words have any shape, and places
        are those of `places_of`.
        """
        return words.reshape(-1)[places]

    def put(self, words: Any, places: Any, values: Any) -> None:
        """``words[places] = values``, in place."""
        words.reshape(-1)[places] = values

    def put_lists(
        self,
        arrays: Sequence[Any],
        gaps: Any,
        listed: Any,
        segments: ListedSegments,
        difference: Difference,
    ) -> Put:
        """Put listed words into arrays that hold those of the base. An array in which a segment is
        wrong stays as it is. Spec: 12.1. This will do; a backend may have a faster one.

        Parameters
        ----------
        arrays
            Device arrays of words of any shapes, changed in place.
        gaps, listed
            Device arrays of shape (n,): gaps and coded words of all segments, one after another.
            What is in `listed` afterwards is not specified.
        """
        places, right = self.places_of(gaps, *segments[1:5])
        ends, of_arrays = segments.ends(), segments.ends_of(len(arrays)).tolist()
        parts = list(zip(arrays, pairwise(of_arrays), strict=True))
        before = listed.copy()
        for array, (a, b) in parts:
            before[a:b] = self.take(array, places[a:b])
        self.add_base(listed, before, difference)
        become, were = (
            self.checksums(some.view(np.uint8), ends * listed.dtype.itemsize)
            == segments.words_crc32
            for some in (listed, before)
        )
        status = np.where(were, PutStatus.THERE, PutStatus.OTHER).astype(np.uint8)
        status[become], status[~right] = PutStatus.PUT, PutStatus.BAD_GAPS
        put = Put(status, places, before)
        for k in np.flatnonzero(status == PutStatus.THERE).tolist():
            listed[ends[k] : ends[k + 1]] = before[ends[k] : ends[k + 1]]
        wrong = put.wrong_arrays(segments)
        for i, (array, (a, b)) in enumerate(parts):
            if i not in wrong and b > a:
                self.put(array, places[a:b], listed[a:b])
        return put

    def read_tables(self, data: bytes, offset: int, n: int) -> tuple[list[Table], int]:
        """As `wcodec.reference.tables.read_tables`, which will do;
        a backend may have a faster one.
        """
        return read_tables(data, offset, n)

    def check_plan(self, plan: SegmentPlan) -> None:
        """As `wcodec.reference.records.check_plan`, which will do; a backend may have a faster one,
        and set ``plan.payload_nbytes``.
        """
        check_plan(plan)

    # ---- checksums: these will do where the device is the host
    def encode_with_checksums(
        self, plan: SegmentPlan, words: Any
    ) -> tuple[EncodedSegments, Checksums]:
        """`encode_segments`, and the checksums of what it read and wrote:
        in one pass, where a backend can.
        """
        encoded = self.encode_segments(plan, words)
        done = plan.encoded(encoded.n_units, encoded.n_patches)
        return encoded, Checksums(
            self.checksums(encoded.payload, done.offsets), self.crc32(self.to_host(words))
        )

    def encode_in_parts(self, plan: SegmentPlan, words: Any) -> tuple[EncodedSegments, Checksums]:
        """`encode_with_checksums`, but the payload is a sequence of arrays, which it is made of one
        after another: where threads write parts of it, no one needs to put them together.
        """
        encoded, sums = self.encode_with_checksums(plan, words)
        return encoded._replace(payload=[encoded.payload]), sums

    def decode_with_checksums(
        self, plan: SegmentPlan, payload: Any, out: Any
    ) -> tuple[NDArray[np.uint8], Checksums]:
        """`decode_segments`, and the checksums of what it read and wrote:
        in one pass, where a backend can.

        Records whose checksums are wrong are decoded too;
        whoever compares them drops what came out.
        """
        records = self.checksums(payload, plan.offsets)
        status = self.decode_segments(plan, payload, out)
        return status, Checksums(records, self.crc32(self.to_host(out)))

    def checksums(self, payload: Any, offsets: NDArray[np.int64]) -> NDArray[np.uint32]:
        """CRC-32 of each record ``payload[offsets[k] : offsets[k + 1]]``, uint32 on the host.
        Spec: chapter 11.
        """
        return crc32_each(self.to_host(payload), offsets)

    def crc32(self, words: Any, start: int = 0) -> int:
        """CRC-32 of all bytes of a C-contiguous host array, continuing `start`.
        Spec: chapter 11.
        """
        return crc32(words, start)

    def crc32_of(self, words: Any) -> int:
        """CRC-32 of all bytes of a device array, as `crc32`."""
        return self.crc32(self.to_host(words))

    def close(self) -> None:
        """Give back threads and buffers. The backend may be used again: it then takes new ones."""
