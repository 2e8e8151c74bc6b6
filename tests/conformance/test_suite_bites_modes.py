"""Deliberately broken backends, as in test_suite_bites.py: transforms, contexts, classes of rows
and columns, differences.

Most are at one with themselves: what they write they read.
Only the vectors tell that they are wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest import mock

import numpy as np
import pytest
from test_suite_bites import check_fails, check_unbroken_passes

from wcodec.backends.reference import ReferenceBackend
from wcodec.reference import contexts, prediction, rans, segments, tables, transforms
from wcodec.reference.differences import Difference
from wcodec.reference.planes import Layout
from wcodec.reference.prediction import PER_TILE
from wcodec.reference.segments import Status
from wcodec.reference.tiles import element_order
from wcodec.reference.transforms import Transform


class Patched(ReferenceBackend):
    """The reference with other functions in some places: pairs of a module and a name, and what
    makes the new out of the old one.
    """

    patches: tuple[tuple[Any, str, Callable[[Any], Any]], ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.new = [(where, name, make(getattr(where, name))) for where, name, make in self.patches]

    def _patched(self) -> ExitStack:
        stack = ExitStack()
        for where, name, new in self.new:
            stack.enter_context(mock.patch.object(where, name, new))
        return stack

    def encode_segments(self, plan, words):
        with self._patched():
            return super().encode_segments(plan, words)

    def decode_segments(self, plan, payload, out):
        with self._patched():
            return super().decode_segments(plan, payload, out)

    def histogram(self, words, geometry, dtype, **more):
        with self._patched():
            return super().histogram(words, geometry, dtype, **more)


# ---- transforms ----------------------------------------------------------------------------------
class PredictsZero(Patched):
    """NONE predicts 0 in front of a transform too."""

    patches = ((prediction, "CENTRE", lambda old: 0),)


class RoundsDown(Patched):
    """Products of lifting steps are rounded down."""

    patches = (
        (
            transforms,
            "_product",
            lambda old: lambda y, s, c: (y[..., s] * np.int16(c)) >> np.int16(7),
        ),
    )


class Saturates(Patched):
    """Steps stop at -128 and 127 instead of going on at the other end."""

    patches = (
        (transforms, "_signed", lambda old: lambda y: np.clip(y, -128, 127).astype(np.int16)),
    )


def turned(old):
    return lambda tile, transform: np.ascontiguousarray(
        old(np.ascontiguousarray(tile.swapaxes(-1, -2)), transform).swapaxes(-1, -2)
    )


class ColumnsFirst(Patched):
    """Transforms columns before rows."""

    patches = ((transforms, "forward", turned), (transforms, "inverse", turned))


def whole_alone(old):
    return lambda tile, transform: (
        tile.copy() if tile.shape[-1] % 8 or tile.shape[-2] % 8 else old(tile, transform)
    )


class LeavesRaggedTiles(Patched):
    """Does not transform tiles that are no multiple of 8."""

    patches = ((transforms, "forward", whole_alone), (transforms, "inverse", whole_alone))


class TransformsAgain(Patched):
    """Takes the ADST for a DCT."""

    patches = ((transforms, "ROWS", lambda old: old | {Transform.ADST: old[Transform.DCT]}),)


class OtherOrder(Patched):
    """The two highest coefficients of the ADST are exchanged."""

    patches = (
        (transforms, "ORDER", lambda old: old | {Transform.ADST: (*old[Transform.ADST][:6], 0, 5)}),
    )


class CountsResiduals(ReferenceBackend):
    """Histograms of modes with a transform are those without."""

    def histogram(self, words, geometry, dtype, *, mode=0, **more):
        return super().histogram(words, geometry, dtype, mode=mode & 15, **more)


class RefusesTransforms(ReferenceBackend):
    """Knows only predictions as modes of tiles."""

    def decode_segments(self, plan, payload, out):
        status = super().decode_segments(plan, payload, out)
        for k, (at, n) in enumerate(
            zip(plan.offsets.tolist(), plan.modes_nbytes.tolist(), strict=False)
        ):
            if (payload[at : at + n] > prediction.Mode.PLANAR).any() and status[k] == Status.OK:
                status[k] = Status.BAD_TILE_MODE
        return status


# ---- contexts ------------------------------------------------------------------------------------
def of_residuals(old):
    def wrong(plan, p, k, scales, first):
        mode = plan.segments.prediction[0, k]
        if p > 0 and plan.segments.layout[k] == Layout.BYTES and mode != PER_TILE:
            first = segments.each_tile(
                plan, k, first, np.array([mode], np.uint8), prediction.residuals
            )
        return old(plan, p, k, scales, first)

    return wrong


class ContextOfResiduals(Patched):
    """The context is what the stream of plane 0 codes, not its bytes."""

    patches = ((contexts, "classes_of", of_residuals),)


def exchanged(old):
    def wrong(plan, context_map, p, k, scales, first):
        halves = plan.segments.layout[k] == Layout.PAIRS and plan.dtype.word_nbytes > 1
        return old(
            plan,
            context_map,
            p,
            k,
            scales,
            first >> np.uint8(4) | first << np.uint8(4) if halves else first,
        )

    return wrong


class HighHalfFirst(Patched):
    """The context of the first of two words is the code in the high half."""

    patches = ((contexts, "contexts_of", exchanged),)


class ContextOfPatchedValues(ReferenceBackend):
    """The context of a word with a patch comes from its value, not from its code."""

    def decode_segments(self, plan, payload, out):
        old = contexts.contexts_of

        def wrong(plan, context_map, p, k, scales, first):
            codes = old(plan, context_map, p, k, scales, first).copy()
            if context_map.kind == tables.ContextKind.PLANE and plan.segments.n_patches[k]:
                patches = payload[plan.patch_offsets[k] :][
                    : 4 * int(plan.segments.n_patches[k])
                ].view("<u4")
                codes[patches & 0xFFFFFF] = (patches >> 24) - plan.segments.base[k] & 15
            return codes

        with mock.patch.object(contexts, "contexts_of", wrong):
            return super().decode_segments(plan, payload, out)


def of_segment(old):
    def wrong(plan, context_map, p, k, scales, first):
        if context_map.kind != tables.ContextKind.POSITION:
            return old(plan, context_map, p, k, scales, first)
        g, (rows, cols) = plan.geometry, plan.geometry.rectangle(k)
        width = cols.stop - cols.start
        r, c = np.divmod(
            element_order(rows.stop - rows.start, width, g.tile_rows, g.tile_cols), width
        )
        step = 1 + (plan.plane_nbytes[p, k] < r.size)
        return (r % 8 * 8 + c % 8).astype(np.uint8)[::step]

    return wrong


class PositionInSegment(Patched):
    """Counts rows and columns from the segment's corner, not from the tile's."""

    patches = ((contexts, "contexts_of", of_segment),)


def of_second(old):
    def wrong(plan, context_map, p, k, scales, first):
        got = old(plan, context_map, p, k, scales, first)
        if (
            context_map.kind == tables.ContextKind.PLANE
            or plan.plane_nbytes[p, k] == plan.n_elements[k]
        ):
            return got
        whole = mock.Mock(
            wraps=plan, plane_nbytes=np.full_like(plan.plane_nbytes, plan.n_elements[k])
        )
        whole.geometry, whole.segments = plan.geometry, plan.segments
        every = old(whole, context_map, p, k, scales, first)
        got = got.copy()
        got[: every.size // 2] = every[1::2]
        return got

    return wrong


class SecondElementCounts(Patched):
    """The place of two words is that of the second one."""

    patches = ((contexts, "contexts_of", of_second),)


class ColumnsBeforeRows(Patched):
    """Takes the first classes of a record for those of the columns."""

    patches = (
        (contexts, "unpack_scales", lambda old: lambda packed, h, w: old(packed, w, h)[::-1]),
    )


def high_bits_first(old):
    return lambda packed, h, w: old(
        (packed >> np.uint8(6))
        | (packed >> np.uint8(2) & 12)
        | (packed << np.uint8(2) & 48)
        | packed << np.uint8(6),
        h,
        w,
    )


class HighBitsFirst(Patched):
    """The first of four classes stands in the highest bits."""

    patches = ((contexts, "unpack_scales", high_bits_first),)


class FillsUnderTheLastClass(Patched):
    """Decodes the filling under the table of the last symbol."""

    def decode_segments(self, plan, payload, out):
        class Rows(rans._Rows):
            def __init__(self, sizes, tables, classes):
                super().__init__(sizes, tables, classes)
                for i, size in enumerate(sizes if self.of_symbols is not None else ()):
                    line = self.of_symbols[i].reshape(-1)
                    line[size:] = line[size - 1]

        with mock.patch.object(rans, "_Rows", Rows):
            return super().decode_segments(plan, payload, out)


class OneTable(Patched):
    """Codes everything under the table of class 0."""

    patches = ((contexts, "classes_of", lambda old: lambda plan, p, k, scales, first: None),)


class ModesFirst(ReferenceBackend):
    """Finds a wrong mode of a tile before it looks at any stream."""

    def decode_segments(self, plan, payload, out):
        status = super().decode_segments(plan, payload, out)
        for k, (at, n) in enumerate(
            zip(plan.offsets.tolist(), plan.modes_nbytes.tolist(), strict=False)
        ):
            if not prediction.IS_MODE[payload[at : at + n]].all():
                status[k] = Status.BAD_TILE_MODE
        return status


class ModesLast(ReferenceBackend):
    """Decodes streams under contexts that a wrong mode has spoilt, and says so."""

    def decode_segments(self, plan, payload, out):
        status = super().decode_segments(plan, payload, out)
        context = (plan.segments.coder[1:] == segments.Coder.CONTEXT).any(axis=0)
        status[context & (status == Status.BAD_TILE_MODE)] = Status.BAD_STREAM
        return status


# ---- differences ---------------------------------------------------------------------------------
class SignLast(ReferenceBackend):
    """Takes odd differences for the positive ones."""

    def add_base(self, coded, base, difference):
        if difference == Difference.MINUS:
            coded ^= coded.dtype.type(1)
        return super().add_base(coded, base, difference)


class AlwaysXor(ReferenceBackend):
    """Knows one difference."""

    def add_base(self, coded, base, difference):
        return super().add_base(coded, base, Difference.XOR)

    def subtract_base(self, words, base, difference):
        return super().subtract_base(words, base, Difference.XOR)


class ChecksTheDifference(ReferenceBackend):
    """Gives the CRC-32 of the differences for that of the words."""

    def add_base(self, coded, base, difference):
        crc = self.crc32(coded)
        super().add_base(coded, base, difference)
        return crc


#: what each must fail, all of it
BROKEN = {
    PredictsZero: ["accept/dct_none", "accept/adst_none", "kernels/transform_8x8"],
    RoundsDown: ["accept/dct_none", "accept/adst_planar", "accept/transform_9x24",
                 "kernels/modes_mixed"],
    Saturates: ["accept/modes_wrap", "kernels/modes_wrap"],
    ColumnsFirst: ["accept/dct_none", "accept/adst_left", "kernels/transform_8x8"],
    LeavesRaggedTiles: ["accept/dct_none", "accept/transform_15x16", "accept/transform_1x50",
                        "accept/transform_50x1"],
    TransformsAgain: ["accept/adst_none", "accept/modes_ragged", "accept/modes_of_eight_planes"],
    OtherOrder: ["accept/adst_none", "accept/transform_1x8", "accept/transform_edges"],
    CountsResiduals: ["kernels/dct_top", "kernels/base_bytes"],
    RefusesTransforms: ["accept/modes_wrap", "accept/base_modes", "kernels/transform_edges"],
    ContextOfResiduals: ["accept/context_plane_predicted_top",
                         "accept/context_plane_predicted_dct"],
    HighHalfFirst: ["accept/context_plane_pairs_bfloat16", "accept/context_plane_patched",
                    "kernels/context_plane_16_classes"],
    ContextOfPatchedValues: ["accept/context_plane_patched"],
    PositionInSegment: ["accept/context_position_tiles", "accept/context_position_pairs_int8"],
    SecondElementCounts: ["accept/context_position_pairs_bfloat16",
                          "accept/context_scale_pairs_int8"],
    ColumnsBeforeRows: ["accept/context_scale_30x50", "accept/context_scale_shared"],
    HighBitsFirst: ["accept/context_scale_5x7", "accept/base_contexts"],
    FillsUnderTheLastClass: ["accept/context_filling"],
    OneTable: ["accept/context_plane_bfloat16", "accept/context_position_dct",
               "accept/context_scale_shared"],
    ModesFirst: ["duty/faults"],
    ModesLast: ["duty/faults", "reject/tile_mode_of_context"],
    SignLast: ["accept/difference_minus_w1", "accept/difference_minus_w8", "duty/differences"],
    AlwaysXor: ["accept/difference_minus_w2", "accept/difference_mixed", "duty/differences"],
    ChecksTheDifference: ["accept/difference_xor_w4", "duty/differences"],
}  # fmt: skip


@pytest.mark.parametrize("backend", BROKEN, ids=lambda c: c.__name__)
def test_broken_backend_fails(backend: type[ReferenceBackend]):
    check_fails(backend(), BROKEN)


def test_unbroken_backend_passes_all_of_these():
    check_unbroken_passes(BROKEN)
