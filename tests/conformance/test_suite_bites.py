"""Deliberately broken backends: each must make the suite fail, in the checks named here; the
unbroken one passes them.
"""

from __future__ import annotations

import time
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest

from wcodec import conformance
from wcodec.backends.protocol import EncodedSegments
from wcodec.backends.reference import ReferenceBackend
from wcodec.reference import decoding, encoding, prediction, rans, tables, tiles
from wcodec.reference.planes import Layout
from wcodec.reference.segments import Status


def check_fails(backend: ReferenceBackend, broken: dict[type[ReferenceBackend], list[str]]) -> None:
    """A broken backend fails all checks that are named for its class."""
    due = set(broken[type(backend)])
    report = conformance.run(backend, select=due)
    failed = {o.id for o in report.failed}
    assert due - failed == set(), "the suite lets these pass"
    assert not report.good


def check_unbroken_passes(broken: dict[type[ReferenceBackend], list[str]]) -> None:
    """The reference passes all of these checks."""
    due = {name for names in broken.values() for name in names}
    report = conformance.run(ReferenceBackend(), select=due)
    assert [str(o) for o in report.failed] == []
    assert due <= {o.id for o in report.outcomes if o.outcome == "passed"}


class IgnoresPatches(ReferenceBackend):
    """Takes every patch for one of the value `base`."""

    def decode_segments(self, plan, payload, out):
        payload = payload.copy()
        for k in np.flatnonzero(plan.segments.n_patches):
            at = int(plan.patch_offsets[k])
            payload[at + 3 : at + 4 * int(plan.segments.n_patches[k]) : 4] = plan.segments.base[k]
        return super().decode_segments(plan, payload, out)


class IgnoresPatchOrder(ReferenceBackend):
    """Does not look at the indices of patches."""

    def decode_segments(self, plan, payload, out):
        status = super().decode_segments(plan, payload, out)
        status[status == Status.BAD_PATCH] = Status.OK
        return status


class IgnoresFinalStates(ReferenceBackend):
    """Does not look at how a stream ends."""

    def decode_segments(self, plan, payload, out):
        status = super().decode_segments(plan, payload, out)
        status[status == Status.BAD_STREAM] = Status.OK
        return status


class IgnoresWordsLeft(ReferenceBackend):
    """Looks at the states, not at the words that are left."""

    def decode_segments(self, plan, payload, out):
        def lenient(streams, *more):
            symbols, good = decode_streams(streams, *more)
            shorter = [s[: max(rans.HEAD_NBYTES, s.size - rans.UNIT)] for s in streams]
            _, also = decode_streams(shorter, *more)
            return symbols, good | also

        decode_streams = rans.decode_streams
        with mock.patch.object(rans, "decode_streams", lenient):
            return super().decode_segments(plan, payload, out)


class AlwaysOk(ReferenceBackend):
    """Never finds fault."""

    def decode_segments(self, plan, payload, out):
        return np.zeros_like(super().decode_segments(plan, payload, out))


class Raises(ReferenceBackend):
    """Raises on a bad payload, where it should give a status."""

    def decode_segments(self, plan, payload, out):
        status = super().decode_segments(plan, payload, out)
        if status.any():
            raise ValueError("a bad payload")
        return status


class CountsBySumAlone(ReferenceBackend):
    """Counts all columns of a row by the number of its first one."""

    def joint_histogram(self, symbols, rows, cols, bins, shape):
        return super().joint_histogram(symbols, rows, cols[:1].repeat(cols.size), bins, shape)


class RoundsUp(ReferenceBackend):
    """AVG rounds up."""

    def decode_segments(self, plan, payload, out):
        def wrong(residual, mode):
            if mode != prediction.Mode.AVG:
                return original(residual, mode)
            tile = residual.copy()
            tile[0], tile[:, 0] = (
                np.cumsum(tile[0], dtype=np.uint8),
                np.cumsum(tile[:, 0], dtype=np.uint8),
            )
            for r in range(1, tile.shape[0]):
                for c in range(1, tile.shape[1]):
                    tile[r, c] += np.uint8((int(tile[r, c - 1]) + int(tile[r - 1, c]) + 1) // 2)
            return tile

        original = prediction.reconstruct
        with mock.patch.object(prediction, "reconstruct", wrong):
            return super().decode_segments(plan, payload, out)


class LanesBackwards(ReferenceBackend):
    """Keeps the start states from lane 31 down, when it writes and when it reads:
    it is at one with itself.
    """

    @staticmethod
    def turned(stream):
        head = stream[: rans.HEAD_NBYTES].reshape(-1, 4)[::-1].reshape(-1)
        return np.concatenate([head, stream[rans.HEAD_NBYTES :]])

    def encode_segments(self, plan, words):
        original = rans.encode_streams
        with mock.patch.object(
            rans, "encode_streams", lambda *a: [self.turned(s) for s in original(*a)]
        ):
            return super().encode_segments(plan, words)

    def decode_segments(self, plan, payload, out):
        original = rans.decode_streams
        with mock.patch.object(
            rans, "decode_streams", lambda s, *a: original([self.turned(x) for x in s], *a)
        ):
            return super().decode_segments(plan, payload, out)


class RaggedInRaster(ReferenceBackend):
    """Takes segments that tiles do not fill for a single tile, when it writes and when it reads."""

    @staticmethod
    def order(height, width, tile_rows, tile_cols):
        if height % tile_rows or width % tile_cols:
            return np.arange(height * width)
        return tiles.element_order(height, width, tile_rows, tile_cols)

    def encode_segments(self, plan, words):
        with mock.patch.object(encoding, "element_order", self.order):
            return super().encode_segments(plan, words)

    def decode_segments(self, plan, payload, out):
        with mock.patch.object(decoding, "element_order", self.order):
            return super().decode_segments(plan, payload, out)


class RawInTiles(ReferenceBackend):
    """Writes the words of layout RAW tile by tile."""

    def decode_segments(self, plan, payload, out):
        status = super().decode_segments(plan, payload, out)
        for k in np.flatnonzero(plan.segments.layout == Layout.RAW):
            part = out[plan.geometry.rectangle(k)]
            order = tiles.element_order(
                *part.shape, plan.geometry.tile_rows, plan.geometry.tile_cols
            )
            raster = np.empty(part.size, part.dtype)
            raster[order] = part.reshape(-1)
            part[...] = raster.reshape(part.shape)
        return status


class IgnoresTileModes(ReferenceBackend):
    """Takes a reserved mode of a tile for PLANAR."""

    def decode_segments(self, plan, payload, out):
        payload = payload.copy()
        for at, n in zip(plan.offsets.tolist(), plan.modes_nbytes.tolist(), strict=False):
            modes = payload[at : at + n]
            modes[~prediction.IS_MODE[modes]] = prediction.Mode.PLANAR
        return super().decode_segments(plan, payload, out)


def room_around(out):
    """All bytes of the array that `out` is a view of, and where `out` starts and ends there: no
    test writes outside of that.
    """
    room = out
    while isinstance(room.base, np.ndarray):
        room = room.base
    start = out.ctypes.data - room.ctypes.data
    return room.reshape(-1).view(np.uint8), start, start + out.nbytes


class WritesBeyond(ReferenceBackend):
    """Writes one byte after its output."""

    def decode_segments(self, plan, payload, out):
        status = super().decode_segments(plan, payload, out)
        room, _, end = room_around(out)
        if end < room.size:
            room[end] = 0
        return status


class WritesBefore(ReferenceBackend):
    """Writes one byte before its output, if the payload is bad."""

    def decode_segments(self, plan, payload, out):
        status = super().decode_segments(plan, payload, out)
        room, start, _ = room_around(out)
        if status.any() and start > 0:
            room[start - 1] = 0
        return status


class ChangesPayload(ReferenceBackend):
    """Uses its input as scratch."""

    def decode_segments(self, plan, payload, out):
        status = super().decode_segments(plan, payload, out)
        if payload.size and payload.flags.writeable:
            payload[0] ^= 1
        return status


class ChangesWords(ReferenceBackend):
    """Maps the words in place before it encodes them."""

    def encode_segments(self, plan, words):
        encoded = super().encode_segments(plan, words)
        if words.size and words.flags.writeable:
            words[0, 0] ^= words.dtype.type(1)
        return encoded


class PadsWithAnother(ReferenceBackend):
    """Fills the last group with the lowest symbol, not with the most probable one:
    it decodes, the bytes differ.
    """

    def encode_segments(self, plan, words):
        with mock.patch.object(
            tables.Table, "padding", property(lambda t: int(np.flatnonzero(t.freq)[0]))
        ):
            return super().encode_segments(plan, words)


class PadsWithHighest(ReferenceBackend):
    """Fills the last group with the highest of several symbols that are most probable."""

    def encode_segments(self, plan, words):
        with mock.patch.object(
            tables.Table,
            "padding",
            property(lambda t: int(np.flatnonzero(t.freq == t.freq.max())[-1])),
        ):
            return super().encode_segments(plan, words)


class ForgetsFill(ReferenceBackend):
    """Codes words outside of the window as 0, whatever the plan says."""

    def encode_segments(self, plan, words):
        return super().encode_segments(replace(plan, fill=None), words)


class CodesWhatTablesLack(ReferenceBackend):
    """Codes all pairs of codes in the window, also those that the table does not have."""

    def encode_segments(self, plan, words):
        with mock.patch.object(encoding, "patch_uncoded", lambda *given: given[:2]):
            return super().encode_segments(plan, words)


class PatchesWholePairs(ReferenceBackend):
    """Of a pair that a table does not have, changes both codes: all decoders read it."""

    def encode_segments(self, plan, words):
        def wrong(pairs, patches, top, coded, fill):
            lacking = ~coded[pairs]
            outside = np.zeros(2 * pairs.size, bool)
            outside[patches & 0xFFFFFF] = True
            changed = np.flatnonzero((outside | lacking.repeat(2))[: top.size]).astype(np.uint32)
            values = top[changed].astype(np.uint32) << np.uint32(24)
            return np.where(lacking, np.uint8(17 * fill), pairs), values | changed

        with mock.patch.object(encoding, "patch_uncoded", wrong):
            return super().encode_segments(plan, words)


class ForgetsUnits(ReferenceBackend):
    """Says of each stream that it is a unit longer."""

    def encode_segments(self, plan, words):
        encoded = super().encode_segments(plan, words)
        return EncodedSegments(
            encoded.payload, encoded.n_units + (encoded.n_units > 0), encoded.n_patches
        )


class CountsOneMore(ReferenceBackend):
    """A histogram that is off by one."""

    def histogram(self, words, geometry, dtype, **more):
        counts = super().histogram(words, geometry, dtype, **more)
        if counts.size:
            counts[-1, -1, 255] += 1
        return counts


class CountsWithoutFill(ReferenceBackend):
    """Leaves the fill code out of the histograms of pairs."""

    def histogram(self, words, geometry, dtype, *, fill=0, **more):
        return super().histogram(words, geometry, dtype, **more)


class FailsOnNothing(ReferenceBackend):
    """Cannot stand empty input."""

    def encode_segments(self, plan, words):
        if plan.geometry.n_segments == 0:
            raise IndexError("no segments")
        return super().encode_segments(plan, words)


class SharesScratch(ReferenceBackend):
    """Keeps the payload of a call in the object while it works."""

    scratch = None

    def decode_segments(self, plan, payload, out):
        self.scratch = payload
        time.sleep(0.002)
        return super().decode_segments(
            plan,
            self.scratch[: plan.offsets[-1]] if self.scratch.size >= plan.offsets[-1] else payload,
            out,
        )


class NoChecksums(ReferenceBackend):
    """Says of every record what the index says of an empty one."""

    def checksums(self, payload, offsets):
        return np.zeros(len(offsets) - 1, np.uint32)


#: what each must fail, all of it; cases are named as in the manifest, other checks as in the report
BROKEN = {
    IgnoresPatches: ["accept/base_pairs", "accept/patches_4", "accept/special_in_pairs_bfloat16",
                     "kernels/base_pairs"],
    IgnoresPatchOrder: ["reject/patch_order", "reject/patch_beyond", "reject/patch_twice",
                        "payload/base_pairs"],
    IgnoresFinalStates: ["reject/stream_state_lane_0", "reject/stream_word_too_few",
                         "payload/base_bytes"],
    IgnoresWordsLeft: ["reject/stream_8_words_left", "reject/stream_unit_too_many"],
    AlwaysOk: ["reject/stream_last_word", "reject/patch_order", "reject/tile_mode_5",
               "payload/base_tiles"],
    Raises: ["reject/stream_last_word", "reject/tile_mode_5", "payload/base_bytes"],
    RoundsUp: ["accept/avg_uint8", "accept/avg_bfloat16", "accept/base_tiles", "accept/avg_wraps"],
    LanesBackwards: ["accept/n_128_bytes", "encode/n_128_bytes", "kernels/base_bytes"],
    RaggedInRaster: ["accept/element_order", "accept/tiles_16x16_bytes", "kernels/base_tiles"],
    RawInTiles: ["accept/raw_in_tiles", "accept/tiles_16x16_raw"],
    IgnoresTileModes: ["reject/tile_mode_5", "reject/tile_mode_255", "reject/tile_mode_plane_1",
                       "payload/base_tiles"],
    WritesBeyond: ["kernels/base_bytes", "kernels/bytes_float64", "payload/base_bytes"],
    WritesBefore: ["payload/base_bytes"],
    ChangesPayload: ["kernels/base_bytes", "payload/base_bytes"],
    ChangesWords: ["kernels/base_bytes", "kernels/base_raw"],
    PadsWithAnother: ["encode/n_127_bytes", "encode/n_129_bytes", "kernels/base_bytes"],
    PadsWithHighest: ["kernels/table_fills_with_lowest"],
    ForgetsFill: ["kernels/base_pairs", "kernels/pairs_last_code_filled",
                  "encode/special_in_pairs_bfloat16"],
    CodesWhatTablesLack: ["duty/uncoded_pairs"],
    PatchesWholePairs: ["duty/uncoded_pairs"],
    ForgetsUnits: ["encode/n_127_bytes", "kernels/base_bytes"],
    CountsOneMore: ["kernels/base_bytes", "kernels/base_pairs", "kernels/raw_uint8"],
    CountsWithoutFill: ["kernels/base_pairs", "kernels/pairs_int8_both_coded"],
    FailsOnNothing: ["duty/empty_input"],
    CountsBySumAlone: ["duty/joint_histogram"],
    SharesScratch: ["duty/threads"],
    NoChecksums: ["accept/base_bytes", "kernels/base_bytes"],
}  # fmt: skip


@pytest.mark.parametrize("backend", BROKEN, ids=lambda c: c.__name__)
def test_broken_backend_fails(backend: type[ReferenceBackend]):
    check_fails(backend(), BROKEN)


def test_unbroken_backend_passes_all_of_these():
    check_unbroken_passes(BROKEN)
