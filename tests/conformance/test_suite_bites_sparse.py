"""Deliberately broken backends, as in test_suite_bites.py: lists of sparse tensors."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from test_suite_bites import check_fails, check_unbroken_passes

from wcodec import conformance
from wcodec.backends.reference import ReferenceBackend
from wcodec.reference.sparse import Put, PutStatus
from wcodec.reference.tiles import Spans


# ---- finding changes -----------------------------------------------------------------------------
class SkipsLess(ReferenceBackend):
    """Lists nothing in gaps of 254 too."""

    def list_changes(self, words, base, segment, most):
        found = super().list_changes(words, base, segment, most)
        if found is None:
            return None
        gaps = found.gaps.copy()
        gaps[gaps == 254] = 255
        return found._replace(gaps=gaps)


class GoesOn(ReferenceBackend):
    """Counts from the last listed word, whatever segment it is in."""

    def list_changes(self, words, base, segment, most):
        found = super().list_changes(words, base, segment, most)
        whole = super().list_changes(words, base, max(1, words.size), most)
        if found is None or whole is None or whole.gaps.size != found.gaps.size:
            return found
        return found._replace(gaps=whole.gaps)


class IgnoresMost(ReferenceBackend):
    """Lists all changes, however many they are."""

    def list_changes(self, words, base, segment, most):
        return super().list_changes(words, base, segment, words.size)


class OneTooMany(ReferenceBackend):
    """Lists one word more than it should."""

    def list_changes(self, words, base, segment, most):
        return super().list_changes(words, base, segment, most + 1)


class LooksAtTheLowByte(ReferenceBackend):
    """Sees changes in the lowest byte alone."""

    def list_changes(self, words, base, segment, most):
        low = words.dtype.type(255)
        return super().list_changes((words & low) | (base & ~low), base, segment, most)


class GivesTheBase(ReferenceBackend):
    """Mistakes the words of the base for the new ones."""

    def list_changes(self, words, base, segment, most):
        found = super().list_changes(words, base, segment, most)
        return found and found._replace(words=found.base, base=found.words)


class DropsTheRaggedEnd(ReferenceBackend):
    """Does not look at a last segment that is smaller than the others."""

    def list_changes(self, words, base, segment, most):
        whole = words.size // segment * segment
        words = np.concatenate([words[:whole], base[whole:]])
        return super().list_changes(words, base, segment, most)


# ---- places --------------------------------------------------------------------------------------
class ListsAt255(ReferenceBackend):
    """Lists a word behind each gap of 255."""

    def places_of(self, gaps, n_gaps, n_listed, starts, sizes):
        wide, bounds = gaps.astype(np.int64), np.cumsum(n_gaps)
        places, right = list[int](), np.ones(n_gaps.size, bool)
        for k, end in enumerate(bounds.tolist()):
            at = np.cumsum(wide[end - n_gaps[k] : end] + 1) - 1
            right[k] = at.size == n_listed[k] and at[-1] < sizes[k]
            places += np.resize(np.minimum(at, sizes[k] - 1), n_listed[k]).tolist()
        return np.array(places, np.int64) + np.repeat(starts, n_listed), right


class ForgetsTheListed(ReferenceBackend):
    """Counts skipped words alone, not the listed ones between them."""

    def places_of(self, gaps, n_gaps, n_listed, starts, sizes):
        places, right = super().places_of(gaps, n_gaps, n_listed, starts, sizes)
        of = np.arange(places.size) - np.repeat(np.cumsum(n_listed) - n_listed, n_listed)
        return np.maximum(places - of, np.repeat(starts, n_listed)), right


class CountsFromTheFirst(ReferenceBackend):
    """Takes all segments for neighbours."""

    def places_of(self, gaps, n_gaps, n_listed, starts, sizes):
        return super().places_of(gaps, n_gaps, n_listed, np.cumsum(sizes) - sizes, sizes)


class TakesAnyGaps(ReferenceBackend):
    """Finds all lists right."""

    def places_of(self, gaps, n_gaps, n_listed, starts, sizes):
        places, right = super().places_of(gaps, n_gaps, n_listed, starts, sizes)
        return places, np.ones_like(right)


class IgnoresALast255(ReferenceBackend):
    """Does not look at what stands behind the gap of the last listed word."""

    def places_of(self, gaps, n_gaps, n_listed, starts, sizes):
        gaps, ends = gaps.copy(), np.cumsum(n_gaps)
        n_gaps = n_gaps.copy()
        keep = np.ones(gaps.size, bool)
        for k, end in enumerate(ends.tolist()):
            while n_gaps[k] > 1 and gaps[end - 1] == 255:
                keep[end - 1], end, n_gaps[k] = False, end - 1, n_gaps[k] - 1
        return super().places_of(gaps[keep], n_gaps, n_listed, starts, sizes)


class GoesBeyondTheSegment(ReferenceBackend):
    """Takes places in the next segment too."""

    def places_of(self, gaps, n_gaps, n_listed, starts, sizes):
        return super().places_of(gaps, n_gaps, n_listed, starts, sizes + 300)


class IsOffByOne(ReferenceBackend):
    """Takes the word behind a segment too."""

    def places_of(self, gaps, n_gaps, n_listed, starts, sizes):
        return super().places_of(gaps, n_gaps, n_listed, starts, sizes + 1)


class LeavesWrongPlaces(ReferenceBackend):
    """Where gaps are wrong, gives places that may lie anywhere."""

    def places_of(self, gaps, n_gaps, n_listed, starts, sizes):
        places, right = super().places_of(gaps, n_gaps, n_listed, starts, sizes)
        wrong = np.repeat(~right, n_listed)
        places[wrong] += np.repeat(sizes, n_listed)[wrong]
        return places, right


class OneIsWrongAllAre(ReferenceBackend):
    """Finds no list right if one is wrong."""

    def places_of(self, gaps, n_gaps, n_listed, starts, sizes):
        places, right = super().places_of(gaps, n_gaps, n_listed, starts, sizes)
        return places, right & right.all()


class SpoilsTheGaps(ReferenceBackend):
    """Counts in the memory of the gaps."""

    def places_of(self, gaps, n_gaps, n_listed, starts, sizes):
        out = super().places_of(gaps, n_gaps, n_listed, starts, sizes)
        gaps[:1] ^= 1
        return out


# ---- words ---------------------------------------------------------------------------------------
class TakesNeighbours(ReferenceBackend):
    """Takes the words from the last of them on to the first."""

    def take(self, words, places):
        return super().take(words, places[::-1])


class TakesAView(ReferenceBackend):
    """Takes bytes where words have one byte, else the words of the first row."""

    def take(self, words, places):
        return words[0][places % words.shape[-1]] if words.ndim == 2 else words[places]


class PutsXor(ReferenceBackend):
    """Puts words on top of what is there."""

    def put(self, words, places, values):
        words.reshape(-1)[places] ^= values


class PutsOneMore(ReferenceBackend):
    """Writes beyond the last place."""

    def put(self, words, places, values):
        flat = words.reshape(-1)
        super().put(words, places, values)
        if places.size and places[-1] + 1 < flat.size:
            flat[places[-1] + 1] = values[-1]


class PutsACopy(ReferenceBackend):
    """Puts words into a copy."""

    def put(self, words, places, values):
        super().put(words.copy(), places, values)


class PutsWhatIsRight(ReferenceBackend):
    """Into arrays of which another segment is wrong, too."""

    def put_lists(self, arrays, gaps, listed, segments, difference):
        put = super().put_lists([a.copy() for a in arrays], gaps, listed, segments, difference)
        ends = segments.ends()
        for k in np.flatnonzero(put.status == PutStatus.PUT):
            of = slice(ends[k], ends[k + 1])
            self.put(arrays[segments.of[k]], put.places[of], listed[of])
        return put


class ChecksNothing(ReferenceBackend):
    """Puts words in whatever was there."""

    def put_lists(self, arrays, gaps, listed, segments, difference):
        places, right = self.places_of(gaps, *segments[1:5])
        ends = segments.ends_of(len(arrays))
        before = np.concatenate(
            [self.take(a, places[i:j]) for a, i, j in zip(arrays, ends, ends[1:], strict=False)]
        )
        self.add_base(listed, before, difference)
        for array, i, j in zip(arrays, ends, ends[1:], strict=False):
            self.put(array, places[i:j], listed[i:j])
        status = np.where(right, PutStatus.PUT, PutStatus.BAD_GAPS).astype(np.uint8)
        return Put(status, places, before)


class DoesItTwice(ReferenceBackend):
    """Does not see that words are there already."""

    def put_lists(self, arrays, gaps, listed, segments, difference):
        put = super().put_lists(arrays, gaps, listed, segments, difference)
        put.status[put.status == PutStatus.THERE] = PutStatus.OTHER
        return put


class SpansAreEqual(ReferenceBackend):
    """Takes all segments of a list for as long as the last one."""

    def decode_segments(self, plan, payload, out):
        status = super().decode_segments(plan, payload, out)
        if isinstance(plan.geometry, Spans):
            for start, end in pairwise(plan.geometry.bounds.tolist()):
                out[0, start + plan.n_elements[-1] : end] = 0
        return status


#: what each must fail, all of it
BROKEN = {
    SkipsLess: ["duty/list_changes"],
    GoesOn: ["duty/list_changes"],
    IgnoresMost: ["duty/list_changes"],
    OneTooMany: ["duty/list_changes"],
    LooksAtTheLowByte: ["duty/list_changes", "encode/encoder_sparse"],
    GivesTheBase: ["duty/list_changes", "encode/encoder_sparse"],
    DropsTheRaggedEnd: ["duty/list_changes"],
    ListsAt255: ["duty/places", "accept/sparse_gap_255", "accept/sparse_gaps_skip"],
    ForgetsTheListed: ["duty/places", "accept/sparse_all", "accept/sparse_segments"],
    CountsFromTheFirst: ["duty/places", "accept/sparse_second_segment"],
    TakesAnyGaps: ["duty/places", "reject/sparse_gaps_list_too_few", "reject/sparse_gaps_last_255"],
    IgnoresALast255: ["duty/places", "reject/sparse_gaps_last_255", "reject/sparse_gaps_all_255"],
    GoesBeyondTheSegment: ["duty/places", "reject/sparse_gaps_beyond_segment"],
    IsOffByOne: ["duty/places", "reject/sparse_gaps_at_end_of_segment"],
    LeavesWrongPlaces: ["duty/places"],
    OneIsWrongAllAre: ["duty/places"],
    SpoilsTheGaps: ["duty/places"],
    TakesNeighbours: ["duty/take_put", "accept/sparse_xor_w2", "accept/sparse_minus_w8"],
    TakesAView: ["duty/take_put"],
    PutsXor: ["duty/take_put", "accept/sparse_xor_w1"],
    PutsOneMore: ["duty/take_put", "accept/sparse_second_segment"],
    PutsACopy: ["duty/take_put", "accept/sparse_xor_w1"],
    PutsWhatIsRight: ["duty/put_lists"],
    ChecksNothing: ["duty/put_lists", "reject/sparse_crc32_of_words"],
    DoesItTwice: ["duty/put_lists"],
    SpansAreEqual: ["accept/base_sparse", "kernels/base_sparse"],
}  # fmt: skip


@pytest.mark.parametrize("backend", BROKEN, ids=lambda c: c.__name__)
def test_broken_backend_fails(backend: type[ReferenceBackend]):
    check_fails(backend(), BROKEN)


def test_unbroken_backend_passes_all_of_these():
    check_unbroken_passes(BROKEN)


class OneByOne(ReferenceBackend):
    """Takes no `Spans`, and says so."""

    takes_spans = False

    def decode_segments(self, plan, payload, out):
        assert not isinstance(plan.geometry, Spans)
        return super().decode_segments(plan, payload, out)

    def encode_segments(self, plan, words):
        assert not isinstance(plan.geometry, Spans)
        return super().encode_segments(plan, words)

    def histogram(self, words, geometry, dtype, **more):
        assert not isinstance(geometry, Spans)
        return super().histogram(words, geometry, dtype, **more)


def test_a_backend_that_takes_no_spans_gets_lists_segment_by_segment():
    report = conformance.run(OneByOne(), select=["kernels/sparse", "duty/places"])
    assert [str(o) for o in report.failed] == []
    assert report.totals["passed"] > 50
