"""What is in directories and at URLs: sizes, what is held more than once, and what bases would
save. `wcodec du`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from wcodec.backends import Backend, get_backend
from wcodec.codec.pipelining import Progress, ignore_progress, map_ahead
from wcodec.codec.remote import AT_ONCE
from wcodec.codec.urls import Url
from wcodec.errors import DecodeError
from wcodec.files.atomic import AnyPath
from wcodec.inspect.places import Failures, Found, find_files
from wcodec.inspect.sampling import (
    MOST_PAIRS,
    SAMPLE_NBYTES,
    Candidate,
    Pair,
    Sample,
    choose_pairs,
    sample,
    strata_nbytes,
    strata_of,
)
from wcodec.inspect.sharing import (
    Copy,
    Digests,
    by_checksums,
    by_sha256,
    candidates,
    describe_same,
)
from wcodec.inspect.weights import (
    Held,
    Limits,
    Weights,
    is_named_weights,
    open_weights,
)

#: what files are, as reports call them; of those of weights that cannot be read, no more is known
FORMS: Final = ("wcodec", "hub", "safetensors", "other", "unreadable")

_RECORD_NBYTES: Final = 64  #: about what a tensor takes that is as in the base

#: Given how many bytes there are to do, a context in which progress is shown.
Progresses = Callable[[int], AbstractContextManager[Progress]]


@contextmanager
def no_progress(_: int) -> Iterator[Progress]:
    """Progress that nobody wants to see."""
    yield ignore_progress


@dataclass
class Entry:
    """A file, and what it holds."""

    found: Found
    form: str
    nbytes: int
    held: list[Held]
    needs_base: bool = False
    base_name: str = ""


@dataclass
class _Survey:
    """Files, what is known of them, and what came in the way."""

    backend: Backend
    limits: Limits
    failures: Failures
    entries: list[Entry]

    def label(self, number: int) -> str:
        return self.entries[number].found.label

    @contextmanager
    def opened(self, number: int) -> Iterator[Weights]:
        """A file, once more.

        Raises
        ------
        DecodeError
            ``changed``
        """
        found = self.entries[number].found
        weights = open_weights(found.place, self.backend, self.limits)
        if weights is None:  # it was a file of weights
            raise DecodeError("changed", "another file has its name by now")
        with closing(weights):
            if weights.held != self.entries[number].held:
                raise DecodeError("changed", "it holds other tensors than before")
            yield weights


def usage(
    places: Iterable[AnyPath],
    backend: Backend | None = None,
    *,
    full: bool = False,
    sampled: bool = True,
    max_pairs: int = MOST_PAIRS,
    sample_nbytes: int = SAMPLE_NBYTES,
    progresses: Progresses = no_progress,
    max_nbytes: int | None = None,
    max_memory: int | None = None,
) -> dict[str, Any]:
    """What files there are, and how much of them could be saved.

    Of files of weights, headers and indexes are read.

    Parameters
    ----------
    places
        Files and directories, by their paths or URLs.
    backend
        ``None`` for the one of `wcodec.get_backend`.
    full
        Read tensors whose CRC-32 stands nowhere, and all that have dtype, shape and CRC-32 in
        common, and compare these by SHA-256.
    sampled
        Encode some rows of files as differences from others.
    max_pairs, sample_nbytes
        Files of which that is done, and about how many bytes of each are read.
    progresses
        Called with the bytes that are about to be read.
    max_nbytes, max_memory
        As of `wcodec.open`, for each file.

    Returns
    -------
    As `wcodec du --json` prints it.
    """
    backend, given = backend or get_backend(), [str(place) for place in places]
    failures = Failures()
    survey = _Survey(backend, Limits(max_nbytes, max_memory), failures, [])
    survey.entries = list(_entries(find_files(places, failures), survey))
    digests = Digests(backend)
    duplicates = _duplicates(survey, digests, full, progresses)
    bases = _bases(survey, digests, max_pairs, sample_nbytes, progresses) if sampled else None
    return {
        "places": given,
        **_sizes(survey.entries),
        "duplicates": duplicates,
        "bases": bases,
        "files": [
            {
                "file": e.found.label,
                "form": e.form,
                "n_tensors": len(e.held),
                "nbytes": e.nbytes,
                "stored_nbytes": e.found.nbytes,
                "base": e.base_name if e.needs_base else None,
            }
            for e in survey.entries
        ],
        "errors": failures.listed,
    }


# ---- what is there -------------------------------------------------------------------------------
def _entries(files: list[Found], survey: _Survey) -> Iterator[Entry]:
    """What each file holds; of remote ones, several are opened at once."""
    is_remote = any(isinstance(f.place, Url) for f in files)
    yield from map_ahead(partial(_entry, survey), files, AT_ONCE * is_remote)


def _entry(survey: _Survey, found: Found) -> Entry:
    is_named = is_named_weights(found.place.name)
    if not is_named and not found.is_given:
        return Entry(found, "other", found.nbytes, [])
    with survey.failures.noted(found.label):
        weights = open_weights(found.place, survey.backend, survey.limits, is_named)
        if weights is None:
            return Entry(found, "other", found.nbytes, [])
        with closing(weights):
            return Entry(
                found._replace(nbytes=weights.stored_nbytes),
                weights.form,
                weights.nbytes,
                weights.held,
                weights.needs_base,
                weights.base_name,
            )
    return Entry(found, "unreadable", found.nbytes, [])


def _sizes(entries: list[Entry]) -> dict[str, Any]:
    forms, dtypes = dict[str, dict[str, int]](), dict[str, dict[str, int]]()
    for form in FORMS:
        some = [e for e in entries if e.form == form]
        forms[form] = {
            "n_files": len(some),
            "n_tensors": sum(len(e.held) for e in some),
            "nbytes": sum(e.nbytes for e in some),
            "stored_nbytes": sum(e.found.nbytes for e in some),
        }
    for e in entries:
        for t in e.held:
            of = dtypes.setdefault(t.dtype, {"n_tensors": 0, "nbytes": 0, "stored_nbytes": 0})
            of["n_tensors"] += 1
            of["nbytes"] += t.nbytes
            of["stored_nbytes"] += t.stored_nbytes
    totals = {key: sum(of[key] for of in forms.values()) for key in forms["other"]}
    ranked = sorted(dtypes.items(), key=lambda item: (-item[1]["stored_nbytes"], item[0]))
    return {**totals, "forms": forms, "dtypes": dict(ranked)}


# ---- what is there more than once ----------------------------------------------------------------
def _duplicates(
    survey: _Survey, digests: Digests, full: bool, progresses: Progresses
) -> dict[str, Any]:
    copies = [Copy(i, t) for i, e in enumerate(survey.entries) for t in e.held]
    if full:
        _read(survey, digests, [c for c in copies if c.held.crc32 is None], progresses)
        groups = candidates(copies, digests.crc32s)
        _read(survey, digests, [c for group in groups for c in group], progresses)
        same = by_sha256(groups, digests.sha256s)
    else:
        same = by_checksums(candidates(copies, {}))
    left_out = [
        c.held for c in copies if c.held.crc32 is None and (c.file, c.held.name) not in
        digests.crc32s
    ]  # fmt: skip
    return {
        "compared_by": "sha256" if full else "crc32",
        "not_compared": {"n_tensors": len(left_out), "nbytes": sum(t.nbytes for t in left_out)},
        **describe_same(same, survey.label),
    }


def _read(survey: _Survey, digests: Digests, wanted: list[Copy], progresses: Progresses) -> None:
    """Read tensors in full, those that were not read before: each file from front to back."""
    by_file = defaultdict[int, list[Held]](list)
    for c in wanted:
        if (c.file, c.held.name) not in digests.sha256s:
            by_file[c.file].append(c.held)
    if not by_file:
        return
    total = sum(t.nbytes for held in by_file.values() for t in held)
    with progresses(total) as progress:
        for number, held in sorted(by_file.items()):
            with survey.failures.noted(survey.label(number)), survey.opened(number) as weights:
                names = {t.name for t in held}
                with weights.ahead():
                    for t in weights.held:
                        if t.name in names:
                            digests.read(number, weights, t, progress)


# ---- what bases would save -----------------------------------------------------------------------
def _bases(
    survey: _Survey, digests: Digests, max_pairs: int, nbytes: int, progresses: Progresses
) -> dict[str, Any]:
    crc32s = defaultdict[int, dict[str, int]](dict)
    for (number, name), crc in digests.crc32s.items():
        crc32s[number][name] = crc
    some = [
        Candidate(
            i,
            e.held,
            {**crc32s[i], **{t.name: t.crc32 for t in e.held if t.crc32 is not None}},
        )
        for i, e in enumerate(survey.entries)
        if e.held and not e.needs_base
    ]
    pairs, n_left_out = choose_pairs(some, max_pairs)
    strata = [strata_of(pair.differing, nbytes) for pair in pairs]
    found = list[dict[str, Any]]()
    with progresses(2 * sum(map(strata_nbytes, strata))) as progress:
        for pair, of in zip(pairs, strata, strict=True):
            number = pair.file
            with survey.failures.noted(survey.label(number)), survey.opened(number) as file:
                base = survey.opened(pair.base)
                with survey.failures.noted(survey.label(pair.base)), base as other:
                    is_remote = isinstance(survey.entries[number].found.place, Url)
                    how = survey.backend, AT_ONCE * is_remote, progress
                    found.append(
                        _estimate(survey, pair, sample(file, other, pair.differing, of, *how))
                    )
    return {
        "pairs": found,
        "n_left_out": n_left_out,
        "n_failed": len(pairs) - len(found),
        "saved_nbytes": sum(max(0, e["saved_nbytes"]) for e in found),
    }


def _estimate(survey: _Survey, pair: Pair, of: Sample) -> dict[str, Any]:
    """Bytes of a file as it is, encoded, and encoded with a base."""
    entry = survey.entries[pair.file]
    shared = {t.name for t in (*pair.differing, *pair.equal)}
    rest = [t for t in entry.held if t.name not in shared]
    now = alone = entry.found.nbytes
    left = sum(t.stored_nbytes for t in rest)
    if entry.form == "safetensors" and of.nbytes:  # the rest would be encoded too
        rate = min(1.0, of.alone_nbytes / sum(t.nbytes for t in pair.differing))
        alone, left = round(entry.nbytes * rate), round(left * rate)
    with_base = left + of.with_base_nbytes + _RECORD_NBYTES * len(pair.equal)
    with_base = min(with_base, alone)
    return {
        "file": entry.found.label,
        "base": survey.label(pair.base),
        "n_shared": len(shared),
        "n_equal": len(pair.equal),
        "shared_nbytes": pair.shared_nbytes,
        "sample_nbytes": of.nbytes,
        "now_nbytes": now,
        "alone_nbytes": alone,
        "with_base_nbytes": with_base,
        "saved_nbytes": now - with_base,
    }
