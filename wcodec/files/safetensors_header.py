"""Headers of safetensors files: read one to encode its file, write one for a file that had none.

Source: https://github.com/huggingface/safetensors, section "Format".
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from wcodec.codec.sources import BufferSource
from wcodec.errors import DecodeError, EncodeError
from wcodec.files.kinds import HEAD_NBYTES, described
from wcodec.reference.container import ByteSource, Index
from wcodec.reference.planes import BY_SAFETENSORS, OPAQUE, DType
from wcodec.reference.tensors import TensorRecord

MAX_HEADER_NBYTES: Final = 100_000_000  #: what safetensors itself accepts
Entry = tuple[str, str, tuple[int, ...], int]  #: name, dtype and shape as in a header, bytes
#: bits of an element of the dtypes of safetensors that the format has no id for; those of others
#: follow from the sizes of their tensors
_BITS: Final = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}


class Stated(NamedTuple):
    """What a header says of a tensor whose dtype the format has no id for.

    Attributes
    ----------
    dtype, shape
        As in the header.
    bits
        Of an element; 0 if they are not known.
    """

    dtype: str
    shape: tuple[int, ...]
    bits: int

    @property
    def packed_shape(self) -> tuple[int, ...]:
        """Shape of the tensor as bytes: that of the header, but bytes in the last dimension.

        Raises
        ------
        ValueError
            There is no last dimension, it does not end with a byte, or `bits` are not known.
        """
        if not self.bits or not self.shape or self.shape[-1] * self.bits % 8:
            raise ValueError(
                f"rows of {self.dtype} of shape {list(self.shape)} are no whole bytes: "
                "wcodec.open(path).get_tensor gives all bytes"
            )
        return *self.shape[:-1], self.shape[-1] * self.bits // 8


@dataclass(frozen=True)
class SourceTensor:
    """One tensor of a safetensors file.

    Attributes
    ----------
    dtype, shape
        What wcodec stores: for a dtype that it does not know, opaque bytes.
    dtype_name
        The name in the header if `dtype` is opaque, else empty.
    start, stop
        Bytes of the file.
    stated_shape
        The shape in the header.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    dtype_name: str
    start: int
    stop: int
    stated_shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return self.stop - self.start

    @property
    def stated_dtype(self) -> str:
        """The dtype in the header."""
        return self.dtype_name or self.dtype.safetensors


@dataclass(frozen=True)
class SafetensorsHeader:
    """The header of a safetensors file: its bytes, and what they say."""

    raw: bytes
    tensors: list[SourceTensor]
    metadata: dict[str, str]

    @property
    def end(self) -> int:
        """Bytes of the file that the header describes."""
        return self.tensors[-1].stop if self.tensors else len(self.raw)


def _bad(message: str, tensor: str | None = None) -> EncodeError:
    return EncodeError("bad_source", message, tensor=tensor)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise _bad("a key occurs twice in the header")
    return out


def read_safetensors_header(file: ByteSource | memoryview) -> SafetensorsHeader:
    """Read and check the header of a safetensors file.

    Parameters
    ----------
    file
        The whole file.

    Raises
    ------
    EncodeError
        ``bad_source``: not a safetensors file, or one whose tensors overlap,
        leave gaps or end elsewhere than the file.
    """
    source = BufferSource(file) if isinstance(file, memoryview) else file
    head = source.read(0, min(HEAD_NBYTES, source.nbytes)).tobytes()
    try:
        return _read_header(source, head)
    except EncodeError as e:
        what = described(head)
        if what is None or head[8:9] == b"{" or e.code != "bad_source":
            raise
        raise _bad(f"not a safetensors file but {what}") from None


def header_nbytes(head: bytes, file_nbytes: int) -> int:
    """Bytes of the header of a safetensors file, the 8 before it included.

    Parameters
    ----------
    head
        The first 8 bytes of the file, or all of a smaller one.

    Raises
    ------
    EncodeError
        ``bad_source``
    """
    if len(head) < 8:
        raise _bad("not a safetensors file: it has fewer than 8 bytes")
    (nbytes,) = struct.unpack_from("<Q", head)
    if nbytes > min(MAX_HEADER_NBYTES, file_nbytes - 8):
        raise _bad(f"not a safetensors file: its first 8 bytes announce a header of {nbytes} bytes")
    return 8 + int(nbytes)


def _read_header(source: ByteSource, head: bytes) -> SafetensorsHeader:
    raw = source.read(0, header_nbytes(head, source.nbytes)).tobytes()
    header = parse_safetensors_header(raw)
    if header.end > source.nbytes:
        late = next(t for t in header.tensors if t.stop > source.nbytes)
        raise _bad(
            f"data_offsets {late.start - len(raw)} and {late.stop - len(raw)} leave the file",
            late.name,
        )
    if header.end != source.nbytes:
        raise _bad(f"{source.nbytes - header.end} bytes follow the last tensor")
    return header


def parse_safetensors_header(raw: bytes) -> SafetensorsHeader:
    """Check the header of a safetensors file without the file.

    Parameters
    ----------
    raw
        The first bytes of the file: the header's size and the header.

    Raises
    ------
    EncodeError
        ``bad_source``: not a header, or one whose tensors overlap or leave gaps.
    """
    try:
        header = json.loads(raw[8:].decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as e:
        # not UTF-8, not JSON, a number of thousands of digits
        raise _bad(f"not a safetensors file: its header is not JSON ({type(e).__name__})") from None
    if not isinstance(header, dict):
        raise _bad("the header is not a JSON object")
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _bad("__metadata__ is not a map of texts")
    tensors = [_read_entry(name, entry, len(raw)) for name, entry in header.items()]
    tensors.sort(key=lambda t: (t.start, t.stop))
    end = len(raw)
    for t in tensors:
        if t.start != end:
            raise _bad("the tensor does not start where the one before ends", t.name)
        end = t.stop
    return SafetensorsHeader(raw, tensors, metadata)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _n_elements(shape: list[int]) -> int:
    """Product of all dimensions; of one above 2^63 the first part that is: a stranger's may be of
    thousands of them, and numbers that large take long.
    """
    n = 0 if 0 in shape else 1
    for size in shape:
        n *= size
        if n >= 1 << 63:
            break
    return n


def _read_entry(name: str, entry: Any, first: int) -> SourceTensor:
    try:
        dtype_name, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise _bad("the entry lacks dtype, shape or two data_offsets", name) from None
    if (
        not isinstance(dtype_name, str)
        or not isinstance(shape, list)
        or not all(map(_is_size, [*shape, start, stop]))
    ):
        raise _bad("dtype, shape or data_offsets of the wrong type", name)
    if start > stop:
        raise _bad(f"data_offsets {start} and {stop} are the wrong way round", name)
    dtype = BY_SAFETENSORS.get(dtype_name)
    if dtype is None:
        return SourceTensor(
            name, OPAQUE, (stop - start,), dtype_name, first + start, first + stop, tuple(shape)
        )
    if _n_elements(shape) * dtype.nbytes != stop - start:
        raise _bad(f"{stop - start} bytes for a {dtype_name} tensor of shape {shape}", name)
    return SourceTensor(name, dtype, tuple(shape), "", first + start, first + stop, tuple(shape))


def write_safetensors_header(
    entries: Iterable[Entry], metadata: dict[str, str], least: int = 0
) -> bytes:
    """The first bytes of a safetensors file of these tensors, in this order.

    Parameters
    ----------
    least
        How many bytes there are at least.

    Raises
    ------
    EncodeError
        ``bad_name``, ``resource_limit``
    """
    header, at = dict[str, Any]({"__metadata__": metadata} if metadata else {}), 0
    for name, dtype, shape, nbytes in entries:
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + nbytes]}
        at += nbytes
    try:
        raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise EncodeError("bad_name", "a tensor's name or a metadata text is not UTF-8") from None
    raw += b" " * max(-len(raw) % 8, least - 8 - len(raw))
    if len(raw) > MAX_HEADER_NBYTES:
        raise EncodeError(
            "resource_limit",
            f"the header has {len(raw)} bytes; safetensors reads {MAX_HEADER_NBYTES} at most",
        )
    return struct.pack("<Q", len(raw)) + raw


def restored_header(entries: Iterable[Entry], metadata: dict[str, str]) -> bytes:
    """As `write_safetensors_header`, for a decoder.

    Raises
    ------
    DecodeError
        ``bad_name``, ``resource_limit``
    """
    try:
        return write_safetensors_header(entries, metadata)
    except EncodeError as e:
        raise DecodeError(e.code, e.message) from None


def stated_tensors(index: Index) -> dict[str, Stated]:
    """What the header that a ``.wcodec`` file keeps says of its opaque tensors, by their names.
    Those that it does not describe as they are, are left out: nobody has checked it (spec: R4.21).
    """
    opaque = {t.name: t.nbytes for t in index.tensors if t.dtype is OPAQUE}
    if not opaque or len(index.source_header) - 8 > MAX_HEADER_NBYTES:
        return {}
    try:
        header = parse_safetensors_header(index.source_header)
    except EncodeError:
        return {}
    found = dict[str, Stated]()
    for t in header.tensors:
        if t.dtype is OPAQUE and opaque.get(t.name) == t.nbytes:
            n, dtype = _n_elements(list(t.stated_shape)), t.stated_dtype
            bits = _BITS.get(dtype) or (8 * t.nbytes // n if n else 0)
            is_right = n * bits == 8 * t.nbytes
            found[t.name] = Stated(dtype, t.stated_shape, bits if is_right else 0)
    return found


def entry_of(t: TensorRecord) -> Entry:
    """The entry of a tensor of a ``.wcodec`` file that keeps no header; opaque bytes become
    ``U8``.
    """
    return t.name, t.dtype.safetensors or "U8", t.shape, t.nbytes
