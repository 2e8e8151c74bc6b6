"""What else refuses a case of `reject`, if the one check is left out that it is named for.

    python tools/vectors/masks.py            cases that a second check refuses, and which
    python tools/vectors/masks.py ID ...     the same of these, with all that refuses them

Only a file that breaks one rule shows that a decoder checks that rule. So the checks of
``spec/decoder.py`` are switched off, one at a time: the first that refuses a file, and then the
file has to be accepted. A condition of several parts counts as several checks.
"""

from __future__ import annotations

import ast
import resource
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

from wcodec.conformance.cases import load

ROOT: Final = Path(__file__).resolve().parents[2]
DECODER: Final = ROOT / "spec" / "decoder.py"
MOST_CHECKS: Final = 100_000  #: that a file takes while some are off, more than any of the vectors
MOST_NBYTES: Final = 1 << 26  #: the same of bytes of a tensor


# ---- the decoder with switches -------------------------------------------------------------------
class _Switches(ast.NodeTransformer):
    """Makes ``require(a and b, code, rule)`` a call that tries `a` and `b` one after the other."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        """Conditions that have a name are put in the place of the name."""
        self._named = {
            s.targets[0].id: s.value
            for s in ast.walk(node)
            if isinstance(s, ast.Assign)
            and isinstance(s.targets[0], ast.Name)
            and isinstance(s.value, ast.Compare | ast.BoolOp)
        }
        self.generic_visit(node)
        return node

    def visit_Call(self, node: ast.Call) -> ast.Call:
        """A call of `require`."""
        self.generic_visit(node)
        if not (isinstance(node.func, ast.Name) and node.func.id == "require"):
            return node
        parts = [_function(part) for part in self._parts(node.args[0])]
        node.args = [ast.Tuple(parts, ast.Load()), ast.Constant(node.lineno), *node.args[1:]]
        return node

    def _parts(self, test: ast.expr) -> Iterator[ast.expr]:
        if isinstance(test, ast.Name) and test.id in self._named:
            yield from self._parts(self._named[test.id])
        elif isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
            for value in test.values:
                yield from self._parts(value)
        elif isinstance(test, ast.Compare) and len(test.ops) > 1:
            sides = [test.left, *test.comparators]
            for left, op, right in zip(sides, test.ops, sides[1:], strict=False):
                yield ast.Compare(left, [op], [right])
        else:
            yield test


def _function(body: ast.expr) -> ast.Lambda:
    return ast.Lambda(ast.arguments([], [], None, [], [], None, []), body)


def _switched() -> ast.Module:
    tree = _Switches().visit(ast.parse(DECODER.read_text(encoding="utf-8")))
    assert isinstance(tree, ast.Module)
    return ast.fix_missing_locations(tree)


def conditions() -> dict[tuple[int, int], str]:
    """All that the decoder checks: line, part, and what has to hold."""
    calls = (n for n in ast.walk(_switched()) if isinstance(n, ast.Call))
    return {
        (call.args[1].value, i): f"{ast.unparse(part.body)}: {ast.unparse(call.args[-1])}"
        for call in calls
        if isinstance(call.func, ast.Name) and call.func.id == "require"
        and isinstance(call.args[0], ast.Tuple) and isinstance(call.args[1], ast.Constant)
        for i, part in enumerate(call.args[0].elts)
        if isinstance(part, ast.Lambda)
    }  # fmt: skip


@dataclass(frozen=True)
class Check:
    """A condition of the decoder: its place in the source, and the rule that it stands for."""

    line: int
    part: int
    code: str
    rule: str

    def __str__(self) -> str:
        return f"{self.code} ({self.rule}, line {self.line}, part {self.part})"


class Switched:
    """The decoder of the spec, some of whose checks are off."""

    def __init__(self) -> None:
        self._off, self._fired = frozenset[Check](), list[Check]()
        self.at = dict[str, Any]()  #: variables of the function whose check has refused a file
        names: dict[str, Any] = {"__name__": "switched", "bytearray": _bytearray}
        exec(compile(_switched(), str(DECODER), "exec"), names)
        reader = names["Reader"]
        self._refused, self._decode = names["Refused"], names["decode_file"]
        self._names = names
        names["require"] = self._require
        reader.text = lambda r, nbytes: self._text(r, nbytes)

    def decode(self, data: bytes, base: bytes = b"", off: Iterable[Check] = ()) -> Check | str:
        """What refuses a file while some checks are off, or else how it ends."""
        self._off, self._fired, self._left = frozenset(off), [], MOST_CHECKS
        try:
            self._decode(data, base)
        except self._refused as e:
            code, _, rule = str(e).partition(": see ")
            return self._fired[0] if self._fired else Check(0, 0, code, rule)
        except Exception as e:  # it computes with what it has not checked
            return f"fails with {type(e).__name__}"
        return "is accepted"

    def profile(self, data: bytes) -> str:
        """The smallest profile that has all that an accepted file holds (chapter 17)."""
        self._off, self._fired, self._left = frozenset(), [], MOST_CHECKS
        names, file = self._names, self._names["read_index"](data)
        if any(t.difference for t in file.tensors):
            return "base"
        for t in file.tensors:
            of_planes = zip(*t.columns[4:], strict=True) if t.n_segments else ()
            fields = {(i % 4, value) for row in of_planes for i, value in enumerate(row)}
            in_tiles = t.tile_rows < min(t.segment_rows, t.rows) or t.tile_cols < min(
                t.segment_cols, t.cols
            )
            if in_tiles or fields & {(0, names["CONTEXT"]), (2, names["EACH_TILE"])}:
                return "full"
        return "full" if file.maps or names["BASE"] in file.types else "core"

    def _require(
        self, parts: tuple[Callable[[], bool], ...], line: int, code: str, rule: str
    ) -> None:
        self._left -= 1
        if self._left < 0:
            raise MemoryError("this may take for ever")
        for i, holds in enumerate(parts):
            if not holds():
                self._refuse(line, i, code, rule)

    def _text(self, reader: Any, nbytes: int) -> str:
        data: bytes = reader.take(nbytes)
        try:
            return data.decode()
        except UnicodeDecodeError:
            self._refuse(0, 0, "bad_name", "R2.6")
            return data.decode("latin-1")

    def _refuse(self, line: int, part: int, code: str, rule: str) -> None:
        check = Check(line, part, code, rule)
        if check not in self._off:
            self.at = sys._getframe(2).f_locals
            self._fired.append(check)
            raise self._refused(f"{code}: see {rule}")


def _bytearray(values: Any = b"") -> bytearray:
    """As `bytearray`, but numbers are cut to bytes, as those of C are."""
    if isinstance(values, int) and values > MOST_NBYTES:
        raise MemoryError
    if isinstance(values, int | bytes | bytearray):
        return bytearray(values)
    return bytearray(v % 256 for v in values)


def refusals(
    decoder: Switched, data: bytes, base: bytes = b"", most: int | None = None
) -> list[Check]:
    """The check that refuses a file, the one that does when that is off, and so on: at most so
    many.
    """
    found = list[Check]()
    while len(found) != most and not isinstance(what := decoder.decode(data, base, found), str):
        if what in found:  # it cannot be switched off
            break
        found.append(what)
    return found


#: cases that no file could show by one check alone, by the reason
UNAVOIDABLE: Final = {
    "Where a footer is looked for, none stands.": ("cut_to_*", "trailing_*"),
    "What a checksum covers is checked itself, or another checksum covers it.": (
        "header_crc_of_field", "footer_crc_of_field",
    ),
    "An index elsewhere is no index, and one so large is more than a decoder takes.": (
        "footer_index_*", "index_raw_nbytes_huge",
    ),
    "Bytes beyond the end of a record, or bytes left in it, are none of its fields.": (
        "contexts_cut", "contexts_empty", "contexts_kind_larger", "contexts_n_*", "metadata_*",
        "column_width_4_cut", "sparse_cut_*", "tensor_dtype_larger", "tensor_dtype_name_nbytes",
        "tensor_empty", "tensor_fixed_cut", "tensor_name_nbytes", "tensor_record_short",
        "tensor_shape_more", "tensor_table_cut",
    ),
    "So many segments have checksums nowhere.": (
        "sparse_segments_most", "tensor_segments_*", "tensor_shape_2_63", "tensor_shape_wraps*",
    ),
    "A part of another size leaves bytes over, or takes those of the next.": (
        "context_scales_*", "context_units_*", "patches_fewer", "patches_most", "sparse_payload_*",
        "tensor_payload_offset*", "units_*",
    ),
    "A number above 255 is no value that is known. Its lowest byte is one.": (
        "column_*_256", "sparse_*_layout_256", "column_width_3_of_4",
    ),
    "More patches than words cannot ascend.": ("patches_above_n", "patches_n_plus_1"),
    "A frequency of 13 zeros is above any sum.": ("table_many_zeros",),
    "Other numbers of gaps list other words.": ("sparse_n_gaps_*", "sparse_row_rank_of_cube"),
    "Without a BASE record there is no base that is the right one, and without a base no file.": (
        "base_missing", "difference_?_no_base", "empty_base_missing", "sparse_base_missing",
        "sparse_no_base_record", "tensor_flags",
    ),
}  # fmt: skip


def masked_by(case: str, found: list[Check]) -> str | None:
    """The other rule that refuses a case, where that cannot be helped.

    Raises
    ------
    ValueError
        Another rule does, and should not; or none does, and one is said to.
    """
    rules = [check.rule.partition(" (")[0] for check in found[:2]]
    is_masked, name = len(set(rules)) > 1, case.partition("/")[2]
    known = any(fnmatchcase(name, p) for of_reason in UNAVOIDABLE.values() for p in of_reason)
    if is_masked and not known:
        raise ValueError(f"{case} breaks {rules[1]} too: nobody sees whether {rules[0]} is checked")
    return rules[1] if is_masked else None


def main(argv: list[str]) -> int:
    """Entry point."""
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))  # for lists of any length
    decoder, wrong = Switched(), 0
    for case in load().cases:
        if case.expect != "reject" or (argv and case.id not in argv):
            continue
        base = b"" if case.checkpoint is None else case.checkpoint.data
        found = refusals(decoder, case.data, base, None if argv else 2)
        if argv or case.row.get("masked_by"):
            print(f"{case.id}: {'; then '.join(map(str, found))}")
        if case.row.get("masked_by") != masked_by(case.id, found):
            print(f"{case.id}: the manifest says {case.row.get('masked_by')}")
            wrong += 1
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
