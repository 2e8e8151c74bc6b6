"""Hub form: there and back byte for byte, readable by safetensors,
and no damage that gets through.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from inputs import ARRAY_DTYPES, BY_NAME, bits, make_array, safetensors_bytes
from memory import peak_of
from sampling import exhaustive

import wcodec
from wcodec.backends import Backend, use_backend
from wcodec.backends.numba.backend import NumbaBackend
from wcodec.directories.hub_header import is_hub, is_stream, parse_version
from wcodec.directories.hub_reading import HubFile, decode_hub_file, verify_hub_file
from wcodec.directories.hub_writing import encode_hub_file
from wcodec.errors import DecodeError, EncodeError
from wcodec.files.safetensors_header import read_safetensors_header

MAGIC = b"\x89WCODEC\n"
GAUSSIAN = make_array(BY_NAME["bfloat16"], (100, 80), "gaussian")
NOISE = np.random.default_rng(1).bytes(6000)
Tensors = list[tuple[str, str, list[int], bytes]]


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file as a dict, and the rest."""
    (n,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + n]), data[8 + n :]


def joined(header: dict[str, Any], rest: bytes) -> bytes:
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + rest


def there_and_back(folder: Path, data: bytes) -> bytes:
    """Bytes of the file in hub form, after the original has come back from it."""
    (folder / "in").write_bytes(data)
    sizes = encode_hub_file(folder / "in", folder / "hub", overwrite=True)
    assert sizes == (len(data), (folder / "hub").stat().st_size)
    assert is_hub(folder / "hub")
    assert decode_hub_file(folder / "hub", folder / "out", overwrite=True) == (sizes[1], len(data))
    assert (folder / "out").read_bytes() == data
    assert verify_hub_file(folder / "hub") == (sizes[1], len(data))
    assert sorted(p.name for p in folder.iterdir()) == ["hub", "in", "out"]
    return (folder / "hub").read_bytes()


W = ("w", "BF16", [100, 80], bits(GAUSSIAN))
CHECKPOINTS = {
    "empty": safetensors_bytes([]),
    "metadata alone": safetensors_bytes([], {"format": "pt", "empty": "", "snow": "\N{SNOWMAN}"}),
    "padded header": safetensors_bytes(
        [W, ("a", "F32", [2], bytes(8))], {"format": "pt"}, padding=13
    ),
    "header out of order": safetensors_bytes(
        [(n, "U8", [3], n.encode() * 3) for n in "zax"] + [W], {"a": "b"}, order=[2, 3, 0, 1]
    ),
    "names": safetensors_bytes(
        [
            (n, "BF16", [100, 80], bits(GAUSSIAN))
            for n in ("", "a/b", 'quote"d', "line\nbreak", "\N{SNOWMAN}")
        ]
    ),
    "unknown dtypes": safetensors_bytes(
        [
            ("a", "F4", [100, 200], bytes(10_000)),
            W,
            ("b", "F6_E2M3", [4], b"abc"),
            ("c", "X", [7], b"an"),
        ]
    ),
    "no elements": safetensors_bytes(
        [("a", "F32", [0], b""), ("b", "BF16", [3, 0, 2], b""), W, ("d", "F64", [0], b"")]
    ),
    "scalars": safetensors_bytes(
        [("a", "F32", [], b"abcd"), ("b", "BOOL", [], b"\x01"), ("c", "C64", [], b"abcdefgh")]
    ),
    "booleans of other bytes": safetensors_bytes(
        [("a", "BOOL", [5000], b"\x00\x02\xff\x01\x01" * 1000)]
    ),
    "all dtypes": safetensors_bytes(
        [
            (d.name, d.safetensors, [90, 80], bits(make_array(d, (90, 80), "gaussian", i)))
            for i, d in enumerate(ARRAY_DTYPES)
        ]
    ),
    "a tensor that looks like a stream": safetensors_bytes(
        [("a", "U8", [100], MAGIC + bytes(92)), W, ("b", "U8", [8], MAGIC)]
    ),
    "one that is a stream": safetensors_bytes(
        [("a", "U8", [len(data := wcodec.encode(GAUSSIAN))], data)]
    ),
    "one of two dimensions": safetensors_bytes([("a", "U8", [2, 8], MAGIC * 2)]),
    "noise between": safetensors_bytes(
        [
            W,
            ("n", "I32", [1500], NOISE),
            ("v", *W[1:]),
            ("m", "I64", [750], NOISE),
            ("s", "I16", [1], b"ab"),
        ]
    ),
    "tied": safetensors_bytes([W, ("v", *W[1:])]),
    "many dimensions": safetensors_bytes([("a", "U8", [1] * 39 + [8000], bytes(8000))]),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_file_comes_back_byte_for_byte(backend: Backend, tmp_path: Path, name: str) -> None:
    hub = there_and_back(tmp_path, CHECKPOINTS[name])
    with use_backend("reference"):
        assert there_and_back(tmp_path, CHECKPOINTS[name]) == hub


def decoded(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return wcodec.decode(array) if is_stream(array) else array


def test_safetensors_reads_it(tmp_path: Path) -> None:
    tensors = {
        "w": GAUSSIAN,
        "x": make_array(BY_NAME["float32"], (64, 65), "gaussian"),
        "bias": np.arange(7, dtype=np.float32),
        "noise": np.frombuffer(NOISE, np.int64),
        "byte": np.array(7, np.int8),
        "none": np.zeros((0, 3), np.float16),
    }
    safetensors.numpy.save_file(tensors, tmp_path / "in", {"format": "pt"})
    encode_hub_file(tmp_path / "in", tmp_path / "hub")
    loaded = safetensors.numpy.load_file(tmp_path / "hub")
    assert {n for n, a in loaded.items() if is_stream(a)} == {"w", "x"}
    back = {n: decoded(a) for n, a in loaded.items()}
    assert {n: (a.shape, a.dtype, bits(a)) for n, a in back.items()} == {
        n: (a.shape, a.dtype, bits(a)) for n, a in tensors.items()
    }
    with safetensors.safe_open(tmp_path / "hub", "numpy") as f:
        assert f.metadata().keys() == {"format", "wcodec", "wcodec_crc32", "wcodec_header"}
        assert (f.metadata()["format"], f.metadata()["wcodec"]) == ("pt", "0.2")
        assert bits(wcodec.decode(f.get_tensor("w"))) == bits(GAUSSIAN)


def test_what_is_in_the_file(tmp_path: Path) -> None:
    """The rules of spec/hub.md, read from the bytes alone."""
    original = CHECKPOINTS["noise between"]
    hub = there_and_back(tmp_path, original)
    header, rest = split(hub)
    metadata = header.pop("__metadata__")
    (n,) = struct.unpack("<Q", original[:8])
    assert metadata["wcodec_header"].encode() == original[8 : 8 + n]
    parts = [original[: 8 + n], W[3], NOISE, W[3], NOISE, b"ab"]
    assert metadata["wcodec_crc32"] == "".join(f"{zlib.crc32(p):08x}" for p in parts)
    assert list(header) == ["m", "n", "s", "w", "v"], "plain tensors first, largest dtype first"
    assert [header[k]["dtype"] for k in header] == ["I64", "I32", "I16", "U8", "U8"]
    assert [header[k]["shape"] for k in "mns"] == [[750], [1500], [1]]
    for k, size in (("m", 8), ("n", 4), ("s", 2)):
        start, stop = header[k]["data_offsets"]
        assert (len(hub) - len(rest) + start) % size == 0
        assert rest[start:stop] == {"m": NOISE, "n": NOISE, "s": b"ab"}[k]
    start, stop = header["w"]["data_offsets"]
    assert header["w"]["shape"] == [stop - start]
    assert rest[start:stop] == wcodec.encode(GAUSSIAN)
    assert len(rest) == header["v"]["data_offsets"][1]


def test_small_tensors_stay_as_they_are(tmp_path: Path) -> None:
    hub = there_and_back(
        tmp_path,
        safetensors_bytes([("a", "U8", [4095], bytes(4095)), ("b", "U8", [4096], bytes(4096))]),
    )
    header, _ = split(hub)
    assert header["a"]["shape"] == [4095]
    assert header["b"]["shape"][0] < 400


def test_options_reach_the_encoder(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(safetensors_bytes([W]))
    options = wcodec.EncodeOptions(segment=(50, 80))
    encode_hub_file(tmp_path / "in", tmp_path / "hub", options, overwrite=True)
    _, rest = split((tmp_path / "hub").read_bytes())
    assert rest == wcodec.encode(GAUSSIAN, options) != wcodec.encode(GAUSSIAN)


def test_progress_counts_every_byte_of_the_tensors_once(tmp_path: Path) -> None:
    done = list[int]()
    (tmp_path / "in").write_bytes(CHECKPOINTS["noise between"])
    encode_hub_file(tmp_path / "in", tmp_path / "hub", progress=done.append)
    assert sum(done) == 2 * GAUSSIAN.nbytes + 2 * len(NOISE) + 2
    done.clear()
    decode_hub_file(tmp_path / "hub", tmp_path / "out", progress=done.append)
    assert sum(done) == len(CHECKPOINTS["noise between"])


def test_what_is_hub_form(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    for data in (
        b"",
        b"short",
        b"x" * 100,
        safetensors_bytes([W]),
        CHECKPOINTS["one of two dimensions"],
        wcodec.encode(GAUSSIAN),
    ):
        plain.write_bytes(data)
        assert not is_hub(plain)
    plain.write_bytes(CHECKPOINTS["one that is a stream"])
    assert is_hub(plain)
    hub = there_and_back(make(tmp_path / "f"), CHECKPOINTS["empty"])
    assert is_hub(read_safetensors_header(memoryview(hub)))
    assert not is_hub(read_safetensors_header(memoryview(CHECKPOINTS["empty"])))
    stream = np.frombuffer(wcodec.encode(GAUSSIAN), np.uint8)
    assert is_stream(stream)
    for other in (
        stream.view(np.int8),
        stream[1:],
        stream[:7],
        stream[None],
        GAUSSIAN,
        np.zeros(0, np.uint8),
    ):
        assert not is_stream(other)


def make(folder: Path) -> Path:
    folder.mkdir()
    return folder


# ---- what is refused -----------------------------------------------------------------------------
def refused(folder: Path, data: bytes) -> DecodeError:
    """Decode and verify a bad file: the error, and nothing left."""
    (folder / "bad").write_bytes(data)
    before = sorted(p.name for p in folder.iterdir())
    with pytest.raises(DecodeError) as e:
        decode_hub_file(folder / "bad", folder / "back")
    assert sorted(p.name for p in folder.iterdir()) == before
    with pytest.raises(DecodeError) as again:
        verify_hub_file(folder / "bad")
    assert (again.value.code, again.value.tensor) == (e.value.code, e.value.tensor)
    return e.value


@pytest.mark.parametrize("key", ["wcodec", "wcodec_header", "wcodec_crc32"])
def test_a_file_in_hub_form_is_not_encoded_again(tmp_path: Path, key: str) -> None:
    (tmp_path / "in").write_bytes(safetensors_bytes([W], {key: "0.2"}))
    with pytest.raises(
        EncodeError, match=r"bad_source: in '.*in': the file is in hub form already"
    ):
        encode_hub_file(tmp_path / "in", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"{}", "bad_source"),
        (safetensors_bytes([W])[:-1], "bad_source"),
        (safetensors_bytes([("\ud800", "U8", [1], b"x")]), "bad_name"),
        (safetensors_bytes([W], {"x": "\ud800"}), "bad_name"),
    ],
)
def test_a_bad_source(tmp_path: Path, data: bytes, code: str) -> None:
    (tmp_path / "in").write_bytes(data)
    with pytest.raises(EncodeError) as e:
        encode_hub_file(tmp_path / "in", tmp_path / "out")
    assert e.value.code == code
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_a_header_too_large_for_safetensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").write_bytes(safetensors_bytes([W]))
    monkeypatch.setattr("wcodec.files.safetensors_header.MAX_HEADER_NBYTES", 100)
    with pytest.raises(EncodeError, match="resource_limit"):
        encode_hub_file(tmp_path / "in", tmp_path / "out")


SMALL = safetensors_bytes(
    [
        ("q", "U8", [8], MAGIC),
        ("w", "BF16", [64, 40], bits(make_array(BY_NAME["bfloat16"], (64, 40), "gaussian", 1))),
        ("v", "BF16", [64, 40], bits(make_array(BY_NAME["bfloat16"], (64, 40), "gaussian", 2))),
        ("b", "F32", [3], b"abcdefghijkl"),
        ("f", "F4", [2, 2], b"xy"),
    ],
    {"format": "pt"},
)


@pytest.mark.parametrize("step", [2, exhaustive(1)])
def test_a_flipped_bit_anywhere_is_refused(tmp_path: Path, step: int) -> None:
    """But in the padding of the outer header and in white space and digits of its JSON that mean
    the same.
    """
    with use_backend("reference"):
        data = there_and_back(make(tmp_path / "f"), SMALL)
        end = 8 + struct.unpack("<Q", data[:8])[0]
        codes, same = set[str](), 0
        for at in [*range(0, end, step), *range(end, len(data), 17 * step)]:
            bad = bytearray(data)
            bad[at] ^= 1 << (at * 5 + at // 8) % 8
            (tmp_path / "bad").write_bytes(bad)
            try:
                back = b"".join(HubFile(tmp_path / "bad").restored())
            except DecodeError as e:
                codes.add(e.code)
            else:
                assert at < end
                assert back == SMALL
                same += 1
    assert same <= 8
    assert codes >= {"bad_magic", "bad_checksum", "bad_value", "truncated"}


def test_a_cut_at_any_length_is_refused(tmp_path: Path) -> None:
    with use_backend("reference"):
        data = there_and_back(make(tmp_path / "f"), SMALL)
        assert {refused(tmp_path, data[:n]).code for n in range(9, len(data), 41)} == {"truncated"}
        assert refused(tmp_path, b"").code == "truncated"
        assert refused(tmp_path, data[:5]).code == "bad_magic"
        assert refused(tmp_path, data + b"x").code == "bad_range"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], bytes]:
    """Header and rest of ``SMALL`` in hub form."""
    return split(there_and_back(tmp_path_factory.mktemp("small"), SMALL))


def offsets(entry: dict[str, Any]) -> slice:
    return slice(*entry["data_offsets"])


def swap(header: dict[str, Any]) -> None:
    header["w"], header["v"] = header["v"], header["w"]


def metadata(key: str, change: Callable[[str], str]) -> Callable[[dict[str, Any]], None]:
    def apply(header: dict[str, Any]) -> None:
        header["__metadata__"][key] = change(header["__metadata__"].get(key, ""))

    return apply


def original(old: str, new: str) -> Callable[[dict[str, Any]], None]:
    """A change of the original header that fits its CRC-32."""

    def apply(header: dict[str, Any]) -> None:
        texts = header["__metadata__"]
        assert old in texts["wcodec_header"]
        raw = texts["wcodec_header"].replace(old, new).encode("utf-8", "surrogatepass")
        texts["wcodec_header"] = raw.decode("utf-8", "surrogatepass")
        texts["wcodec_crc32"] = (
            f"{zlib.crc32(struct.pack('<Q', len(raw)) + raw):08x}" + texts["wcodec_crc32"][8:]
        )

    return apply


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], object], str, str | None]] = {
    "streams swapped": (swap, "bad_checksum", "w"),
    "a newer version": (metadata("wcodec", lambda _: "0.3"), "unsupported_version", None),
    "a much newer version": (metadata("wcodec", lambda _: "2.0"), "unsupported_version", None),
    "an older version": (metadata("wcodec", lambda _: "0.1"), "unsupported_version", None),
    "a version that is none": (metadata("wcodec", lambda _: "new"), "bad_value", None),
    "a huge version": (metadata("wcodec", lambda _: "0." + "9" * 5000), "bad_value", None),
    "no version": (lambda h: h["__metadata__"].pop("wcodec"), "bad_value", None),
    "no header": (lambda h: h["__metadata__"].pop("wcodec_header"), "bad_value", None),
    "no checksums": (lambda h: h["__metadata__"].pop("wcodec_crc32"), "bad_value", None),
    "checksums of other length": (metadata("wcodec_crc32", lambda t: t + "0"), "bad_value", None),
    "checksums of other digits": (
        metadata("wcodec_crc32", lambda t: "g" + t[1:]),
        "bad_value",
        None,
    ),
    "another checksum of a plain tensor": (
        metadata("wcodec_crc32", lambda t: t[:-8] + "00000000"),
        "bad_checksum",
        "f",
    ),
    "more metadata": (metadata("more", lambda _: "x"), "bad_value", None),
    "other metadata": (metadata("format", lambda _: "np"), "bad_value", None),
    "a header that is not JSON": (original("{", "["), "bad_value", None),
    "a header that is not UTF-8": (original("pt", "\ud800"), "bad_name", None),
    "white space added": (metadata("wcodec_header", lambda t: t + " "), "bad_checksum", None),
    "another shape": (original("[64, 40]", "[40, 64]"), "bad_value", "w"),
    "another dtype": (original("BF16", "F16"), "bad_value", "w"),
    "another dtype of a plain tensor": (original("F32", "I32"), "bad_value", "b"),
    "another unknown dtype": (original("F4", "F5"), "bad_value", "f"),
    "another shape of an unknown dtype": (original("[2, 2]", "[4, 1]"), "bad_value", "f"),
    "another size": (original("[3]", "[4]"), "bad_value", "b"),
    "a gap": (original("10248, 10260", "10249, 10261"), "bad_value", None),
    "a tensor renamed": (original('"b"', '"c"'), "bad_value", "c"),
    "a tensor more": (
        lambda h: h.update(
            z={"dtype": "U8", "shape": [0], "data_offsets": h["b"]["data_offsets"][:1] * 2}
        ),
        "bad_value",
        "z",
    ),
    "a tensor less in the header": (
        original(', "f": {"dtype": "F4", "shape": [2, 2], "data_offsets": [10260, 10262]}', ""),
        "bad_value",
        None,
    ),
    "a huge size": (
        lambda h: h["w"].update(data_offsets=[1 << 62, (1 << 62) + 5]),
        "bad_value",
        None,
    ),
    "metadata that are no texts": (lambda h: h["__metadata__"].update(wcodec=2), "bad_value", None),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_header(tmp_path: Path, small: tuple[dict[str, Any], bytes], name: str) -> None:
    change, code, tensor = CHANGES[name]
    header, rest = json.loads(json.dumps(small[0])), small[1]
    change(header)
    error = refused(tmp_path, joined(header, rest))
    assert error.code == code, error
    if tensor is not None:
        assert error.tensor == tensor


def with_stream(small: tuple[dict[str, Any], bytes], stream: bytes) -> bytes:
    """Tensor ``v``, the last, replaced."""
    header, rest = json.loads(json.dumps(small[0])), small[1]
    start, stop = header["v"]["data_offsets"]
    assert stop == max(e["data_offsets"][1] for n, e in header.items() if n != "__metadata__")
    header["v"].update(shape=[len(stream)], data_offsets=[start, start + len(stream)])
    return joined(header, rest[:start] + stream)


def test_streams_that_are_not_the_tensor(
    tmp_path: Path, small: tuple[dict[str, Any], bytes]
) -> None:
    array = make_array(BY_NAME["bfloat16"], (64, 40), "gaussian", 2)
    good = wcodec.encode(array)
    (tmp_path / "good").write_bytes(with_stream(small, good))
    decode_hub_file(tmp_path / "good", tmp_path / "out", overwrite=True)
    assert (tmp_path / "out").read_bytes() == SMALL
    flipped = bytearray(good)
    flipped[100] ^= 1
    newer = bytearray(good)
    newer[10] += 1
    newer[28:32] = struct.pack("<I", zlib.crc32(newer[:28]))
    wcodec.save_file({"": array, "other": array}, tmp_path / "two")
    wcodec.save_file({"name": array}, tmp_path / "named")
    base = array.copy()
    base[3] = 0
    wcodec.save_file({"": base}, tmp_path / "base")
    wcodec.save_file({"": array}, tmp_path / "difference", base=tmp_path / "base")
    cases: list[tuple[bytes, str]] = [
        (bytes(flipped), "bad_checksum"),
        (bytes(newer), "unsupported_version"),
        (good[:-1], "truncated"),
        (good[:40], "truncated"),
        ((tmp_path / "two").read_bytes(), "bad_value"),
        ((tmp_path / "named").read_bytes(), "bad_value"),
        ((tmp_path / "difference").read_bytes(), "bad_base"),
        (wcodec.encode(array.reshape(40, 64)), "bad_value"),
        (wcodec.encode(array.view(np.float16)), "bad_value"),
        (wcodec.encode(array + array.dtype.type(1)), "bad_checksum"),
        (b"no stream at all", "bad_value"),
    ]
    for stream, code in cases:
        error = refused(tmp_path, with_stream(small, stream))
        assert (error.code, error.tensor) == (code, "v"), error


def test_where_an_error_is(tmp_path: Path) -> None:
    data = bytearray(there_and_back(make(tmp_path / "f"), SMALL))
    at = bytes(data).rindex(MAGIC)
    data[at + 100] ^= 1
    error = refused(tmp_path, bytes(data))
    assert (error.code, error.tensor, error.offset) == ("bad_checksum", "v", at + 32)


def test_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").write_bytes(SMALL)
    encode_hub_file(tmp_path / "in", tmp_path / "hub")
    total = HubFile(tmp_path / "hub").data_nbytes
    assert total == 2 * 64 * 40 * 2 + 8 + 12 + 2
    with pytest.raises(DecodeError, match="resource_limit"):
        decode_hub_file(tmp_path / "hub", tmp_path / "out", max_nbytes=total - 1)
    decode_hub_file(tmp_path / "hub", tmp_path / "out", max_nbytes=total)
    (tmp_path / "out").unlink()
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(total=total, free=total))
    with pytest.raises(
        DecodeError,
        match=r"resource_limit: the tensors have .* bytes; the disk of .*out.* has room for",
    ):
        decode_hub_file(tmp_path / "hub", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_versions() -> None:
    assert parse_version("0.2") == (0, 2)
    for text in ("", "0", "0.2.1", "a.b", " 0.2", "0.2\n", "-1.2", None, 0.2, "\u0661.\u0662"):
        with pytest.raises(DecodeError, match="bad_value"):
            parse_version(text)
    with pytest.raises(DecodeError, match=r"unsupported_version: .* a newer wcodec is needed"):
        parse_version("0.10")


# ---- files without an original header ------------------------------------------------------------
@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"format": "pt", "wcodec": "0.2"}])
def test_a_file_that_another_program_wrote(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    """As ``save_pretrained`` writes streams: no original header, so one is made."""
    half = make_array(BY_NAME["float16"], (50, 70), "gaussian")
    streams = {
        "w": np.frombuffer(wcodec.encode(GAUSSIAN), np.uint8),
        "h": np.frombuffer(wcodec.encode(half), np.uint8),
    }
    plain = {"b": np.arange(5.0), "u": np.zeros(3, np.uint8)}
    safetensors.numpy.save_file({**streams, **plain}, tmp_path / "hub", metadata)
    assert is_hub(tmp_path / "hub")
    decode_hub_file(tmp_path / "hub", tmp_path / "out", overwrite=True)
    back = safetensors.numpy.load_file(tmp_path / "out")
    wanted = {"w": GAUSSIAN, "h": half, **plain}
    assert {n: (a.shape, a.dtype, bits(a)) for n, a in back.items()} == {
        n: (a.shape, a.dtype, bits(a)) for n, a in wanted.items()
    }
    header, rest = split((tmp_path / "out").read_bytes())
    assert header.get("__metadata__") == (metadata and {"format": "pt"})
    assert [n for n in header if n != "__metadata__"] == ["b", "h", "w", "u"], (
        "aligned: by size of the dtype, then by name"
    )
    assert ((tmp_path / "out").stat().st_size - len(rest)) % 8 == 0


def test_a_plain_file_is_not_decoded(tmp_path: Path) -> None:
    assert refused(tmp_path, safetensors_bytes([W])).code == "bad_magic"
    assert refused(tmp_path, wcodec.encode(GAUSSIAN)).code == "bad_magic"


# ---- memory --------------------------------------------------------------------------------------
def peak_memory(folder: Path, n_rows: int) -> int:
    """Bytes that encoding and decoding a file ask for at their peak: mapped inputs do not count."""
    rng = np.random.default_rng(9)
    block = rng.standard_normal((1000, 4096), np.float32).astype(ml_dtypes.bfloat16).tobytes()
    half = n_rows * 4096
    header = {
        "w": {"dtype": "BF16", "shape": [n_rows // 2, 4096], "data_offsets": [0, half]},
        "noise": {"dtype": "I64", "shape": [half // 8], "data_offsets": [half, 2 * half]},
    }
    with (folder / "in").open("wb") as f:
        f.write(joined(header, b""))
        for _ in range(n_rows // 2000):
            f.write(block)
        for _ in range(n_rows // 2000):
            f.write(rng.bytes(len(block)))

    def steps() -> None:
        backend = NumbaBackend(1)  # which keeps memory for the next calls
        encode_hub_file(folder / "in", folder / "hub", None, backend, overwrite=True)
        decode_hub_file(folder / "hub", folder / "out", backend, overwrite=True)

    peak = peak_of(steps)
    assert (folder / "in").read_bytes() == (folder / "out").read_bytes()
    assert split((folder / "hub").read_bytes())[0]["noise"]["dtype"] == "I64", (
        "the streams were moved"
    )
    return peak


@pytest.mark.parametrize("n_rows", [4000, exhaustive(8000)])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, n_rows: int) -> None:
    # 66 MB more, of 33 or 66
    small, large = peak_memory(tmp_path, n_rows), peak_memory(tmp_path, n_rows + 8000)
    assert large < small + 30e6 < 140e6
