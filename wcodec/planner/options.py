"""What a caller can choose. Spec: chapter 14 (informative)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from wcodec.errors import EncodeError
from wcodec.reference import tables
from wcodec.reference.prediction import Mode
from wcodec.reference.tiles import MAX_SEGMENT_ELEMENTS, MIN_TILE
from wcodec.reference.transforms import Transform

PRESETS: Final = ("fast", "default", "max")
LAYOUTS: Final = ("auto", "raw", "bytes", "pairs")
PREDICTORS: Final = ("auto", *(m.name.lower() for m in Mode))
TRANSFORMS: Final = ("auto", *(t.name.lower() for t in Transform))
CODERS: Final = ("auto", "raw", "rans", "context")
OPERANDS: Final = ("fixed", "rans")

_OPERAND_RULES_OUT: Final = (
    "segment",
    "tile",
    "predictor",
    "min_saving",
    "force",
    "preset",
    "transform",
    "coder",
)


@dataclass(frozen=True)
class EncodeOptions:
    """Choices that a caller can take out of the encoder's hands.

    Parameters
    ----------
    segment
        Rows and columns of a segment in the matrix view, which is a single row if the last
        dimensions make fewer than 64 columns (spec: R6.2, chapter 14); by default about 32768
        words, 16384 of 4 or 8 bytes, up to four times as many in large tensors; in preset ``max``
        524288 of a byte, 262144 of larger ones.
    tile
        Rows and columns of a tile, at least 16. With `segment` each is a divisor of the segment's,
        or the whole; without, segments are made of whole tiles. By default a segment is one tile.
    predictor
        ``"auto"``, or one prediction for all coded byte planes: ``"none"``, ``"left"``, ``"top"``,
        ``"avg"``, ``"planar"``; it comes without a transform unless `transform` names one.
    layout
        ``"auto"``, ``"raw"``, ``"bytes"`` or ``"pairs"``;
        dtypes that have no pairs are then stored in bytes.
    prob_bits
        log2 of the sum of a table's frequencies, 9 to 12.
    min_saving
        Part of a plane's bytes that coding must save, or it is stored raw: 0 to 1. By default 0.02,
        and 0 in preset ``max``.
    preset
        ``"fast"`` (encode speed first), ``"default"``, ``"max"`` (size first).
    transform
        ``"auto"``, or one transform for all coded byte planes: ``"none"``, ``"dct"``, ``"adst"``;
        it comes after the prediction of `predictor`, with ``"auto"`` the one that costs least.
    coder
        ``"auto"``; ``"raw"``: no plane is coded; ``"rans"``: no plane has contexts; ``"context"``:
        all coded planes of layout BYTES have.
    operand
        ``"fixed"`` or ``"rans"``: matrices of int8, bfloat16, float8_e4m3fn and float8_e5m2 become
        operands of matrix kernels (spec: chapter 14.1), with codes as they are or coded. Other
        tensors are coded as without it. It comes with `prob_bits` and `layout` ``"auto"`` or
        ``"pairs"`` alone. A small or narrow matrix may become larger, by up to 56 bytes for each 8
        rows. With ``"auto"``, a matrix with a segment of many patches becomes no operand; with
        ``"pairs"``, it does, and may become larger.
    force
        Code tensors as asked even where that makes them larger. It goes without `min_saving`, which
        would have no effect.

    Raises
    ------
    EncodeError
        ``bad_option``: out of range, or a mode,
        contexts or an operand that another option rules out.
    """

    segment: tuple[int, int] | None = None
    tile: tuple[int, int] | None = None
    predictor: str = "auto"
    layout: str = "auto"
    prob_bits: int = tables.MAX_PROB_BITS
    min_saving: float | None = None
    preset: str = "default"
    transform: str = "auto"
    coder: str = "auto"
    operand: str | None = None
    force: bool = False

    def __post_init__(self) -> None:
        for field, names in (
            ("preset", PRESETS),
            ("layout", LAYOUTS),
            ("predictor", PREDICTORS),
            ("transform", TRANSFORMS),
            ("coder", CODERS),
        ):
            _require(
                getattr(self, field) in names,
                f"{field} {getattr(self, field)!r} is none of {', '.join(names)}",
            )
        low, high = tables.MIN_PROB_BITS, tables.MAX_PROB_BITS
        _require(
            low <= self.prob_bits <= high, f"prob_bits {self.prob_bits} is not {low} to {high}"
        )
        _require(0 <= self.saving <= 1, f"min_saving {self.min_saving} is not 0 to 1")
        _require(
            not self.force or self.min_saving is None,
            f"force goes without min_saving {self.min_saving}",
        )
        bytes_only = [
            f"{k} {v}"
            for k, v in (("predictor", self.predictor), ("transform", self.transform))
            if v not in ("auto", "none")
        ]
        bytes_only += ["coder context"] * (self.coder == "context")
        for name in bytes_only:
            _require(
                self.layout in ("auto", "bytes"), f"{name} needs layout bytes, not {self.layout}"
            )
            _require(self.coder != "raw", f"{name} needs planes that are coded, not coder raw")
        self._check_sizes()
        self._check_operand()

    def _check_operand(self) -> None:
        if self.operand is not None:
            _require(
                self.operand in OPERANDS,
                f"operand {self.operand!r} is none of {', '.join(OPERANDS)}",
            )
            for field in _OPERAND_RULES_OUT:
                value = getattr(self, field)
                _require(
                    value == getattr(EncodeOptions, field),
                    f"operand {self.operand} goes without {field} {value}",
                )
            _require(
                self.layout in ("auto", "pairs"),
                f"operand {self.operand} needs layout pairs, not {self.layout}",
            )

    def _check_sizes(self) -> None:
        if self.segment is not None:
            _require(min(self.segment) >= 1, "a segment size is below 1")
            _require(
                math.prod(self.segment) <= MAX_SEGMENT_ELEMENTS,
                f"segments of more than {MAX_SEGMENT_ELEMENTS} elements",
            )
        if self.tile is not None:
            _require(min(self.tile) >= 1, "a tile size is below 1")
            if self.segment is None:
                _require(
                    min(self.tile) >= MIN_TILE,
                    f"tiles of fewer than {MIN_TILE} rows or columns need a segment size",
                )
                _require(
                    math.prod(self.tile) <= MAX_SEGMENT_ELEMENTS,
                    f"tiles of more than {MAX_SEGMENT_ELEMENTS} elements",
                )
            for s, t in zip(self.segment or (), self.tile, strict=self.segment is not None):
                _require(
                    s % t == 0 and (t >= MIN_TILE or t == s),
                    f"tile size {t} does not fit segment size {s}",
                )

    @property
    def saving(self) -> float:
        """`min_saving`, or the preset's."""
        if self.min_saving is None:
            return 0.0 if self.preset == "max" else 0.02
        return self.min_saving

    @property
    def modes(self) -> tuple[int, ...] | None:
        """Modes to choose from; ``None`` for all."""
        if self.predictor == self.transform == "auto":
            return None
        transform = 0 if self.transform == "auto" else int(Transform[self.transform.upper()]) << 4
        return tuple(transform | int(m) for m in Mode if self.predictor in ("auto", m.name.lower()))

    @property
    def forces_mode(self) -> bool:
        """Whether a prediction or transform is asked for, which only layout BYTES has."""
        return self.modes is not None and 0 not in self.modes

    @property
    def allows_lists(self) -> bool:
        """Whether words that differ from a base may be listed: nothing is asked for that says how
        all words are coded.
        """
        return (
            self.segment is None
            and self.tile is None
            and self.layout == "auto"
            and self.coder == "auto"
            and not self.force
            and not self.forces_mode
        )

    @property
    def trusts_sample(self) -> bool:
        """Whether choices are made from a part of the words."""
        return (
            self.preset == "fast"
            and not self.force
            and not self.forces_mode
            and self.coder in ("auto", "rans")
        )

    @property
    def estimates(self) -> bool:
        """Whether large chunks may be planned from a part of their rows."""
        return (
            self.preset == "default"
            and self.layout == self.coder == "auto"
            and self.modes is None
            and not self.force
        )

    @property
    def contexts(self) -> bool:
        """Whether planes may be coded with contexts."""
        return self.layout in ("auto", "bytes") and (
            self.coder == "context" or (self.coder == "auto" and self.preset == "max")
        )


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise EncodeError("bad_option", message)


# ---- geometry ------------------------------------------------------------------------------------


def chosen_options(preset: str, options: EncodeOptions | None) -> EncodeOptions:
    """What a caller has chosen by a preset or by options.

    Raises
    ------
    EncodeError
        ``bad_option``: by both.
    """
    if options is None:
        return EncodeOptions(preset=preset)
    if preset != "default":
        raise EncodeError(
            "bad_option", "preset and options: give the preset as EncodeOptions(preset=...)"
        )
    return options
