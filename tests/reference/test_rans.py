"""Frequency tables and rANS: tables and streams worked out by hand, and how a stream may end."""

from __future__ import annotations

import math

import numpy as np
import pytest

from wcodec.errors import DecodeError
from wcodec.planner.costs import LOG2, NEVER, log2_fixed, quantise, symbol_costs
from wcodec.reference.rans import GROUP, decode_streams, encode_streams, max_stream_nbytes
from wcodec.reference.tables import Table, TablePool, read_tables


def two_symbols(prob_bits: int = 12) -> Table:
    """The letters A and B, each with half of the slots."""
    freq = np.zeros(256, np.int64)
    freq[65:67] = 1 << (prob_bits - 1)
    return Table(freq, prob_bits)


# ---- tables --------------------------------------------------------------------------------------
def test_a_table_by_hand() -> None:
    # k = 10 is the cheapest order: 2048 >> 10 is 2, plus 1 is 3 = 0b11, led by one zero, then ten
    # low bits of 0. Twice that is 011 0000000000 011 0000000000, padded to 32 bits.
    assert two_symbols().serialised == bytes.fromhex("0c 41 42 0a 60030000")
    (table,), end = read_tables(bytes.fromhex("ff 0c 41 42 0a 60030000 ff"), 1, 1)
    assert end == 9
    assert table.prob_bits == 12
    assert np.flatnonzero(table.freq).tolist() == [65, 66]
    assert table.freq[65:67].tolist() == [2048, 2048]


def test_fields_of_a_table() -> None:
    table = two_symbols(9)
    assert (int(table.start[65]), int(table.start[66])) == (0, 256)
    assert table.padding == 65  # the lowest of the most probable
    assert int(table.lut[0]) == 256 << 20 | 0 << 8 | 65
    assert int(table.lut[511]) == 256 << 20 | 255 << 8 | 66
    assert symbol_costs(table)[65] == 1 << 16  # one bit
    assert symbol_costs(table)[0] == NEVER


@pytest.mark.parametrize("seed", range(20))
def test_any_table_comes_back_and_knows_its_end(seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.geometric(0.02 if seed % 2 else 0.3, 256) * (rng.random(256) < rng.random())
    counts[rng.choice(256, 2, replace=False)] += 1
    table = quantise(counts, 9 + seed % 4)
    assert table.freq.sum() == 1 << table.prob_bits
    assert np.array_equal(table.freq > 0, counts > 0)
    (back,), end = read_tables(table.serialised + b"\xff" * 9, 0, 1)
    assert end == len(table.serialised)
    assert np.array_equal(back.freq, table.freq)
    for cut in range(len(table.serialised)):
        with pytest.raises(DecodeError, match="bad_table"):
            read_tables(table.serialised[:cut], 0, 1)


def test_frequencies_follow_the_counts() -> None:
    counts = np.zeros(256, np.int64)
    counts[[1, 2, 3]] = 2048, 1024, 1024
    assert quantise(counts, 12).freq[[1, 2, 3]].tolist() == [2048, 1024, 1024]
    counts[:] = 0
    counts[[7, 9]] = 10**9, 1
    assert quantise(counts, 9).freq[[7, 9]].tolist() == [511, 1]  # what occurs keeps a slot
    assert quantise(np.ones(256, np.int64), 9).freq.tolist() == [2] * 256


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("08 41 42 0a 60030000", "prob_bits 8"),
        ("0d 41 42 0a 60030000", "prob_bits 13"),
        ("0c 42 41 0a 60030000", "first 66, last 65"),
        ("0c 41 42 0c 60030000", "k 12"),
        ("0c 41 42 0a 60030001", "padding bits"),
        ("0c 41 42 0a 60030100", "sum to 4100"),
        ("0b 41 42 0a 60030000", "sum to 4096, not 2048"),
        ("0c 41 42 0a 000000000000", "symbol 65 is cut short or too long"),
        ("0c 41 42 0a 6002", "symbol 66 is cut short"),
        ("0c 41 42 0a", "symbol 65 is cut short"),
        ("0c 41 42", "a table is cut short"),
        ("0c 41 41 0b 6000", "one symbol alone"),
        ("0c 41 42 0b c00800", "first or last frequency is 0"),
    ],
)
def test_broken_tables_are_refused(text: str, message: str) -> None:
    with pytest.raises(DecodeError, match=message) as e:
        read_tables(bytes.fromhex(text), 0, 1)
    assert e.value.code == "bad_table"


def test_logarithms_are_exact_to_the_last_bit() -> None:
    for i in [1, 2, 3, 5, 255, 256, 257, 4095, 4096]:
        assert int(LOG2[i]) == math.floor(math.log2(i) * 65536)
    assert log2_fixed(4).tolist() == [0, 0, 65536, 103872, 131072]


# ---- streams -------------------------------------------------------------------------------------
def test_streams_by_hand() -> None:
    # With half of the slots a symbol doubles the state: x -> (x // 2048) * 4096 + x % 2048 + start.
    # Four steps from 2^16 give 2^20 for A (start 0); for B (start 2048) 133120, 268288,
    # 538624, 1079296. No lane sheds a word.
    pool = TablePool([two_symbols()])
    a, b = encode_streams(
        [np.full(128, 65, np.uint8), np.full(128, 66, np.uint8)], np.array([0, 0]), pool
    )
    assert a.tobytes() == (1 << 20).to_bytes(4, "little") * 32
    assert b.tobytes() == (1079296).to_bytes(4, "little") * 32


def test_symbol_i_belongs_to_lane_i_div_4_mod_32() -> None:
    pool, symbols = TablePool([two_symbols()]), np.full(128, 65, np.uint8)
    symbols[4 * 5 : 4 * 6] = 66
    (stream,) = encode_streams([symbols], np.array([0]), pool)
    assert np.flatnonzero(stream.view("<u4") != 1 << 20).tolist() == [5]


def test_a_short_group_is_filled_with_the_most_probable_symbol() -> None:
    pool = TablePool([two_symbols()])
    short, full = encode_streams(
        [np.full(3, 66, np.uint8), np.array([66] * 3 + [65] * 125, np.uint8)],
        np.array([0, 0]),
        pool,
    )
    assert short.tobytes() == full.tobytes()


# about lanes and groups
@pytest.mark.parametrize("n", [0, 1, 3, 4, 5, 127, 128, 129, 255, 256, 257, 1000, 4096, 20_001])
@pytest.mark.parametrize("prob_bits", [9, 12])
def test_streams_come_back(n: int, prob_bits: int) -> None:
    rng = np.random.default_rng(n)
    symbols = np.minimum(rng.geometric(0.1, n), 255).astype(np.uint8)
    table = quantise(np.bincount(symbols, minlength=256) + (np.arange(256) < 2), prob_bits)
    pool = TablePool([two_symbols(), table])
    streams = encode_streams([symbols, symbols[::-1].copy()], np.array([1, 1]), pool)
    assert all(s.size % 16 == 0 and 128 <= s.size <= max_stream_nbytes(n) for s in streams)
    back, good = decode_streams(streams, np.array([n, n]), np.array([1, 1]), pool)
    assert good.all()
    assert np.array_equal(back[0], symbols)
    assert np.array_equal(back[1], symbols[::-1])


def test_no_streams_are_no_error() -> None:
    assert encode_streams([], np.array([], np.int64), TablePool()) == []
    assert decode_streams([], np.array([], np.int64), np.array([], np.int64), TablePool())[0] == []


def test_the_worst_stream_is_as_long_as_the_bound() -> None:
    counts = np.full(256, 16, np.int64)
    counts[0], counts[1] = 16 + 15, 1  # symbol 1 costs 12 bits: less than a word
    table = Table(counts, 12)
    (stream,) = encode_streams([np.full(GROUP * 8, 1, np.uint8)], np.array([0]), TablePool([table]))
    assert stream.size <= max_stream_nbytes(GROUP * 8) == 128 + 2 * GROUP * 8


def one_stream() -> tuple[TablePool, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    symbols = np.minimum(rng.geometric(0.05, 3000), 255).astype(np.uint8)
    pool = TablePool([quantise(np.bincount(symbols, minlength=256))])
    return pool, symbols, encode_streams([symbols], np.array([0]), pool)[0]


def test_a_stream_must_end_in_its_final_states_with_every_word_consumed() -> None:
    pool, symbols, stream = one_stream()

    def good(s: np.ndarray, n: int = symbols.size) -> bool:
        return bool(decode_streams([s], np.array([n]), np.array([0]), pool)[1][0])

    assert good(stream)
    assert not good(np.append(stream, np.zeros(16, np.uint8))), "words left over"
    assert not good(stream[:-16].copy()), "words missing"
    assert not good(stream, symbols.size - GROUP), "a group less"
    assert not good(stream, symbols.size + GROUP), "a group more"
    for at in (0, 3, 127, 128, 200):
        for bit in (0, 7):
            wrong = stream.copy()
            wrong[at] ^= np.uint8(1 << bit)
            assert not good(wrong), f"bit {bit} of byte {at} flipped"


def test_one_bad_stream_does_not_spoil_its_neighbours() -> None:
    pool, symbols, stream = one_stream()
    wrong = stream.copy()
    wrong[5] ^= 1
    n, ids = np.full(3, symbols.size), np.zeros(3, np.int64)
    back, good = decode_streams([stream, wrong, stream], n, ids, pool)
    assert good.tolist() == [True, False, True]
    assert np.array_equal(back[0], symbols)
    assert np.array_equal(back[2], symbols)


def test_noise_is_refused_and_never_raises() -> None:
    pool, symbols, _ = one_stream()
    rng = np.random.default_rng(6)
    noise = [rng.integers(0, 256, 16 * int(n), np.uint8) for n in rng.integers(8, 200, 40)]
    _, good = decode_streams(noise, np.full(40, symbols.size), np.zeros(40, np.int64), pool)
    assert not good.any()


def test_the_length_of_a_serialised_table_is_known_before_it_is_made() -> None:
    rng = np.random.default_rng(11)
    for prob_bits in (9, 12):
        for n in (2, 3, 40, 256):
            table = quantise(
                np.bincount(rng.integers(0, n, 1000), minlength=256) + (np.arange(256) < 2),
                prob_bits,
            )
            assert table.serialised_nbytes == len(table.serialised)
