"""The container, field by field at literal offsets, and what its parser refuses."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest

import wcodec
from wcodec.backends import Backend
from wcodec.codec.encoder import Encoder
from wcodec.codec.sources import BufferSource
from wcodec.codec.whole import Whole
from wcodec.errors import DecodeError
from wcodec.reference.container import (
    FOOTER,
    HEADER,
    RECORD,
    read_index,
    seal_index,
    write_header,
    write_index,
)
from wcodec.reference.records import TENSOR


def test_the_header_is_these_32_bytes() -> None:
    head = bytes.fromhex("89 57 43 4f 44 45 43 0a  0000 0200 00000000  0000000000000000 00000000")
    assert write_header() == head + struct.pack("<I", zlib.crc32(head))


def test_sizes_of_structures() -> None:
    assert (HEADER.size, FOOTER.size, RECORD.size, TENSOR.size) == (32, 64, 12, 48)


def small_file() -> bytes:
    """Three bytes, too few to be coded, so that the payload is known:
    one RAW segment, padded to 16 bytes.
    """
    stream = io.BytesIO()
    writer = Encoder().start(stream)
    writer.add("ab", np.array([[9, 2, 5]], np.uint8))
    writer.finish({"k": "v"})
    return stream.getvalue()


def test_fields_of_a_small_file() -> None:
    data = small_file()
    payload = bytes([9, 2, 5]) + bytes(13)
    assert data[:32] == write_header()
    assert data[32:48] == payload
    foot = data[-64:]
    index_offset, index_nbytes, raw_nbytes, file_nbytes, data_nbytes = struct.unpack_from(
        "<5Q", foot
    )
    n_tensors, coding = struct.unpack_from("<IB", foot, 40)
    assert (index_offset, file_nbytes, data_nbytes, n_tensors) == (48, len(data), 3, 1)
    assert foot[45:48] == bytes(3)
    stored = data[48:-64]
    assert len(stored) == index_nbytes
    assert struct.unpack_from("<II", foot, 48) == (zlib.crc32(stored), zlib.crc32(foot[:52]))
    assert foot[56:] == b"WCODECFT"
    raw = zlib.decompress(stored) if coding else stored
    assert len(raw) == raw_nbytes
    metadata = (
        struct.pack("<HHQ", 3, 0, 14)
        + struct.pack("<II", 1, 1)
        + b"k"
        + struct.pack("<I", 1)
        + b"v"
    )
    assert raw[: len(metadata)] == metadata
    kind, flags, nbytes = struct.unpack_from("<HHQ", raw, len(metadata))
    assert (kind, flags, nbytes) == (4, 1, len(raw) - len(metadata) - 12)
    body = raw[len(metadata) + 12 :]
    assert struct.unpack_from("<QQI", body) == (32, 16, zlib.crc32(bytes([9, 2, 5])))
    # uint8, rank 2, row_rank 0 (one row of three), order 0
    assert body[20:24] == bytes([2, 2, 0, 0])
    assert struct.unpack_from("<IIII", body, 24) == (1, 3, 1, 3)
    assert struct.unpack_from("<HHHH", body, 40) == (0, 2, 0, 0)
    assert body[48:66] == struct.pack("<QQ", 1, 3) + b"ab"
    assert struct.unpack_from("<I", body, 66) == (zlib.crc32(payload),)
    # layout, base, n_patches, then coder, table, prediction and units of two planes:
    # eleven columns of one value, 0
    assert body[70:] == bytes(11 * 5)


def test_the_index_is_read_back() -> None:
    index = read_index(BufferSource(small_file()))
    (t,) = index.tensors
    found = (t.name, t.shape, t.row_rank, t.dtype.name, t.payload_offset, t.payload_nbytes)
    assert found == ("ab", (1, 3), 0, "uint8", 32, 16)
    assert index.metadata == {"k": "v"}
    assert index.source_kind is None
    assert index.version == (0, 2)
    assert write_index(index, index.index_offset) == small_file()[index.index_offset :]


def test_an_unknown_record_is_skipped_unless_it_must_be_understood() -> None:
    data = small_file()
    index = read_index(BufferSource(data))
    stored = data[48:-64]
    raw = zlib.decompress(stored) if data[-64 + 44] else stored
    for flags in (0, 1):
        extended = data[:48] + seal_index(
            raw + struct.pack("<HHQ", 999, flags, 5) + b"hello", 48, index.data_nbytes, 1
        )
        if flags:
            with pytest.raises(DecodeError, match="unsupported_record"):
                read_index(BufferSource(extended))
        else:
            assert read_index(BufferSource(extended)).unknown_records == 1
            assert wcodec.decode(extended).tolist() == [[9, 2, 5]]


def patched(offset: int, value: bytes) -> bytes:
    """The small file with some bytes of its footer replaced and the footer's CRC-32 made right
    again.
    """
    data = bytearray(small_file())
    foot = len(data) - 64
    data[foot + offset : foot + offset + len(value)] = value
    data[foot + 52 : foot + 56] = struct.pack("<I", zlib.crc32(data[foot : foot + 52]))
    return bytes(data)


FOOTER_LIES = [
    (0, struct.pack("<Q", 47), "bad_range"),
    (0, struct.pack("<Q", 1 << 63), "bad_range"),
    (8, struct.pack("<Q", 1 << 62), "bad_range"),
    (16, struct.pack("<Q", 1 << 40), "bad_range"),
    (24, struct.pack("<Q", 1 << 50), "truncated"),
    (24, struct.pack("<Q", 7), "bad_range"),
    (32, struct.pack("<Q", 4), "bad_range"),
    (40, struct.pack("<I", 2), "bad_range"),
    (44, b"\x02", "unsupported_coder"),
    (45, b"\x01", "bad_value"),
    (48, b"\0\0\0\0", "bad_checksum"),
    (56, b"WCODECFU", "bad_magic"),
]


@pytest.mark.parametrize(("offset", "value", "code"), FOOTER_LIES)
def test_a_footer_that_lies_is_refused(offset: int, value: bytes, code: str) -> None:
    with pytest.raises(DecodeError) as e:
        read_index(BufferSource(patched(offset, value)))
    assert e.value.code == code


@pytest.mark.parametrize(
    ("head", "code"),
    [
        (lambda h: b"\x88" + h[1:], "bad_magic"),
        (lambda h: b"PK\x03\x04" + h[4:], "bad_magic"),
        (lambda h: h[:10] + b"\x03" + h[11:], "bad_checksum"),
        (lambda h: _sealed(h[:8] + b"\x01\0" + h[10:28]), "unsupported_version"),
        (lambda h: _sealed(h[:10] + b"\x01\0" + h[12:28]), "unsupported_version"),
        (lambda h: _sealed(h[:10] + b"\x03\0" + h[12:28]), "unsupported_version"),
        (lambda h: _sealed(h[:12] + b"\x01" + h[13:28]), "bad_value"),
        (lambda h: _sealed(h[:23] + b"\x01" + h[24:28]), "bad_value"),
    ],
)
def test_a_wrong_header_is_refused(head: Callable[[bytes], bytes], code: str) -> None:
    data = small_file()
    with pytest.raises(DecodeError) as e:
        read_index(BufferSource(head(data[:32]) + data[32:]))
    assert e.value.code == code


def _sealed(head: bytes) -> bytes:
    return head + struct.pack("<I", zlib.crc32(head))


def test_every_prefix_is_truncated() -> None:
    data = small_file()
    for n in range(len(data)):
        with pytest.raises(DecodeError) as e:
            read_index(BufferSource(data[:n]))
        assert e.value.code in ("truncated", "bad_checksum", "bad_range"), n
        if n < 96:
            assert e.value.code == "truncated", n


def test_an_index_with_one_byte_changed_never_breaks_the_parser() -> None:
    """Each byte of the index, with a CRC-32 that fits again, as an attacker would:
    refused by code, or taken.
    """
    a = np.arange(40 * 30, dtype=np.uint8).reshape(40, 30) // 7
    stream = io.BytesIO()
    writer = Encoder(wcodec.EncodeOptions(segment=(32, 32), tile=(16, 16), force=True)).start(
        stream
    )
    writer.add("weight", a)
    writer.add("bias", np.arange(9, dtype=np.float32))
    writer.finish({"key": "value"}, b"a source header")
    data, codes = stream.getvalue(), set()
    index = read_index(BufferSource(data))
    raw = write_records(index)
    for at in range(len(raw)):
        for value in {0, 1, 255, raw[at] ^ 1, raw[at] ^ 128, (raw[at] + 1) % 256} - {raw[at]}:
            changed = raw[:at] + bytes([value]) + raw[at + 1 :]
            lying = data[: index.index_offset] + seal_index(
                changed, index.index_offset, index.data_nbytes, 2
            )
            try:
                with wcodec.open(io.BytesIO(lying)) as f:
                    for name in f.keys():  # noqa: SIM118
                        f.get_tensor(name)
            except DecodeError as e:
                codes.add(e.code)
    assert codes >= {
        "bad_range",
        "bad_value",
        "bad_table",
        "bad_name",
        "bad_checksum",
        "unsupported_coder",
        "unsupported_record",
    }


def write_records(index: wcodec.reference.container.Index) -> bytes:
    """The index records, not compressed."""
    data = write_index(index, index.index_offset)
    stored = data[:-64]
    return zlib.decompress(stored) if data[-64 + 44] else stored


@pytest.mark.parametrize("n", [1, 100])
def test_a_number_too_large_for_its_column_is_refused(backend: Backend, n: int) -> None:
    """In a file of one tensor, and among many, whose columns are checked together."""
    whole = Whole(0)
    writer = Encoder().start(whole)
    for i in range(n):
        writer.add(f"t{i:02}", np.arange(5 + i, dtype=np.uint8))
    writer.finish()
    data = whole.getvalue()
    index = read_index(BufferSource(data))
    raw = write_records(index)
    start = len(raw) - 5 * (3 + 4 * 2)  # of the columns of the last tensor, each of one value
    of_four_bytes = {2, 4, 6, 8, 10}  # patches, tables, units
    for column in range(11):
        patched_raw = bytearray(raw)
        assert patched_raw[start + 5 * column] == 0
        patched_raw[start + 5 * column + 2] = 1  # 256 more
        file = data[: index.index_offset] + seal_index(
            bytes(patched_raw), index.index_offset, index.data_nbytes, n
        )
        with pytest.raises(DecodeError) as e:
            read_index(BufferSource(file), backend.read_tables, backend.check_plan)
        assert e.value.tensor == f"t{n - 1:02}"
        if column not in of_four_bytes:
            assert e.value.code == "bad_value"
            assert "more than 255" in e.value.message
