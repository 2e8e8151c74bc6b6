"""Products with operands: y = (x W^T) scale + bias, by ``kernels/linear.cuh``."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np

from wcodec.cuda.operand import BLOCK, WARPS, Operand
from wcodec.reference.operands import SEGMENT, TILE

BATCHES: Final = (8, 16, 32, 64)  #: rows of x that the kernels are made for
MOST_BATCH: Final = BATCHES[-1]
ROW_TILE: Final = 2 * TILE[0]  #: rows of W that a warp has
SEGMENT_TILES: Final = SEGMENT[1] // TILE[1]  #: a segment is so many tiles wide
#: of 8 columns of a row of x in shared memory, of kernels for raw operands
STAGE_VECTORS: Final = 1024
CODED_STAGE_VECTORS: Final = 256  #: of those for coded ones
ROUND_TILES: Final = {8: 4, 16: 4, 32: 2, 64: 4}  #: tiles that are loaded together, of raw operands
BLOCKS_A_PROCESSOR: Final = 2  #: that are wanted, for enough loads under way
#: rows of x times slices, at most: more slices have fewer rows of W, for which x is read anew
X_READS: Final = 64
FACTORS: Final = ("bf16", "fp16")  #: types of x, bias and y


class LinearPlan(NamedTuple):
    """How a product is launched.

    Attributes
    ----------
    batch
        Rows of x that the kernel is made for, one of `BATCHES`.
    grid
        Blocks.
    n_parts, part_tiles
        Parts that the columns of W are split into among blocks, and how many tiles wide they are,
        but for the last.
    slice_bits, slice_tiles
        log2 of the slices that a part is split into among the warps of a block,
        and how many tiles wide they are.
    row_bits
        log2 of the rows of x that are kept in shared memory.
    workspace_nbytes
        Device memory for sums of parts; 0 if there is one part.
    """

    batch: int
    grid: int
    n_parts: int
    part_tiles: int
    slice_bits: int
    slice_tiles: int
    row_bits: int
    workspace_nbytes: int


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def plan_linear(
    shape: tuple[int, int],
    coded: bool,
    batch: int,
    n_processors: int,
    n_parts: int | None = None,
    n_slices: int | None = None,
) -> LinearPlan:
    """Choose kernel, grid, parts and slices.

    Parameters
    ----------
    shape
        Rows and columns of W.
    coded
        Whether symbols of W are coded: parts and slices are whole segments then.
    batch
        Rows of x, 1 to `MOST_BATCH`.
    n_processors
        Multiprocessors of the device.
    n_parts, n_slices
        As many, or fewer if columns or the kernel do not allow them; slices are a power of two. By
        default, until there are enough blocks for the device: slices first, for these need no
        memory and no second kernel, but with many rows of x.

    Raises
    ------
    ValueError
        No kernel takes so many rows of x.
    """
    if not 1 <= batch <= MOST_BATCH:
        raise ValueError(f"a batch of {batch} rows; 1 to {MOST_BATCH} can be multiplied at once")
    variant = next(b for b in BATCHES if b >= batch)
    row_tiles, col_tiles = _ceil_div(shape[0], ROW_TILE), _ceil_div(shape[1], TILE[1])
    row_bits = (batch - 1).bit_length() if variant == BATCHES[0] else variant.bit_length() - 1
    step = SEGMENT_TILES if coded else ROUND_TILES[variant]  # of slices
    splits = max(1, BLOCKS_A_PROCESSOR * n_processors // _ceil_div(row_tiles, WARPS))
    # tiles of x in shared memory: a round or more a slice
    stage = (CODED_STAGE_VECTORS if coded else STAGE_VECTORS) >> (row_bits + 2)
    most = min(WARPS, stage if coded else stage // step, max(1, col_tiles // step))
    most = 1 if variant == MOST_BATCH else most
    wanted = min(splits, max(1, X_READS // batch)) if n_slices is None else n_slices
    bits = min(wanted, most).bit_length() - 1
    n_parts = max(1, splits >> bits) if n_parts is None else n_parts
    slice_tiles = _ceil_div(_ceil_div(col_tiles, n_parts << bits), step) * step
    part_tiles = slice_tiles << bits
    n_parts = _ceil_div(col_tiles, part_tiles)
    nbytes = n_parts * row_tiles * ROW_TILE * variant * 4 if n_parts > 1 else 0
    return LinearPlan(
        variant,
        _ceil_div(row_tiles, WARPS >> bits) * n_parts,
        n_parts,
        part_tiles,
        bits,
        slice_tiles,
        row_bits,
        nbytes,
    )


def linear(
    x: int,
    batch: int,
    weight: Operand,
    y: int,
    *,
    bias: int = 0,
    scale: int = 0,
    factors: str = "bf16",
    plan: LinearPlan | None = None,
    workspace: int | None = None,
) -> Any:
    """Queue a product on the current stream. Sums are fp32, the same from run to run with a plan.

    Parameters
    ----------
    x
        Device address of words of type `factors`, row by row, of shape (batch, columns of W).
        Faster at a multiple of 16, if the number of columns is one of 8.
    y
        Device address for words of that type, of shape (batch, rows of W).
    bias, scale
        Device addresses of words of that type, and of fp32 factors for sums, one for each row of W;
        0 for none.
    factors
        "bf16", or "fp16" for weights of a byte.
    plan
        By default, that of `plan_linear`.
    workspace
        Device address of `LinearPlan.workspace_nbytes`, a multiple of 16; by default, it is taken.

    Returns
    -------
    Any
        The workspace that was taken, which must live until the work is done, or ``None``.

    Raises
    ------
    ValueError
        No kernel takes so many rows of x, or these types.
    """
    if factors not in FACTORS or (weight.weights, factors) == ("bf16", "fp16"):
        raise ValueError(f"{weight.weights} weights are not multiplied by {factors}")
    runtime, (rows, _) = weight.runtime, weight.shape
    if plan is None:
        plan = plan_linear(weight.shape, weight.coded, batch, runtime.n_processors())
    if not 1 <= batch <= plan.batch:
        raise ValueError(f"a batch of {batch} rows; the plan is for 1 to {plan.batch}")
    taken = None
    with runtime.in_use():
        if plan.workspace_nbytes and workspace is None:
            taken = runtime.empty(plan.workspace_nbytes)
            workspace = runtime.address(taken)
        parts, ends = np.uint64(workspace or 0), (np.uint64(y), np.uint64(bias), np.uint64(scale))
        kind = weight.weights, weight.coded, factors
        kernel, sizes, add, blocks, counts = _launches(*kind, rows, batch, plan)
        runtime.launch(kernel, plan.grid, BLOCK, *weight.args, np.uint64(x), *ends, *sizes, parts)
        if plan.n_parts > 1:
            runtime.launch(add, blocks, BLOCK, *ends, *counts, parts)
    return taken


class _Launches(NamedTuple):
    """What is the same each time that a plan is launched: the kernel of the products and its
    numbers, and that of the sums of parts.
    """

    kernel: str
    sizes: tuple[np.uint32, ...]
    add: str
    blocks: int
    counts: tuple[np.uint32, ...]


@lru_cache(maxsize=4096)
def _launches(
    weights: str, coded: bool, factors: str, rows: int, batch: int, plan: LinearPlan
) -> _Launches:
    sizes = (batch, plan.n_parts, plan.part_tiles, plan.slice_bits, plan.slice_tiles, plan.row_bits)
    groups = plan.batch // 8
    return _Launches(
        f"linear_{weights}_{factors}_{'coded' if coded else 'raw'}_{plan.batch}",
        tuple(map(np.uint32, sizes)),
        f"add_parts_{factors}",
        _ceil_div(_ceil_div(rows, ROW_TILE) * groups, WARPS),
        tuple(map(np.uint32, (rows, batch, plan.n_parts, groups))),
    )
