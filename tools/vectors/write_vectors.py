"""Writes ``conformance_vectors/``: the manifest and a file for each case.

    python tools/vectors/write_vectors.py            write
    python tools/vectors/write_vectors.py --check    exit 1 if the files on disk are others

Accepted files are put together by hand (`assembler`) or written by the reference encoder; refused
ones are accepted files with literal edits, which the manifest lists.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tools" / "vectors"), str(ROOT)]

import cases_accept  # noqa: E402
import cases_edges  # noqa: E402
import cases_modes  # noqa: E402
import cases_operands  # noqa: E402
import cases_reject  # noqa: E402
import cases_reject_modes  # noqa: E402
import cases_reject_sparse  # noqa: E402
import cases_sparse  # noqa: E402
from cases import DECODER, FLAGS, Case, sha256  # noqa: E402

from wcodec.conformance.recipes import RECIPES  # noqa: E402

VECTORS = ROOT / "conformance_vectors"
COMMAND = "python tools/vectors/write_vectors.py"
MAX_NBYTES = 1_500_000  #: of all files together

HEAD = {
    "what": (
        "Conformance vectors of the wcodec format. Run them with `wcodec conformance`, or read "
        "this file with any JSON reader."
    ),
    "format_version": "0.2",
    "written_by": COMMAND,
    "expect": {
        "accept": "A decoder decodes the file; each tensor has the dtype, shape and bytes given.",
        "reject": (
            "A decoder refuses the file with `code`. "
            "A program ends with a nonzero status and leaves no output."
        ),
        "either": (
            "The format leaves it open: a decoder refuses the file, "
            "or decodes it to the bytes given."
        ),
    },
    "fields": {
        "id": "The file of a case has its id for a name, and the suffix `.wcodec`.",
        "sha256": "Of the file.",
        "rules": "Rules of spec/wcodec.md that the case proves.",
        "tensors": (
            "In the order of the file: name, dtype, shape, and nbytes and sha256 of the decoded "
            "bytes; `recipe` makes those bytes."
        ),
        "restored_sha256": (
            "Of source_header and all decoded tensors, one behind another (R4.22)."
        ),
        "source_header, metadata": (
            "Contents of these records, if there are any; the first in hexadecimal."
        ),
        "base_checkpoint": (
            "The case whose file is the checkpoint that differences refer to (R12.5). "
            "A decoder is given it."
        ),
        "duplicate_of, difference": (
            "Of a tensor: the number of the tensor that it repeats (R4.28); "
            "`xor` or `minus` (R12.5)."
        ),
        "sparse, listed_too": (
            "Of a tensor that lists words (12.1): the numbers of words that are listed besides "
            "those that differ from the base."
        ),
        "encode": (
            "Options with which the project's encoder writes this very file from the recipes "
            "(chapter 14)."
        ),
        "fill": (
            "For files put together by hand: the 4-bit code, a segment each, of words outside of "
            "the window and of an odd last word's missing neighbour. With the columns of the "
            "segment table it fixes the payload. Of a sparse tensor two lists: of gaps and of "
            "listed words."
        ),
        "profile": (
            "Which decoders have to take the file (chapter 17): those of profile `full`, `base` or "
            "`operand`; where it is left out, all. A decoder of another profile may refuse it, as "
            "a case of `either`. All refuse the files of `reject`."
        ),
        "masked_by": (
            "A rule that refuses the file too where a decoder does not check `rules`. Without it, "
            "the file breaks one rule alone, and even its checksums are those that a decoder "
            "without the check expects."
        ),
        "base, edits, refit": (
            "The file is that of case `base`, edited: at offset `at` of the base, `remove` bytes "
            "give way to `insert`, hexadecimal; `field` names what stands there. Then, in order, "
            "the CRC-32 of bytes `of` (from, to) is stored at `at`, as a u32."
        ),
    },
    "flags": FLAGS,
    "recipes": RECIPES,
}


def all_cases() -> list[Case]:
    """All cases, by name."""
    modules = (
        cases_accept, cases_modes, cases_operands, cases_reject, cases_reject_modes,
        cases_reject_sparse, cases_sparse,
    )  # fmt: skip
    bases = cases_reject.bases() | cases_reject_modes.bases()
    made = [*(c for module in modules for c in module.cases()), *cases_edges.cases(bases)]
    cases = sorted(made, key=lambda c: c.id)
    if len({c.id for c in cases}) != len(cases):
        twice = sorted({c.id for c in cases if [d.id for d in cases].count(c.id) > 1})
        raise ValueError(f"two cases have one id: {twice}")
    unknown = {f for c in cases for f in c.flags} ^ set(FLAGS)
    if unknown:
        raise ValueError(
            f"flags used and not explained, or explained and not used: {sorted(unknown)}"
        )
    return cases


def profile_of(case: Case) -> dict[str, str]:
    """What the manifest says of the profile of a case."""
    if case.expect == "reject":
        return {}
    profile = "operand" if "Operand" in case.flags else DECODER.profile(case.data)
    return {} if profile == "core" else {"profile": profile}


def manifest(cases: list[Case]) -> str:
    """The manifest, a line for each case."""
    lines = []
    for c in cases:
        head = {
            "id": c.id,
            "expect": c.expect,
            **profile_of(c),
            **({"code": c.more["code"]} if "code" in c.more else {}),
            "comment": c.comment,
        }
        what = {
            "rules": c.rules,
            "flags": c.flags,
            "sha256": sha256(c.data),
        }
        lines.append(json.dumps(head | what | c.more, ensure_ascii=True, separators=(",", ":")))
    head = json.dumps(HEAD, indent=1)
    return head[:-2] + ',\n "cases": [\n' + ",\n".join(lines) + "\n ]\n}\n"


def contents() -> dict[str, bytes]:
    """All files by their path below the folder of the vectors."""
    cases = all_cases()
    files = {f"{c.id}.wcodec": c.data for c in cases} | {"manifest.json": manifest(cases).encode()}
    total = sum(map(len, files.values()))
    if total > MAX_NBYTES:
        raise ValueError(f"the vectors have {total} bytes; no more than {MAX_NBYTES} are wanted")
    return files


def stale(files: dict[str, bytes], folder: Path) -> list[str]:
    """Paths that are missing, different or too many in a folder."""
    there = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    differ = [
        name for name in files.keys() & there.keys() if there[name].read_bytes() != files[name]
    ]
    return sorted([*(files.keys() ^ there.keys()), *differ])


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Write the conformance vectors.")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 if the files are not current"
    )
    parser.add_argument("--folder", type=Path, default=VECTORS, help="where the files are")
    arguments = parser.parse_args(argv)
    files, folder = contents(), arguments.folder
    wrong = stale(files, folder)
    if arguments.check:
        if wrong:
            print(
                f"{len(wrong)} conformance vectors are not current, {wrong[0]} among them; "
                f"run: {COMMAND}",
                file=sys.stderr,
            )
        return int(bool(wrong))
    for kind in ("accept", "reject", "either"):
        shutil.rmtree(folder / kind, ignore_errors=True)
        (folder / kind).mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    print(f"{len(files) - 1} cases, {sum(map(len, files.values()))} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
