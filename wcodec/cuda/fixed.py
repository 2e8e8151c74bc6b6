"""bf16 weights at 12 bits each in device memory, in the order of the matrix units: what ``linear`` multiplies by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from wcodec.backends.cuda.runtime import Runtime

BLOCK: Final = 256  #: threads of a block
WARPS: Final = BLOCK // 32
TILE_ROWS: Final = 16
TILE_COLS: Final = 64
TILE_NBYTES: Final = TILE_ROWS * TILE_COLS * 12 // 8
WINDOW: Final = 15  #: exponents that have a code
MAX_BASE: Final = 127
PATCH_NBYTES: Final = 8
_MOST_BLOCKS: Final = 1 << 11  #: that count
_MOST_PATCHES: Final = (1 << 32) - 1
_MOST_SIDE: Final = (1 << 31) - 1


def choose_base(counts: NDArray[Any]) -> int:
    """The base of the window with the most weights, the lowest of several.

    Parameters
    ----------
    counts
        How often each exponent occurs, of shape (256,).

    Returns
    -------
    int
        0 to `MAX_BASE`; the window is the 15 exponents after it.
    """
    sums = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    bases = np.arange(MAX_BASE + 1)
    return int(np.argmax(sums[bases + WINDOW + 1] - sums[bases + 1]))


@dataclass(frozen=True)
class FixedWeight:
    """A matrix of bf16 words, each in 12 bits and losslessly; those outside of a window of exponents stand in a list beside.

    The layout is described in ``kernels/fixed.cuh``.

    Attributes
    ----------
    shape
        Rows and columns: outputs and inputs of a linear layer.
    base
        The exponents `base` + 1 to `base` + 15 have codes, and zeros.
    tiles
        Device array, uint8: tiles of 16 x 64 weights, 1536 bytes each.
    starts
        Device array, uint32 of shape (rows + 1,): where the patches of each row begin, and end.
    patches
        Device array, uint8: column and value of each patch, a u32 and an fp32, sorted by row and column.
    """

    runtime: Runtime
    shape: tuple[int, int]
    base: int
    n_patches: int
    tiles: Any
    starts: Any
    patches: Any

    @classmethod
    def from_words(cls, runtime: Runtime, words: int, shape: tuple[int, int]) -> FixedWeight:
        """Pack a matrix on the current stream; waits for counts of its exponents and patches.

        Parameters
        ----------
        words
            Device address of the words, row by row, a multiple of 2. They are not needed once this stream has been waited for.

        Raises
        ------
        ValueError
            The matrix is empty, or has more rows, columns or patches than fit.
        """
        rows, cols = shape
        if not (0 < rows <= _MOST_SIDE and 0 < cols <= _MOST_SIDE):
            raise ValueError(f"a matrix of shape {shape} has no fixed-rate form")
        with runtime.in_use():
            base = choose_base(_count_exponents(runtime, words, rows * cols))
            matrix = np.uint64(words), np.uint32(rows), np.uint32(cols), np.uint32(base)
            counts = runtime.empty(4 * rows)
            runtime.launch("count_patches", _blocks(rows), BLOCK, *matrix, counts)
            ends = np.cumsum(runtime.download(counts).view(np.uint32), dtype=np.uint64)
            n_patches = int(ends[-1])
            if n_patches > _MOST_PATCHES:
                raise ValueError(f"a matrix of shape {shape} has {n_patches} weights outside of any window: too many")
            starts = runtime.upload(np.concatenate([[0], ends]).astype(np.uint32))
            patches = runtime.empty(PATCH_NBYTES * max(1, n_patches))
            if n_patches:
                runtime.launch("list_patches", _blocks(rows), BLOCK, *matrix, starts, patches)
            n_tiles = -(-rows // TILE_ROWS) * -(-cols // TILE_COLS)
            tiles = runtime.empty(n_tiles * TILE_NBYTES)
            runtime.launch("pack_fixed", _blocks(n_tiles), BLOCK, *matrix, tiles)
        return cls(runtime, (rows, cols), base, n_patches, tiles, starts, patches)

    @property
    def n_row_tiles(self) -> int:
        """Tiles below one another."""
        return -(-self.shape[0] // TILE_ROWS)

    @property
    def n_col_tiles(self) -> int:
        """Tiles beside one another."""
        return -(-self.shape[1] // TILE_COLS)

    @property
    def nbytes(self) -> int:
        """Device memory of all parts."""
        return int(self.tiles.nbytes + self.starts.nbytes + self.patches.nbytes)

    def unpack(self, words: int) -> None:
        """Write the exact words to a device address, a multiple of 2, on the current stream."""
        rows, cols = self.shape
        sizes = np.uint32(rows), np.uint32(cols)
        with self.runtime.in_use():
            n_tiles = self.n_row_tiles * self.n_col_tiles
            self.runtime.launch("unpack_fixed", _blocks(n_tiles), BLOCK, self.tiles, *sizes, np.uint32(self.base), np.uint64(words))
            if self.n_patches:
                self.runtime.launch("restore_patches", _blocks(rows), BLOCK, self.starts, self.patches, *sizes, np.uint64(words))


def _blocks(n_warps: int) -> int:
    return -(-n_warps // WARPS)


def _count_exponents(runtime: Runtime, words: int, n_words: int) -> NDArray[np.uint64]:
    """How often each exponent occurs."""
    counts = runtime.upload(np.zeros(256, np.uint64))
    blocks = min(-(-n_words // BLOCK), _MOST_BLOCKS)
    runtime.launch("count_exponents", blocks, BLOCK, np.uint64(words), np.uint64(n_words), counts)
    return runtime.download(counts)
