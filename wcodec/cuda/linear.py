"""Products with fixed-rate weights: y = x W^T + bias, by ``kernels/linear.cu``."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np

from wcodec.backends.cuda.runtime import Runtime
from wcodec.cuda.fixed import BLOCK, TILE_COLS, TILE_ROWS, WARPS, FixedWeight

BATCHES: Final = (8, 16, 32, 64)  #: rows of x that the kernels are made for
MOST_BATCH: Final = BATCHES[-1]
BLOCKS_A_PROCESSOR: Final = 2  #: that are wanted, for enough loads under way
ROUNDS: Final = {8: 2, 16: 2, 32: 1, 64: 1}  #: tiles that a warp has ahead; a part is a multiple of them
LEAST_PART_TILES: Final = 4  #: columns of a part, or its start and its end take longer than what is between


class LinearPlan(NamedTuple):
    """How a product is launched.

    Attributes
    ----------
    batch
        Rows of x that the kernel is made for, one of `BATCHES`.
    grid
        Blocks.
    n_parts, part_tiles
        Parts that the columns of W are split into, and how many tiles wide they are, but for the last.
    workspace_nbytes
        Device memory for sums of parts; 0 if there is one part.
    """

    batch: int
    grid: int
    n_parts: int
    part_tiles: int
    workspace_nbytes: int


def plan_linear(shape: tuple[int, int], batch: int, n_processors: int, n_parts: int | None = None) -> LinearPlan:
    """Choose kernel, grid and parts.

    Parameters
    ----------
    shape
        Rows and columns of W.
    batch
        Rows of x, 1 to `MOST_BATCH`.
    n_processors
        Multiprocessors of the device.
    n_parts
        As many parts, or fewer if columns do not suffice; by default, until there are enough blocks for the device.

    Raises
    ------
    ValueError
        No kernel takes so many rows of x.
    """
    if not 1 <= batch <= MOST_BATCH:
        raise ValueError(f"a batch of {batch} rows; 1 to {MOST_BATCH} can be multiplied at once")
    variant = next(b for b in BATCHES if b >= batch)
    row_tiles, col_tiles = -(-shape[0] // TILE_ROWS), -(-shape[1] // TILE_COLS)
    row_blocks, step = -(-row_tiles // WARPS), ROUNDS[variant]
    if n_parts is None:
        n_parts = max(1, min(BLOCKS_A_PROCESSOR * n_processors // row_blocks, col_tiles // LEAST_PART_TILES))
    part_tiles = -(-col_tiles // n_parts)
    if n_parts > 1:
        part_tiles = -(-part_tiles // step) * step
    n_parts = -(-col_tiles // part_tiles)
    nbytes = n_parts * row_tiles * TILE_ROWS * variant * 4 if n_parts > 1 else 0
    return LinearPlan(variant, row_blocks * n_parts, n_parts, part_tiles, nbytes)


def linear(
    runtime: Runtime,
    x: int,
    batch: int,
    weight: FixedWeight,
    bias: int,
    y: int,
    *,
    plan: LinearPlan | None = None,
    workspace: Any = None,
) -> Any:
    """Queue a product on the current stream. Sums are fp32, and the same from run to run with the same plan.

    Parameters
    ----------
    x
        Device address of bf16 words, row by row, of shape (batch, columns of W). Faster at a multiple of 16, if the number of
        columns is one of 8.
    bias
        Device address of bf16 words, one for each row of W; 0 for none.
    y
        Device address for bf16 words, row by row, of shape (batch, rows of W).
    plan
        By default, that of `plan_linear`.
    workspace
        Device array of `LinearPlan.workspace_nbytes` at least; by default, a new one.

    Returns
    -------
    Any
        The workspace, which must live until the work is done; ``None`` if there is none.

    Raises
    ------
    ValueError
        No kernel takes so many rows of x, or the workspace is too small.
    """
    rows, cols = weight.shape
    if plan is None:
        plan = plan_linear(weight.shape, batch, runtime.n_processors())
    if not 1 <= batch <= plan.batch:
        raise ValueError(f"a batch of {batch} rows; the plan is for 1 to {plan.batch}")
    if workspace is None and plan.workspace_nbytes:
        workspace = runtime.empty(plan.workspace_nbytes)
    if plan.workspace_nbytes and workspace.nbytes < plan.workspace_nbytes:
        raise ValueError(f"a workspace of {workspace.nbytes} bytes; {plan.workspace_nbytes} are needed")
    parts = np.uint64(runtime.address(workspace) if plan.workspace_nbytes else 0)
    tensors = np.uint64(x), weight.tiles, weight.starts, weight.patches, np.uint64(bias), np.uint64(y)
    sizes = np.uint32(rows), np.uint32(cols), np.uint32(weight.base), np.uint32(batch), np.uint32(plan.n_parts)
    with runtime.in_use():
        runtime.launch(f"linear_{plan.batch}", plan.grid, BLOCK, *tensors, *sizes, np.uint32(plan.part_tiles), parts)
        if plan.n_parts > 1:
            groups = plan.batch // 8
            blocks = -(-weight.n_row_tiles * groups // WARPS)
            runtime.launch("add_parts", blocks, BLOCK, *tensors, *sizes, np.uint32(groups), parts)
    return workspace if plan.workspace_nbytes else None
