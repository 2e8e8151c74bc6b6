"""What a case is, and the three ways to make one:
assembled by hand, written by the encoder, spoilt.
"""

from __future__ import annotations

import hashlib
import io
import math
import zlib
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from typing import Any

import numpy as np
from assembler import File, Image, Tensor, assemble, has_changed, listed_places, matrix
from assembler_coding import DTYPES, MINUS, XOR
from edits import apply_edits
from masks import Check, Switched, masked_by, refusals

from wcodec.backends.reference import ReferenceBackend
from wcodec.codec.encoder import Encoder
from wcodec.conformance.recipes import make
from wcodec.files.file import File as OpenFile
from wcodec.planner.options import EncodeOptions
from wcodec.reference.planes import DTYPES as REGISTRY

FLAGS = {
    "Assembled": (
        "The file was put together from explicit choices by a second implementation that shares no "
        "code with the package."
    ),
    "Encoder": (
        "The file was written by the encoder with the options in `encode`; any backend of the "
        "project writes the same bytes."
    ),
    "Edited": (
        "The file is its base with the edits of the manifest: "
        "literal bytes, then the CRC-32s that are to match again."
    ),
    "AllPatterns": "The tensor holds every bit pattern of its dtype.",
    "SpecialValues": "NaN payloads, infinities, -0, subnormal numbers.",
    "EmptyTensor": "A dimension is 0.",
    "Ragged": "The last segment or tile of a row or column is smaller than the others.",
    "Bracket": "The size stands at or next to one of the format's internal sizes.",
    "Prediction": "A mode other than NONE.",
    "Transform": "A mode with a transform.",
    "Contexts": "Context maps.",
    "Duplicates": "Tensors stored once and named several times.",
    "Difference": "Differences from another checkpoint, or what they are taken from.",
    "Sparse": "Tensors that list the words that differ from a base's (12.1).",
    "PerTile": "Each tile has a mode of its own.",
    "Patches": "Words outside of the window.",
    "Operand": (
        "All tensors are operands (chapter 14.1); "
        "`rans` or `fixed` in the id says whether a segment is coded."
    ),
    "UnusualEncoder": "Legal, and nothing that the project's encoder writes.",
    "DeflatedIndex": "The index is one zlib stream.",
    "Truncated": "The file was cut short.",
    "Checksum": "A CRC-32 does not match, and nothing else is wrong.",
    "Overflow": "Numbers chosen so that careless arithmetic of 32 or 64 bits wraps.",
    "Payload": (
        "All structure is right, and so are the CRC-32s of the record: "
        "only the kernel can see the fault."
    ),
    "Reserved": "A value kept for later versions.",
    "Padding": "Bytes that pad the parts of a record are not 0.",
}


@dataclass
class Case:
    """A case: the file, and what the manifest says of it."""

    id: str
    expect: str
    comment: str
    rules: list[str]
    flags: list[str]
    data: bytes
    more: dict[str, Any] = field(default_factory=dict)


DATA: dict[str, bytes] = {}  #: of accepted cases, by their ids


def sha256(data: bytes) -> str:
    """In hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def n_words(shape: tuple[int, ...], dtype: str) -> int:
    """Words of a tensor."""
    return math.prod(shape) * DTYPES[dtype][2]


def tensor(
    name: str,
    dtype: str,
    shape: tuple[int, ...],
    recipe: dict[str, Any],
    segment: tuple[int, int],
    *args: Any,
    **more: Any,
) -> Tensor:
    """A tensor of a recipe, for `assembled`; further arguments as of `assembler.Tensor`."""
    data = make(recipe, n_words(shape, dtype), DTYPES[dtype][1])
    return Tensor(name, dtype, shape, data, segment, *args, recipe=recipe, **more)


def _said(
    name: str,
    dtype: str,
    shape: tuple[int, ...],
    data: bytes,
    recipe: dict[str, Any],
    dtype_name: str = "",
) -> dict[str, Any]:
    row = {
        "name": name,
        "dtype": dtype,
        "shape": list(shape),
        "nbytes": len(data),
        "sha256": sha256(data),
    }
    return row | ({"dtype_name": dtype_name} if dtype_name else {}) | {"recipe": recipe}


def _whole(tensors: list[bytes], source: bytes | None, metadata: dict[str, str]) -> dict[str, Any]:
    restored = (source or b"") + b"".join(tensors)
    more: dict[str, Any] = {"restored_sha256": sha256(restored)}
    if source is not None:
        more["source_header"] = source.hex()
    return more | ({"metadata": metadata} if metadata else {})


def _about(t: Tensor) -> dict[str, Any]:
    """What the manifest says of a duplicate, or of a difference."""
    more: dict[str, Any] = {} if t.duplicate_of is None else {"duplicate_of": t.duplicate_of}
    more |= {"difference": {XOR: "xor", MINUS: "minus"}[t.difference]} if t.difference else {}
    if t.sparse is not None:
        more["sparse"] = True
        same = [i for some in listed_places(t) for i in some if not has_changed(t, i)]
        more |= {"listed_too": same} if same else {}
    return more


def _fill(t: Tensor) -> dict[str, Any]:
    """The `fill` of each segment; nothing if a plan does not fix the payload."""
    if t.sparse is not None:
        n = sum(map(bool, listed_places(t)))
        lists = [s * n if len(s) == 1 else s for s in (t.sparse.gaps, t.sparse.words)]
        return {"fill": [[s.fill for s in of_list] for of_list in lists]}
    rows, cols = matrix(t)
    n = (
        -(-rows // t.segment[0]) * -(-cols // t.segment[1])
        if t.data and t.duplicate_of is None
        else 0
    )
    chosen = t.segments * n if len(t.segments) == 1 else t.segments
    return {} if any(s.also or s.early for s in chosen) else {"fill": [s.fill for s in chosen]}


def assembled(
    id: str, comment: str, rules: str, flags: str, file: File, **more: Any
) -> tuple[Case, Image]:
    """A case put together by hand; `rules` and `flags` are words in a text,
    `more` goes into the manifest.
    """
    image = assemble(file)
    said = [
        _said(t.name, t.dtype, t.shape, t.data, t.recipe, t.dtype_name) | _about(t) | _fill(t)
        for t in file.tensors
    ]
    expect = id.partition("/")[0]
    more |= {"tensors": said} | _whole(
        [t.data for t in file.tensors], file.source, dict(file.metadata)
    )
    DATA[id] = bytes(image.data)
    return Case(
        id, expect, comment, rules.split(), ["Assembled", *flags.split()], bytes(image.data), more
    ), image


def encoded(
    id: str,
    comment: str,
    rules: str,
    flags: str,
    tensors: list[tuple[Any, ...]],
    *,
    metadata: dict[str, str] | None = None,
    source: bytes | None = None,
    base: Case | None = None,
    **options: Any,
) -> Case:
    """A case written by the encoder.

    `tensors`: name, dtype, shape, recipe, and for opaque ones the dtype's name; or a name and the
    number of the tensor that it repeats.
    """
    stream, said, parts = io.BytesIO(), list[dict[str, Any]](), list[bytes]()
    checkpoint = None if base is None else OpenFile(io.BytesIO(base.data), ReferenceBackend())
    writer = Encoder(EncodeOptions(**options), ReferenceBackend()).start(stream, base=checkpoint)
    rows = {d.name: d for d in REGISTRY}
    for name, *what in tensors:
        if len(what) == 1:
            record = writer.add_duplicate(name, what[0])
            said.append(said[what[0]] | {"name": name, "duplicate_of": record.duplicate_of})
            parts.append(parts[what[0]])
            continue
        dtype, shape, recipe, *dtype_name = what
        data = make(recipe, n_words(shape, dtype), DTYPES[dtype][1])
        row = rows[dtype]
        record = writer.add_words(name, np.frombuffer(data, row.word_type), row, shape, *dtype_name)
        differs: dict[str, Any] = {}
        if record.difference:
            differs["difference"] = record.difference.name.lower()
        if record.lists is not None:
            differs["sparse"] = True
        said.append(_said(name, dtype, shape, data, recipe, *dtype_name) | differs)
        parts.append(data)
    writer.finish(metadata, source)
    DATA[id] = stream.getvalue()
    more = {} if base is None else {"base_checkpoint": base.id}
    more |= {
        "tensors": said,
        "encode": {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()},
    }
    return Case(
        id,
        "accept",
        comment,
        rules.split(),
        ["Encoder", *flags.split()],
        stream.getvalue(),
        more | _whole(parts, source, metadata or {}),
    )


# ---- spoilt files --------------------------------------------------------------------------------
Value = int | bytes


def _span(image: Image, name: str) -> tuple[int, int]:
    at, n = image.fields[name]
    return at, at + n


def _owner(image: Image, at: int) -> list[tuple[str, str]]:
    """CRC fields to set right after a change at an offset, in order:
    what they cover, and the field.
    """
    index, foot = _span(image, "index"), image.fields["footer.index_offset"][0]
    if at < 28:
        return [("header", "header.header_crc32")]
    if at >= foot:
        return [("footer", "footer.footer_crc32")] if at < foot + 52 else []
    rest = [("index", "footer.index_crc32"), ("footer", "footer.footer_crc32")]
    if index[0] <= at:
        return rest
    for name, (start, n) in image.fields.items():
        if name.endswith("]") and ".segment[" in name and start <= at < start + n:
            return [(name, name.replace(".segment[", ".segment_crc32[")), *rest]
    return []


def _covered(image: Image, what: str) -> tuple[int, int]:
    foot = image.fields["footer.index_offset"][0]
    return {"header": (0, 28), "footer": (foot, foot + 52)}.get(what) or _span(image, what)


class Base:
    """An accepted file that others are made from."""

    def __init__(self, case: Case, image: Image, file: File) -> None:
        self.case, self.image, self.file = case, image, file

    def spoil(
        self,
        id: str,
        code: str,
        comment: str,
        rules: str,
        flags: str = "",
        *,
        fields: dict[str, Value] | None = None,
        at: dict[int, bytes] | None = None,
        image: Image | None = None,
        refit: bool = True,
        cut: int | None = None,
        append: bytes = b"",
        also: dict[str, Any] | None = None,
    ) -> Case:
        """A case from this one.

        Parameters
        ----------
        fields
            New values of fields, of the same size.
        at
            New bytes at offsets.
        image
            Start from this file instead; the manifest then says how it differs from the base.
        refit
            Set the CRC-32s right that cover the change.
        cut, append
            Keep so many bytes; add these.
        """
        start = image or self.image
        changes = {
            start.fields[name][0]: _bytes(value, start.fields[name][1])
            for name, value in (fields or {}).items()
        } | (at or {})
        edits: list[dict[str, Any]] = [
            {"at": a, "remove": len(v), "insert": v.hex()} for a, v in sorted(changes.items())
        ]
        names = {start.fields[name][0]: name for name in fields or {}}
        for edit in edits:
            edit |= {"field": names[edit["at"]]} if edit["at"] in names else {}
        crcs: dict[str, str] = {}
        for a in changes if refit else ():
            crcs |= dict(_owner(start, a))
        # the footer holds the index's CRC-32, the index those of the segments
        order = ["footer", "index"]
        wanted = sorted(
            crcs.items(), key=lambda c: order.index(c[0]) if c[0] in order else 2, reverse=True
        )
        crc_rows = [
            {"what": w, "of": list(_covered(start, w)), "at": start.fields[f][0]} for w, f in wanted
        ]
        data = apply_edits(bytes(start.data), edits, crc_rows)
        if image is not None:
            edits, crc_rows = difference(self.case.data, data), []
        if cut is not None:
            data, edits, crc_rows = (
                data[:cut],
                [{"at": cut, "remove": len(data) - cut, "insert": ""}],
                [],
            )
        if append:
            edits = [*edits, {"at": len(data), "remove": 0, "insert": append.hex()}]
            data = data + append
        expect = id.partition("/")[0]
        more: dict[str, Any] = (
            {"code": code}
            if expect == "reject"
            else {k: self.case.more[k] for k in self.case.more if k != "encode"}
        )
        more |= (
            (also or {})
            | {"base": self.case.id, "edits": edits}
            | ({"refit": crc_rows} if crc_rows else {})
        )
        if apply_edits(self.case.data, edits, crc_rows) != data:
            raise ValueError(f"{id}: the edits do not give the file")
        given = DATA.get(more.get("base_checkpoint", ""), b"")
        if expect == "reject" and refit and cut is None and not append:
            mended = _without_the_check(data, start, at or {}, given)
            if mended is not None:
                image, at = mended
                return self.spoil(
                    id, code, comment, rules, flags, fields=fields, image=image, at=at, also=also
                )
        if expect == "reject":
            other = masked_by(id, refusals(DECODER, data, given, 2))
            more |= {} if other is None else {"masked_by": other}
        return Case(id, expect, comment, rules.split(), ["Edited", *flags.split()], data, more)


DECODER = Switched()
MOST_MORE = 4096  #: bytes by which a payload may change for a decoder without a check


def _without_the_check(
    data: bytes, image: Image, at: dict[int, bytes], base: bytes
) -> tuple[Image, dict[int, bytes]] | None:
    """The image and edits of the same fault in a file whose checksums and sizes are right for a
    decoder that lacks the check; so no other check hides that. Nothing if there is no more to do.
    """
    check = DECODER.decode(data, base)
    assert isinstance(check, Check), "the file is not refused"
    then, seen = DECODER.decode(data, base, [check]), DECODER.at
    if not isinstance(then, Check):
        return None
    if then.rule == "R4.34" and image.fields.get("index", (0, 0))[1]:
        t, more = seen["t"], seen["nbytes"] - seen["t"].payload_nbytes
        if abs(more) > MOST_MORE:
            return None
        return _resized(image, t.number, more, at)
    if then.rule == "R11.2":
        stored, crc = seen["s"].crc32, zlib.crc32(seen["record"])
    elif then.rule == "R11.3":
        stored, crc = seen["t"].crc32, zlib.crc32(seen["data"])
    elif then.rule == "R12.13":
        stored, crc = seen["crc32"], zlib.crc32(seen["words"])
    else:
        return None
    places = [
        place
        for name, (place, n) in image.fields.items()
        if "crc32" in name and data[place : place + n] == stored.to_bytes(4, "little")
    ]
    if len(places) != 1 or places[0] in at:
        return None
    return image, at | {places[0]: crc.to_bytes(4, "little")}


def _resized(
    image: Image, number: int, more: int, at: dict[int, bytes]
) -> tuple[Image, dict[int, bytes]]:
    """The image with so many bytes more, or less, at the end of a tensor's payload."""

    def value(name: str) -> int:
        place, n = image.fields[name]
        return int.from_bytes(image.data[place : place + n], "little")

    payload = f"tensor[{number}].payload_"
    end = value(payload + "offset") + value(payload + "nbytes")
    out = Image(image.data[: end + min(more, 0)] + bytes(max(more, 0)) + image.data[end:])
    out.fields.update({k: (a + more * (a >= end), n) for k, (a, n) in image.fields.items()})
    changed = {payload + "nbytes", "footer.index_offset", "footer.file_nbytes"} | {
        name for name in image.fields if name.endswith(".payload_offset") and value(name) >= end
    }
    for name in changed:
        place, n = out.fields[name]
        out.data[place : place + n] = (value(name) + more).to_bytes(n, "little")
    for what, crc in ("index", "footer.index_crc32"), ("footer", "footer.footer_crc32"):
        start, stop = _covered(out, what)
        place, n = out.fields[crc]
        out.data[place : place + n] = zlib.crc32(out.data[start:stop]).to_bytes(n, "little")
    return out, {a + more * (a >= end): v for a, v in at.items()}


def _bytes(value: Value, n: int) -> bytes:
    data = value if isinstance(value, bytes) else value.to_bytes(n, "little")
    if len(data) != n:
        raise ValueError(f"{len(data)} bytes for a field of {n}")
    return data


NEAR = 18  #: bytes between two edits up to which one edit is shorter in the manifest


def difference(base: bytes, new: bytes) -> list[dict[str, Any]]:
    """Edits that turn a file into another."""
    spans = list[list[int]]()
    for kind, a, b, c, d in SequenceMatcher(None, base, new, autojunk=False).get_opcodes():
        if kind == "equal":
            continue
        if spans and a - spans[-1][1] <= NEAR:
            spans[-1][1], spans[-1][3] = b, d
        else:
            spans.append([a, b, c, d])
    return [{"at": a, "remove": b - a, "insert": new[c:d].hex()} for a, b, c, d in spans]


def reseal(image: Image, **footer: int) -> Image:
    """The image with other footer fields, and its footer CRC-32 right."""
    for name, value in footer.items():
        at, n = image.fields[f"footer.{name}"]
        image.data[at : at + n] = value.to_bytes(n, "little")
    foot = image.fields["footer.index_offset"][0]
    image.data[foot + 52 : foot + 56] = zlib.crc32(image.data[foot : foot + 52]).to_bytes(
        4, "little"
    )
    return image


Bases = dict[str, Base]
U32, U64 = (1 << 32) - 1, (1 << 64) - 1


def rebuilt(base: Base, **changes: Any) -> Image:
    """The base's file, made anew with other choices."""
    return assemble(replace(base.file, **changes))


def other_tensor(base: Base, number: int = 0, **changes: Any) -> Image:
    """The base's file with other choices about a tensor."""
    tensors = list(base.file.tensors)
    tensors[number] = replace(tensors[number], **changes)
    return rebuilt(base, tensors=tuple(tensors))


def indexed(name: str) -> str:
    """``coder_1`` as ``coder[1]``."""
    stem, _, digit = name.rpartition("_")
    return f"{stem}[{digit}]" if digit.isdigit() else name
