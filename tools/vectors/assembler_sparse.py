"""Lists of a sparse tensor (12.1), after the spec alone: a second implementation that shares no
code with the package. `assembler` makes files of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from assembler_coding import Segment

SPARSE = 4  #: flag of a tensor


@dataclass(frozen=True)
class Sparse:
    """All choices about the lists of a tensor.

    Attributes
    ----------
    gaps, words
        How the lists are stored: one for each segment that has listed words, or one that stands for
        all.
    also
        Numbers of words of the tensor that are listed, though they are those of the base.
    listed
        Of each segment, the numbers of all words that it lists, ascending; if it is not given,
        those that differ from the base, and `also`.
    own_gaps
        By number of the segment: what is stored in place of the gaps that lead to its words.
    tail
        Bytes of the payload behind the lists: none in a file after the rules.
    spoil
        Spoils a stream before it is stored, given ``gaps`` or ``words``, the number of the list,
        and that of the plane.
    """

    gaps: tuple[Segment, ...] = (Segment(),)
    words: tuple[Segment, ...] = (Segment(),)
    also: tuple[int, ...] = ()
    listed: tuple[tuple[int, ...], ...] | None = None
    own_gaps: dict[int, tuple[int, ...]] = field(default_factory=dict)
    tail: bytes = b""
    spoil: Callable[[str, int, int, bytes], bytes] | None = None

    def places(self, words: Sequence[int], base: Sequence[int], size: int) -> list[list[int]]:
        """Numbers of the words that each segment of `size` words lists."""
        if self.listed is not None:
            return [list(of_segment) for of_segment in self.listed]
        differ = {i for i, (w, b) in enumerate(zip(words, base, strict=True)) if w != b}
        all_listed = sorted(differ | set(self.also))
        return [
            [i for i in all_listed if start <= i < start + size]
            for start in range(0, len(words), size)
        ]

    def stored_gaps(self, k: int, places: Sequence[int], size: int) -> list[int]:
        """R12.11: the gaps that are stored for segment `k`."""
        return list(self.own_gaps.get(k, gaps_to(places, k * size)))


def gaps_to(places: Sequence[int], start: int) -> list[int]:
    """R12.11: gaps that lead from the word `start` on to these words."""
    gaps, at = list[int](), start
    for place in places:
        while place - at >= 255:
            gaps.append(255)
            at += 255
        gaps.append(place - at)
        at = place + 1
    return gaps
