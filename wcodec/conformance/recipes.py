"""Inputs of the conformance vectors: recipes in language-neutral words,
and the edits that make refused files.

All of it is integer arithmetic on unsigned words, so that any language gives the same bytes.
`RECIPES` is the text that stands in the head of ``conformance_vectors/manifest.json``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]
Recipe = Mapping[str, Any]

RECIPES: Final[dict[str, str]] = {
    "*": (
        "A recipe gives the words of a tensor in order, each reduced mod 2^b where b is the bits "
        "of a word, stored little-endian. z(i) is output i of SplitMix64: s = seed + (i + 1) * "
        "0x9e3779b97f4a7c15; s = (s ^ s >> 30) * 0xbf58476d1ce4e5b9; s = (s ^ s >> 27) * "
        "0x94d049bb133111eb; z = s ^ s >> 31; all mod 2^64. After any recipe, `set` lists pairs of "
        "an index and the word that stands there instead."
    ),
    "hex": "The bytes themselves, in hexadecimal.",
    "constant": "Every word is `value`.",
    "counter": "Word i is start + i * step.",
    "splitmix64": "Word i is z(i) >> shift.",
    "bell": "Word i is add + (the sum of the lowest `n` bytes of z(i) >> shift): bell-shaped.",
    "weights": (
        "Word i is sign | exponent | mantissa, from the top bit down: the sign is bit 63 of z(i), "
        "the mantissa its lowest `mantissa_bits` bits, the exponent is `top` minus the number of "
        "zeros below the lowest one of z(i) >> 32 (at most `depth`)."
    ),
    "smooth": (
        "Word i, with r = i // width and c = i % width, is (r * down + c * across + r * c * both + "
        "(z(i) & noise)) >> shift."
    ),
    "choice": "Word i is values[z(i) % n], where n is the number of values.",
}


def splitmix64(seed: int, n: int) -> U64:
    """The first `n` outputs of SplitMix64."""
    s = np.uint64(seed) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    s = (s ^ s >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    s = (s ^ s >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return s ^ s >> np.uint64(31)


def _number(value: int | str) -> int:
    return int(value, 0) if isinstance(value, str) else value


def _u64(value: int | str) -> np.uint64:
    return np.uint64(_number(value) % (1 << 64))


def _constant(r: Recipe, n: int, bits: int) -> U64:
    return np.full(n, _u64(r["value"]))


def _counter(r: Recipe, n: int, bits: int) -> U64:
    return np.arange(n, dtype=np.uint64) * _u64(r["step"]) + _u64(r["start"])


def _splitmix64(r: Recipe, n: int, bits: int) -> U64:
    return splitmix64(r["seed"], n) >> _u64(r["shift"])


def _bell(r: Recipe, n: int, bits: int) -> U64:
    drawn = splitmix64(r["seed"], n).astype("<u8").view(np.uint8).reshape(n, 8)[:, : r["n"]]
    words: U64 = (drawn.sum(axis=1, dtype=np.uint64) >> _u64(r["shift"])) + _u64(r["add"])
    return words


def _weights(r: Recipe, n: int, bits: int) -> U64:
    z, m = splitmix64(r["seed"], n), r["mantissa_bits"]
    zeros = np.zeros(n, np.uint64)
    for k in range(1, r["depth"] + 1):
        zeros += (z >> np.uint64(32)) % _u64(1 << k) == 0
    exponent = _u64(r["top"]) - zeros
    words: U64 = (
        (z >> np.uint64(63)) << _u64(bits - 1) | exponent << _u64(m) | z & _u64((1 << m) - 1)
    )
    return words


def _smooth(r: Recipe, n: int, bits: int) -> U64:
    i = np.arange(n, dtype=np.uint64)
    down, across = i // _u64(r["width"]), i % _u64(r["width"])
    plane = down * _u64(r["down"]) + across * _u64(r["across"]) + down * across * _u64(r["both"])
    words: U64 = (plane + (splitmix64(r["seed"], n) & _u64(r["noise"]))) >> _u64(r["shift"])
    return words


def _choice(r: Recipe, n: int, bits: int) -> U64:
    values = np.array([_u64(v) for v in r["values"]], np.uint64)
    chosen: U64 = values[(splitmix64(r["seed"], n) % np.uint64(values.size)).astype(np.int64)]
    return chosen


_MAKERS: Final[dict[str, Callable[[Recipe, int, int], U64]]] = {
    "constant": _constant,
    "counter": _counter,
    "splitmix64": _splitmix64,
    "bell": _bell,
    "weights": _weights,
    "smooth": _smooth,
    "choice": _choice,
}


def make(recipe: Recipe, n: int, word_nbytes: int) -> bytes:
    """The bytes of `n` words after a recipe; see `RECIPES`.

    Raises
    ------
    ValueError
        A hex recipe of another length.
    """
    if recipe["recipe"] == "hex":
        data = bytearray.fromhex(recipe["bytes"])
    else:
        words = _MAKERS[recipe["recipe"]](recipe, n, 8 * word_nbytes)
        data = bytearray(
            words.astype("<u8").view(np.uint8).reshape(n, 8)[:, :word_nbytes].tobytes()
        )
    for index, value in recipe.get("set", []):
        data[index * word_nbytes : (index + 1) * word_nbytes] = _number(value).to_bytes(
            word_nbytes, "little"
        )
    if len(data) != n * word_nbytes:
        raise ValueError(f"the recipe gives {len(data)} bytes for {n} words of {word_nbytes}")
    return bytes(data)
