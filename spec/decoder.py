"""A decoder of the whole format in plain Python, made from the text of `wcodec.md` alone.

    python spec/decoder.py INPUT OUTPUT [BASE]

Read it from the top down: `decode_file` is the whole, and what a function calls comes below it.
R9.2 and the like are rules of `wcodec.md`. A function that names rules does what they say. A file
that breaks one is refused with an error code and the number of the rule. Names are those of the
spec. Operands (14.1) are decoded like all other tensors. It is slow: a megabyte takes seconds.
"""

from __future__ import annotations

import math
import os
import sys
import zlib
from types import SimpleNamespace as Fields  # named values, as of a file or a tensor

MOST_NBYTES = 1 << 32  # of decoded tensors: all of them are held in memory
MOST_INDEX_NBYTES = 1 << 28  # of index records
NO_BASE = Fields(names={})


# ---- The whole: chapters 11 and 12 ---------------------------------------------------------------
def decode_file(data: bytes, base_data: bytes = b"") -> list[bytes]:
    """R4.22, R12.1, R12.4: what a file restores to, in parts: `source_header`, then each tensor.

    `base_data` is the file of the base, empty if none is given. A duplicate is in the list of
    tensors as the tensor that it names, with the number of that one.
    """
    file = read_index(data)
    require(file.data_nbytes <= MOST_NBYTES, "resource_limit", "chapter 16")
    needs_base = any(t.difference for t in file.tensors)
    base = open_base(base_data, file.base_sha256) if needs_base else NO_BASE
    decoded: list[bytes] = []
    for number, t in enumerate(file.tensors):
        decoded.append(decoded[t.number] if t.number < number else decode_tensor(t, base))
    return [file.source_header, *decoded]


def decode_tensor(t: Fields, base: Fields) -> bytes:
    """R6.2, R11.1, R11.3, R12.13: decodes the segments, and puts their rows in their places."""
    of_base = base_words(t, base) if t.difference else b""
    data, size, listed = bytearray(t.nbytes), t.word_nbytes, list[list[int]]()
    if t.is_sparse:
        listed = decode_lists(t, data)
    else:
        for s, words in decode_segments(t, t.payload_offset):
            width = s.width * size
            for r in range(s.height):
                start = ((s.row + r) * t.cols + s.col) * size
                data[start : start + width] = words[r * width : (r + 1) * width]
    for i in range(0, len(of_base), size):
        z, b = uint(data[i : i + size]), uint(of_base[i : i + size])
        data[i : i + size] = add_base(z, b, t.difference, size)
    for places, crc32 in zip(listed, t.words_crc32, strict=True):
        words = b"".join(data[i * size : (i + 1) * size] for i in places)
        require(zlib.crc32(words) == crc32, "bad_checksum", "R12.13")
    require(zlib.crc32(data) == t.crc32, "bad_checksum", "R11.3")
    return bytes(data)


def decode_segments(t: Fields, at: int) -> list[tuple[Fields, bytes]]:
    """R10.1, R11.2: the segments whose records start at `at` in the file, each with its words."""
    decoded = []
    for k in range(t.n_segments):
        s = segment(t, k)
        record = t.file.data[at : at + s.nbytes]
        at += s.nbytes
        require(zlib.crc32(record) == s.crc32, "bad_checksum", "R11.2")
        decoded.append((s, decode_segment(record, s)))
    return decoded


def decode_lists(t: Fields, data: bytearray) -> list[list[int]]:
    """R12.8, R12.10, R12.11: puts the listed words of a sparse tensor in their places; the others
    stay 0. Gives the places, for each segment with some.
    """
    if not t.touched:
        return []
    gaps = decode_segments(t.gaps, t.payload_offset)
    words = decode_segments(t.listed, t.payload_offset + t.gaps.nbytes)
    size, places = t.word_nbytes, list[list[int]]()
    for k, (_, own_gaps), (s, own_words) in zip(t.touched, gaps, words, strict=True):
        start, end = k * t.segment_cols, min((k + 1) * t.segment_cols, t.cols)
        at, own = start, list[int]()
        for gap in own_gaps:
            at += gap
            if gap < 255:
                own.append(at)
                at += 1
        is_right = len(own) == s.n and at <= end and own_gaps[-1] < 255
        require(is_right, "bad_patch", "R12.11")
        for i, place in enumerate(own):
            data[place * size : (place + 1) * size] = own_words[i * size : (i + 1) * size]
        places.append(own)
    return places


def open_base(base_data: bytes, base_sha256: bytes) -> Fields:
    """R11.4, R12.6: the base, whose content hash has to be that of the BASE record."""
    import hashlib  # here, for it is slow to import, and few files need it

    require(base_data != b"", "bad_base", "R12.6 (no base is given)")
    base, sha = read_index(base_data), hashlib.sha256()
    for name in sorted(base.names, key=str.encode):
        t, text = base.names[name], name.encode()
        sha.update(len(text).to_bytes(4, "little") + text + bytes([t.dtype, t.rank]))
        sha.update(b"".join(n.to_bytes(8, "little") for n in t.shape))
        sha.update(t.crc32.to_bytes(4, "little"))
    require(sha.digest() == base_sha256, "bad_base", "R12.6 (it is another base)")
    return base


def base_words(t: Fields, base: Fields) -> bytes:
    """R12.6: the tensor in the base. It is refused if it is a difference: its base is not here."""
    b = base.names.get(t.name)
    is_there = b is not None and (b.dtype, b.shape) == (t.dtype, t.shape)
    require(is_there, "bad_base", "R12.6 (the base does not have the tensor)")
    return decode_tensor(b, NO_BASE)


def add_base(z: int, b: int, difference: int, nbytes: int) -> bytes:
    """R12.5, R12.12: the word that differs from the word b of the base by z."""
    if difference == XOR:
        w = b ^ z
    elif z % 2 == 0:  # MINUS: z is 2 d
        w = b + z // 2
    else:  # z is 2 (2^n - d) - 1
        w = b - (z + 1) // 2
    return (w % (1 << 8 * nbytes)).to_bytes(nbytes, "little")


# ---- The container: chapter 4 --------------------------------------------------------------------
TABLES, SOURCE, METADATA, TENSOR, CONTEXTS, BASE, DUPLICATE = 1, 2, 3, 4, 5, 6, 7  # records


def read_index(data: bytes) -> Fields:
    """R4.13, R4.16, R4.33: checks header and footer, and reads the records between them."""
    check_header(data)
    foot = read_footer(data)
    stored = data[foot.index_offset : -64]
    require(zlib.crc32(stored) == foot.index_crc32, "bad_checksum", "R4.13")
    file = Fields(data=data, tables=[], maps=[], tensors=[], names={}, types=set())
    file.source_header, file.base_sha256, file.payload_end = b"", b"", 32
    records = Reader(inflate(stored, foot))
    while records.left():
        read_record(records, file, foot.index_offset)
    file.data_nbytes = sum(t.nbytes for t in file.tensors)
    sums = len(file.tensors), file.data_nbytes
    require(file.payload_end == foot.index_offset, "bad_range", "R4.33")
    require(sums == (foot.n_tensors, foot.data_nbytes), "bad_range", "R4.16")
    return file


def check_header(data: bytes) -> None:
    """R2.5, R4.1 to R4.6: the first 32 bytes say that it is a file of a known version."""
    magic = b"\x89WCODEC\n"
    require(data[:8] == magic[: len(data)], "bad_magic", "R4.2")
    require(len(data) >= 32, "truncated", "R4.2")
    head = Reader(data[8:]).fields("major:2 minor:2 flags:4 reserved:12 header_crc32:4")
    require(zlib.crc32(data[:28]) == head.header_crc32, "bad_checksum", "R4.3")
    require((head.major, head.minor) == (0, 2), "unsupported_version", "R4.4")
    require(head.flags == 0 and head.reserved == 0, "bad_value", "R4.5")
    require(len(data) >= 96, "truncated", "R4.6")


def read_footer(data: bytes) -> Fields:
    """R4.7 to R4.12, R4.14: the last 64 bytes say where the index is and how large it becomes."""
    foot = Reader(data[-64:]).fields(
        "index_offset:8 index_nbytes:8 index_raw_nbytes:8 file_nbytes:8 data_nbytes:8 n_tensors:4 "
        "index_coding:1 reserved:3 index_crc32:4 footer_crc32:4"
    )
    is_end = data[-8:] == b"WCODECFT"
    code = "bad_checksum" if is_end else "truncated"
    require(zlib.crc32(data[-64:-12]) == foot.footer_crc32, code, "R4.7")
    require(is_end, "bad_magic", "R4.8")
    require(foot.file_nbytes <= len(data), "truncated", "R4.9")
    require(foot.file_nbytes == len(data), "bad_range", "R4.9")
    ends = foot.index_offset + foot.index_nbytes + 64 == len(data)
    require(ends and foot.index_offset >= 32, "bad_range", "R4.10")
    require(foot.reserved == 0, "bad_value", "R4.11")
    require(foot.index_coding <= 1, "unsupported_coder", "R4.12")
    is_small = foot.index_raw_nbytes <= 64 * foot.index_nbytes
    is_same = foot.index_raw_nbytes == foot.index_nbytes
    require(is_small if foot.index_coding else is_same, "bad_range", "R4.14")
    require(foot.index_raw_nbytes <= MOST_INDEX_NBYTES, "resource_limit", "chapter 16")
    return foot


def inflate(stored: bytes, foot: Fields) -> bytes:
    """R4.15: the index records. At most one byte more than there should be is ever inflated."""
    if foot.index_coding == 0:
        return stored
    stream = zlib.decompressobj()
    try:
        raw = stream.decompress(stored, foot.index_raw_nbytes + 1)
    except zlib.error:
        raise Refused("bad_stream: see R4.15") from None
    is_whole = stream.eof and not stream.unused_data
    require(is_whole and len(raw) == foot.index_raw_nbytes, "bad_range", "R4.15")
    return raw


def read_record(records: Reader, file: Fields, index_offset: int) -> None:
    """R4.17 to R4.19, R4.21, R4.27, R4.28: reads an index record, and enters it in `file`."""
    kind, flags, nbytes = records.uint(2), records.uint(2), records.uint(8)
    require(flags <= 1, "bad_value", "R4.17")
    body = Reader(records.take(nbytes))
    is_early = kind in (TABLES, CONTEXTS, BASE)
    is_late = (is_early and file.tensors) or (kind == TABLES and CONTEXTS in file.types)
    is_second = kind in file.types and (is_early or kind in (SOURCE, METADATA))
    require(not is_late and not is_second, "bad_value", "R4.19")
    file.types.add(kind)
    if kind == TABLES:
        file.tables = read_tables(body)
    elif kind == SOURCE:
        require(body.uint(2) == 1, "unsupported_record", "R4.21")
        file.source_header = body.take(body.left())
    elif kind == METADATA:
        check_metadata(body)
    elif kind == TENSOR:
        read_tensor(body, file, index_offset)
    elif kind == CONTEXTS:
        file.maps = read_context_maps(body, file.tables)
    elif kind == BASE:
        file.base_sha256 = body.take(32)
        body.text(body.left())
    elif kind == DUPLICATE:
        of, name = body.uint(4), body.text(body.left())
        require(of < len(file.tensors), "bad_range", "R4.28")
        add_tensor(file.tensors[of], name, file)
    else:
        require(flags & 1 == 0, "unsupported_record", "R4.18")


def check_metadata(body: Reader) -> None:
    """R4.23, R4.24: checks the pairs. The restored file does not need them."""
    keys: set[str] = set()
    for _ in range(body.uint(4)):
        key = body.text(body.uint(4))
        require(key not in keys, "bad_name", "R4.23")
        keys.add(key)
        body.text(body.uint(4))
    require(body.left() == 0, "bad_range", "R4.24")


def read_context_maps(body: Reader, tables: list[Fields]) -> list[Fields]:
    """R4.25, R4.26: each map has a class for each context, and a table for each class."""
    maps = []
    for _ in range(body.uint(2)):
        m = body.fields("kind:1 n_classes:1")
        require(m.kind in N_CONTEXTS, "unsupported_coder", "R4.25")
        require(1 <= m.n_classes <= 16, "bad_range", "R4.25")
        m.class_of = body.take(N_CONTEXTS[m.kind])
        numbers = [body.uint(2) for _ in range(m.n_classes)]
        in_range = max(m.class_of) < m.n_classes and max(numbers) < len(tables)
        require(in_range, "bad_range", "R4.25")
        m.tables = [tables[number] for number in numbers]
        require(len({table.prob_bits for table in m.tables}) == 1, "bad_value", "R4.25")
        maps.append(m)
    require(body.left() == 0, "bad_range", "R4.26")
    return maps


# ---- Tensors and their segments: 4.4, 4.5, chapters 5 and 6 --------------------------------------
XOR, MINUS, SPARSE = 1, 2, 4  # differences, and a flag beside them
WORD_NBYTES = (1, 1, 1, 1, 2, 2, 4, 4, 8, 8, 2, 2, 4, 8, 1, 1, 1, 1, 1, 4, 8)  # of dtypes 0 to 20
COMPLEX = (19, 20)  # dtypes whose elements are two words
OFFSET = (3, 5, 7, 9)  # dtypes with this word map: signed integers
EXPONENT_BITS = {11: 8, 12: 8, 14: 4, 15: 5, 17: 4, 18: 5, 19: 8}  # dtypes with EXPONENT_FIRST
UINT8 = 2
UNSIGNED = {1: UINT8, 2: 4, 4: 6, 8: 8}  # from the bytes of a word to a dtype (R12.5)


def read_tensor(body: Reader, file: Fields, index_offset: int) -> None:
    """R4.30 to R4.35, R6.1, R6.2, R6.4, R6.5, R6.7, R12.5: reads a TENSOR record."""
    t = body.fields(
        "payload_offset:8 payload_nbytes:8 crc32:4 dtype:1 rank:1 row_rank:1 element_order:1 "
        "segment_rows:4 segment_cols:4 tile_rows:4 tile_cols:4 flags:2 name_nbytes:2 "
        "dtype_name_nbytes:2 reserved:2"
    )
    require(t.rank <= 32 and t.row_rank <= t.rank, "bad_range", "R6.1")
    t.shape = [body.uint(8) for _ in range(t.rank)]
    t.name, _ = body.text(t.name_nbytes), body.text(t.dtype_name_nbytes)
    t.difference, t.is_sparse = t.flags & 3, t.flags & SPARSE > 0
    most = MINUS if BASE in file.types else 0
    is_known = t.difference <= most and t.flags < 8 and (t.difference > 0 or not t.is_sparse)
    require(is_known and t.reserved == 0, "bad_value", "R4.31")
    require(not t.is_sparse or t.row_rank == 0, "bad_value", "R12.7")
    known = t.dtype < len(WORD_NBYTES) and t.element_order == 0
    require(known, "unsupported_coder", "R4.31")
    t.word_nbytes = WORD_NBYTES[t.dtype]
    n_words = 2 if t.dtype in COMPLEX else 1
    t.coded_dtype = UNSIGNED[t.word_nbytes] if t.difference == MINUS else t.dtype
    largest = math.prod(n or 1 for n in t.shape) * n_words * t.word_nbytes
    require(largest < 1 << 63, "bad_range", "R4.35")
    t.rows, t.cols = math.prod(t.shape[: t.row_rank]), math.prod(t.shape[t.row_rank :]) * n_words
    t.nbytes = t.rows * t.cols * t.word_nbytes
    for side, tile in (t.segment_rows, t.tile_rows), (t.segment_cols, t.tile_cols):
        require(side >= 1 and tile >= 1, "bad_range", "R6.5")
        require(side % tile == 0 and (tile >= 16 or tile == side), "bad_range", "R6.7")
    require(t.segment_rows * t.segment_cols <= 1 << 24, "bad_range", "R6.5")
    t.n_segments = -(-t.rows // t.segment_rows) * -(-t.cols // t.segment_cols)
    t.file, t.number, t.widths, t.words_crc32 = file, len(file.tensors), None, list[int]()
    nbytes = read_lists(body, t) if t.is_sparse else read_segment_table(body, t)
    require(body.left() == 0, "bad_range", "R4.30")
    require(nbytes == t.payload_nbytes, "bad_range", "R4.34")
    require(t.payload_offset == file.payload_end, "bad_range", "R4.33")
    file.payload_end += nbytes
    require(file.payload_end <= index_offset, "bad_range", "R4.33")
    add_tensor(t, t.name, file)


def add_tensor(t: Fields, name: str, file: Fields) -> None:
    """R4.32: enters a tensor under a name that no other one has."""
    require(name not in file.names, "bad_name", "R4.32")
    file.names[name] = t
    file.tensors.append(t)


def read_segment_table(body: Reader, t: Fields) -> int:
    """R4.36, R4.38, R4.39, R5.9: reads the columns, each a list with a value for each segment.
    Gives the bytes of all records.
    """
    if t.n_segments == 0:
        return 0
    require(4 * t.n_segments <= body.left(), "bad_range", "R4.38")
    t.columns = [[body.uint(4) for _ in range(t.n_segments)]]  # crc32
    of_plane = ("coder", "table", "prediction", "n_units")
    for name in ("layout", "base", "n_patches", *of_plane * max(2, t.word_nbytes)):
        column = read_column(body, t.n_segments)
        may_be_large = name in ("n_patches", "table", "n_units")
        require(may_be_large or max(column) <= 255, "bad_value", "R4.39")
        t.columns.append(column)
    return sum(segment(t, k).nbytes for k in range(t.n_segments))


def read_column(body: Reader, n_segments: int) -> list[int]:
    """R4.37: a value for each segment."""
    width = body.uint(1)
    require(width in (0, 1, 2, 4), "bad_value", "R4.37")
    if width == 0:
        return [body.uint(4)] * n_segments
    return [body.uint(width) for _ in range(n_segments)]


def read_lists(body: Reader, t: Fields) -> int:
    """R12.7 to R12.10: reads the segment table of a sparse tensor. `gaps` and `listed` are like
    tensors of a row each, with the segments that have listed words. Gives the bytes of the payload.
    """
    is_one_tile = (t.tile_rows, t.tile_cols) == (t.segment_rows, t.segment_cols)
    require(is_one_tile, "bad_value", "R12.7")
    require(4 * t.n_segments <= body.left(), "bad_range", "R4.38")
    n_listed = [body.uint(4) for _ in range(t.n_segments)]
    t.touched = [k for k, n in enumerate(n_listed) if n > 0]
    if not t.touched:
        return 0
    n_gaps, n_listed = read_column(body, len(t.touched)), [n for n in n_listed if n > 0]
    for k, gaps, listed in zip(t.touched, n_gaps, n_listed, strict=True):
        n = min(t.segment_cols, t.cols - k * t.segment_cols)
        is_right = listed <= n and listed <= gaps <= listed + (n - listed) // 255
        require(is_right, "bad_range", "R12.9")
    t.words_crc32 = [body.uint(4) for _ in t.touched]
    t.gaps, t.listed = list_of(t, n_gaps, UINT8), list_of(t, n_listed, t.coded_dtype)
    sizes = [read_segment_table(body, part) for part in (t.gaps, t.listed)]
    t.gaps.nbytes = sizes[0]
    return sum(sizes)


def list_of(t: Fields, widths: list[int], dtype: int) -> Fields:
    """R12.10: a row of segments of these widths, each one tile."""
    part = Fields(file=t.file, coded_dtype=dtype, word_nbytes=WORD_NBYTES[dtype], widths=widths)
    part.n_segments, part.tile_rows, part.tile_cols = len(widths), 1, max(widths)
    return part


def segment(t: Fields, k: int) -> Fields:
    """R5.3, R5.7 to R5.9, R6.3, R6.4, R6.6, R10.9: what is known of segment k, checked."""
    if t.widths:
        s = Fields(t=t, height=1, width=t.widths[k])
    else:
        across = -(-t.cols // t.segment_cols)
        s = Fields(t=t, row=k // across * t.segment_rows, col=k % across * t.segment_cols)
        s.height, s.width = min(t.segment_rows, t.rows - s.row), min(t.segment_cols, t.cols - s.col)
    s.n = s.height * s.width
    s.crc32, s.layout, s.base, s.n_patches, *of_planes = (column[k] for column in t.columns)
    require(s.layout <= PAIRS, "unsupported_coder", "R5.3")
    has_pairs = t.word_nbytes == 1 or t.coded_dtype in EXPONENT_BITS
    require(has_pairs or s.layout != PAIRS, "bad_value", "R5.7")
    s.has_window = s.layout == PAIRS and t.word_nbytes > 1
    require(s.base <= (240 if s.has_window else 0), "bad_value", "R5.8")
    require(s.n_patches <= (s.n if s.has_window else 0), "bad_range", "R10.9")
    n_planes = {RAW: 0, BYTES: t.word_nbytes, PAIRS: max(2, t.word_nbytes)}[s.layout]
    require(not any(of_planes[4 * n_planes :]), "bad_value", "R5.9")
    s.planes = [plane_of(s, p, *of_planes[4 * p : 4 * p + 4]) for p in range(n_planes)]
    add_sizes(s)
    return s


def plane_of(s: Fields, p: int, coder: int, table: int, prediction: int, n_units: int) -> Fields:
    """R7.1, R7.2, R9.10, R9.13, R10.3, R10.5, R10.6: the same of its plane p."""
    n = (s.n + 1) // 2 if s.layout == PAIRS and (p == 0 or s.t.word_nbytes == 1) else s.n
    file, is_stream = s.t.file, coder in (RANS, CONTEXT)
    require(is_stream or coder in (RAW, CONSTANT), "unsupported_coder", "R10.5")
    require(prediction in (*MODES, EACH_TILE), "unsupported_coder", "R7.1")
    require(prediction == 0 or (is_stream and s.layout == BYTES), "bad_value", "R7.2")
    ends = {RAW: 1, CONSTANT: 256, RANS: len(file.tables), CONTEXT: len(file.maps)}
    require(table < ends[coder], "bad_range", "R10.5")
    context_map = file.maps[table] if coder == CONTEXT else Fields(kind=0)
    require(p > 0 or context_map.kind != PLANE, "bad_value", "R9.13")
    least, most = (8, 8 + 16 * -(-n // 128)) if is_stream else (0, 0)
    require(least <= n_units <= most, "bad_range", "R9.10, R10.6")
    plane = Fields(n=n, coder=coder, table=table, prediction=prediction, map=context_map)
    plane.nbytes = n if coder == RAW else 16 * n_units
    return plane


# ---- Segment records: chapter 10 -----------------------------------------------------------------
RAW, BYTES, PAIRS = 0, 1, 2  # layouts
CONSTANT, RANS, CONTEXT = 1, 2, 4  # coders; RAW is 0 here too


def add_sizes(s: Fields) -> None:
    """R10.1, R10.2, R10.4, R10.6, R10.10: the sizes of the parts of a record, and of all of it."""
    s.words_nbytes = s.n * s.t.word_nbytes if s.layout == RAW else 0
    s.n_tiles = -(-s.height // s.t.tile_rows) * -(-s.width // s.t.tile_cols)
    s.modes_nbytes = s.n_tiles * [plane.prediction for plane in s.planes].count(EACH_TILE)
    has_scales = any(plane.map.kind == SCALE for plane in s.planes)
    s.scales_nbytes = (s.height + s.width + 3) // 4 if has_scales else 0
    sizes = [s.words_nbytes, s.modes_nbytes, s.scales_nbytes, 4 * s.n_patches]
    s.nbytes = sum(pad16(n) for n in (*sizes, *(plane.nbytes for plane in s.planes)))


def decode_segment(record: bytes, s: Fields) -> bytes:
    """R5.5, R10.2, R10.4, R10.7, R10.10: turns a record into words in raster order."""
    r = Reader(record)
    if s.layout == RAW:
        return r.part(s.words_nbytes)  # R10.7
    modes = r.part(s.modes_nbytes)
    require(all(mode in MODES for mode in modes), "unsupported_coder", "R10.4")
    s.scales = unpack(r.part(s.scales_nbytes), 2)
    planes: list[bytes] = []
    for plane in s.planes:
        own = [plane.prediction] * s.n_tiles
        if plane.prediction == EACH_TILE:
            own, modes = list(modes[: s.n_tiles]), modes[s.n_tiles :]
        symbols = decode_plane(r.part(plane.nbytes), plane, s, planes)
        planes.append(restore_plane(symbols, s, own) if any(own) else symbols)
    if s.layout == PAIRS:
        planes = join_pairs(planes, s, r.part(4 * s.n_patches))
    return join_planes(planes, s)


def tiles(s: Fields) -> list[tuple[int, int, int, int]]:
    """R6.8: row, column, height and width of each tile."""
    return [
        (r, c, min(s.t.tile_rows, s.height - r), min(s.t.tile_cols, s.width - c))
        for r in range(0, s.height, s.t.tile_rows)
        for c in range(0, s.width, s.t.tile_cols)
    ]


def decode_plane(part: bytes, plane: Fields, s: Fields, planes: list[bytes]) -> bytes:
    """R9.12, R10.5: the bytes of a plane, with prediction and transform still on them."""
    if plane.coder == RAW:
        return part
    if plane.coder == CONSTANT:
        return bytes(plane.n * [plane.table])
    if plane.coder == RANS:
        table = s.t.file.tables[plane.table]
        return decode_stream(part, [table] * plane.n, table)
    of_symbols = contexts(plane, s, planes)[: plane.n]
    tables = [plane.map.tables[plane.map.class_of[context]] for context in of_symbols]
    return decode_stream(part, tables, plane.map.tables[0])


def contexts(plane: Fields, s: Fields, planes: list[bytes]) -> list[int]:
    """R9.13, R9.14: the context of each symbol. If it holds two elements, the first counts."""
    if plane.map.kind == PLANE:
        return unpack(planes[0], 4) if s.has_window else list(planes[0])
    of_elements = []
    for row, col, height, width in tiles(s):
        for r in range(height):
            for c in range(width):
                if plane.map.kind == POSITION:
                    of_elements.append(8 * (r % 8) + c % 8)
                else:  # SCALE: the classes of the rows come first, then those of the columns
                    of_elements.append(4 * s.scales[row + r] + s.scales[s.height + col + c])
    return of_elements[::2] if plane.n < s.n else of_elements


# ---- Entropy coding: chapter 9 -------------------------------------------------------------------
PLANE, POSITION, SCALE = 1, 2, 3  # kinds of contexts
N_CONTEXTS = {PLANE: 256, POSITION: 64, SCALE: 16}


def decode_stream(stream: bytes, tables: list[Fields], filling: Fields) -> bytes:
    """R9.2 to R9.5, R9.9, R9.11: decodes a symbol under each of `tables`, then the filling.

    A rANS state is a stack: the symbol that an encoder puts in last comes out first. So an encoder
    goes from the last symbol to the first, and writes its words from the back to the front. A
    decoder then goes forwards, through the symbols and through the words.
    """
    n, bits = len(tables), filling.prob_bits
    tables = tables + [filling] * (-n % 128)
    x = [uint(stream[i : i + 4]) for i in range(0, 128, 4)]
    words, taken = [uint(stream[i : i + 2]) for i in range(128, len(stream), 2)], 0
    symbols = bytearray(len(tables))
    for step in range(len(tables) // 32):
        for lane in range(32):
            i = step // 4 * 128 + lane * 4 + step % 4
            slots = tables[i].slots or make_slots(tables[i])
            symbols[i], frequency, above_start = slots[x[lane] % (1 << bits)]
            x[lane] = frequency * (x[lane] >> bits) + above_start
            if x[lane] < 1 << 16:
                require(taken < len(words), "bad_stream", "R9.11")
                x[lane], taken = x[lane] << 16 | words[taken], taken + 1
    require(x == [1 << 16] * 32 and len(words) - taken <= 7, "bad_stream", "R9.11")
    return bytes(symbols[:n])


def make_slots(table: Fields) -> list[tuple[int, int, int]]:
    """R9.1, R9.9: for each slot its symbol s, f[s], and slot - c[s]. Made when it is needed."""
    slots = [(s, f, above_start) for s, f in enumerate(table.f) for above_start in range(f)]
    table.slots = slots
    return slots


def read_tables(body: Reader) -> list[Fields]:
    """R4.20, R9.6, R9.7: reads the tables of a TABLES record, bit by bit."""
    n_tables, tables = body.uint(2), list[Fields]()
    bits, at = "".join(f"{byte:08b}" for byte in body.take(body.left())), 0
    for _ in range(n_tables):
        require(at + 32 <= len(bits), "bad_table", "R4.20")
        prob_bits, first, last, k = (int(bits[i : i + 8], 2) for i in range(at, at + 32, 8))
        require(9 <= prob_bits <= 12 and first <= last and k <= 11, "bad_table", "R9.7")
        at, f = at + 32, [0] * 256
        for s in range(first, last + 1):
            zeros = bits.find("1", at) - at
            end = at + zeros + (zeros + 1) + k  # q with the k low bits after it is v + 2^k
            require(0 <= zeros <= 12 and end <= len(bits), "bad_table", "R9.7")
            f[s] = int(bits[at:end], 2) - (1 << k)
            at = end
        end = -(-at // 8) * 8
        padding, at = bits[at:end], end
        require("1" not in padding and f[first] > 0 and f[last] > 0, "bad_table", "R9.7")
        require(sum(f) == 1 << prob_bits and max(f) < 1 << prob_bits, "bad_table", "R9.6")
        tables.append(Fields(prob_bits=prob_bits, f=f, slots=[]))
    require(at == len(bits), "bad_range", "R4.20")
    return tables


# ---- Prediction and transform: chapters 7 and 8 --------------------------------------------------
NONE, LEFT, TOP, AVG, PLANAR = 0, 1, 2, 3, 4
MODES = [transform << 4 | prediction for transform in range(3) for prediction in range(5)]
EACH_TILE = 255
ORDER = {1: (0, 6, 3, 7, 1, 4, 2, 5), 2: (6, 4, 2, 1, 7, 3, 5, 0)}  # R8.3, of DCT and ADST
ROWS = {
    1: (
        (7, 0, -128, 64, 0), (6, 1, -128, 64, 0), (5, 2, -128, 64, 0), (4, 3, -128, 64, 0),
        (3, 0, -128, 64, 0), (2, 1, -128, 64, 0), (1, 0, -128, 64, 0), (3, 2, 25, -49, 25),
        (7, 4, 13, -25, 13), (6, 5, 39, -71, 39), (7, 6, -53, 91, -53), (5, 4, -53, 91, -53),
        (7, 4, -53, 91, -53),
    ),
    2: (
        (0, 7, -6, 13, -6), (1, 6, -19, 37, -19), (2, 5, -32, 60, -32), (3, 4, -46, 81, -46),
        (0, 3, -53, 91, -53), (1, 2, -53, 91, -53), (0, 1, -53, 91, -53), (3, 2, -25, 49, -25),
        (7, 4, 53, -91, 53), (6, 5, 53, -91, 53), (7, 6, -53, 91, -53), (4, 5, 25, -49, 25),
        (2, 4, -53, 91, -53), (1, 7, -53, 91, -53), (3, 5, -53, 91, -53),
    ),
}  # fmt: skip


def restore_plane(symbols: bytes, s: Fields, modes: list[int]) -> bytes:
    """R6.9, R7.3: undoes the modes of the tiles, which lie one after another in the plane."""
    out = bytearray()
    for (_, _, height, width), mode in zip(tiles(s), modes, strict=True):
        tile = bytearray(symbols[len(out) : len(out) + height * width])
        if mode >> 4:
            undo_transform(tile, width, mode >> 4)
        for i in range(len(tile)):
            tile[i] = (tile[i] + predicted(tile, i, width, mode)) % 256
        out += tile
    return bytes(out)


def predicted(v: bytearray, i: int, width: int, mode: int) -> int:
    """R7.4 to R7.6: the prediction of byte i of a tile, from bytes before it."""
    prediction = mode & 15
    if prediction == NONE:
        return 128 if mode >> 4 else 0
    if i == 0:
        return 0
    if i < width:
        return v[i - 1]
    if i % width == 0:
        return v[i - width]
    left, top, corner = v[i - 1], v[i - width], v[i - width - 1]
    return {LEFT: left, TOP: top, AVG: (left + top) >> 1, PLANAR: left + top - corner}[prediction]


def undo_transform(tile: bytearray, width: int, transform: int) -> None:
    """R8.2, R8.4: in each whole group of 8 in the columns, then in the rows."""
    for start in range(0, len(tile) - 7 * width, 8 * width):
        for c in range(start, start + width):
            undo_steps(tile, slice(c, start + 8 * width, width), transform)
    for start in range(0, len(tile), width):
        for c in range(start, start + width - 7, 8):
            undo_steps(tile, slice(c, c + 8), transform)


def undo_steps(tile: bytearray, group: slice, transform: int) -> None:
    """R8.1, R8.3, R8.4: puts eight values in the place of their coefficients."""
    y = [0] * 8
    for place, coefficient in zip(ORDER[transform], tile[group], strict=True):
        y[place] = coefficient
    for a, b, p, u, r in reversed(ROWS[transform]):
        for t, s, c in (a, b, r), (b, a, u), (a, b, p):
            signed = (y[s] + 128) % 256 - 128
            y[t] -= (c * signed + 64) >> 7
    tile[group] = bytes(value % 256 for value in y)


# ---- Planes to words: chapter 5 ------------------------------------------------------------------
def join_pairs(planes: list[bytes], s: Fields, patches: bytes) -> list[bytes]:
    """R5.6, R5.7, R10.8: turns planes of PAIRS into those that BYTES has."""
    codes = unpack(planes[0], 4)[: s.n]
    if not s.has_window:
        low_halves = unpack(planes[1], 4)[: s.n]
        return [bytes(code << 4 | low for code, low in zip(codes, low_halves, strict=True))]
    top, before = bytearray(s.base + code for code in codes), -1
    for i in range(0, len(patches), 4):
        index, value = uint(patches[i : i + 3]), patches[i + 3]
        require(before < index < s.n, "bad_patch", "R10.8")
        top[index], before = value, index
    return [bytes(top), *planes[1:]]


def join_planes(planes: list[bytes], s: Fields) -> bytes:
    """R5.1, R5.4, R6.9: gathers the bytes of each word, and puts the word in its place."""
    size, elements = s.t.word_nbytes, zip(*planes, strict=True)
    out = bytearray(s.n * size)
    for row, col, height, width in tiles(s):
        for r in range(row, row + height):
            for c in range(col, col + width):
                m = int.from_bytes(next(elements), "big")
                at = (r * s.width + c) * size
                out[at : at + size] = unmapped(m, s.t.coded_dtype).to_bytes(size, "little")
    return bytes(out)


def unmapped(m: int, dtype: int) -> int:
    """R5.2: undoes the word map."""
    bits = 8 * WORD_NBYTES[dtype]
    if dtype in OFFSET:
        return m ^ (1 << (bits - 1))
    if dtype not in EXPONENT_BITS:
        return m
    f = bits - 1 - EXPONENT_BITS[dtype]
    exponent, sign, mantissa = m >> (f + 1), m >> f & 1, m % (1 << f)
    return sign << (bits - 1) | exponent << f | mantissa


# ---- Reading with care, and the program: chapters 2, 13 and 17 -----------------------------------
class Refused(Exception):
    """R2.7, R13.1: the file is not decoded. The text starts with an error code (chapter 13)."""


def require(holds: bool, code: str, rule: str) -> None:
    """R13.1: refuses the file if it breaks a rule."""
    if not holds:
        raise Refused(f"{code}: see {rule}")


class Reader:
    """R13.2: reads bytes from front to back, and refuses to read beyond their end."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def left(self) -> int:
        """How many bytes are left."""
        return len(self.data) - self.at

    def take(self, nbytes: int) -> bytes:
        """The next bytes."""
        require(nbytes <= self.left(), "bad_range", "R13.2")
        self.at += nbytes
        return self.data[self.at - nbytes : self.at]

    def part(self, nbytes: int) -> bytes:
        """R10.2: a part of a segment record, without its padding."""
        return self.take(pad16(nbytes))[:nbytes]

    def uint(self, nbytes: int) -> int:
        """R2.2: the next integer."""
        return uint(self.take(nbytes))

    def fields(self, names: str) -> Fields:
        """R2.2: integers with their names and bytes, as in "flags:2 nbytes:8"."""
        pairs = (name.split(":") for name in names.split())
        return Fields(**{name: self.uint(int(nbytes)) for name, nbytes in pairs})

    def text(self, nbytes: int) -> str:
        """R2.6: a text, which is UTF-8."""
        try:
            return self.take(nbytes).decode()
        except UnicodeDecodeError:
            raise Refused("bad_name: see R2.6") from None


def uint(data: bytes | bytearray) -> int:
    """R2.2: an unsigned integer, the lowest byte first."""
    return int.from_bytes(data, "little")


def pad16(n: int) -> int:
    """R2.4: n rounded up to a multiple of 16."""
    return -(-n // 16) * 16


def unpack(data: bytes, bits: int) -> list[int]:
    """R5.6, R10.10: numbers of 2 or 4 bits, the lowest bits of a byte first."""
    return [(byte >> shift) % (1 << bits) for byte in data for shift in range(0, 8, bits)]


def main(source: str, output: str, base: str = "") -> int:
    """R13.3, chapter 17: gives the exit status. The output gets its name when it is whole."""
    try:
        with open(source, "rb") as f, open(base or os.devnull, "rb") as of_base:
            parts = decode_file(f.read(), of_base.read())
        with open(output + ".part", "wb") as f:
            f.writelines(parts)
        os.replace(output + ".part", output)
    except (Refused, OSError, MemoryError) as e:
        print(str(e) or "resource_limit: out of memory", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit("usage: decoder.py INPUT OUTPUT [BASE]")
    sys.exit(main(*sys.argv[1:]))
