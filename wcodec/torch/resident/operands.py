"""How weights are held and multiplied: the words for it, and which weights become operands.

`mode` is ``"resident"``: held compressed, and decoded for each operation; or ``"fused"``: held
compressed, and multiplied without being decoded first. Where models are loaded, it may also be
``"decoded"``: ordinary dense weights. In mode "fused", matrices may be held as operands: streams
that kernels on a GPU multiply by as they are (spec: chapter 14.1). `operand` names the form of
these, ``"fixed"`` or ``"rans"``; ``None`` leaves it to device and dtype.
"""

from __future__ import annotations

from typing import Final

import torch

from wcodec.errors import EncodeError
from wcodec.planner.options import OPERANDS, EncodeOptions
from wcodec.reference.operands import DTYPES

MODES: Final = ("resident", "fused")  #: of weights that are held compressed
LOADING_MODES: Final = ("decoded", *MODES)  #: of weights that are loaded
#: what to do where weights that are held compressed cannot be moved to and fro between memories
INSTEAD: Final = "take mode 'decoded', or give a device_map or max_memory without offloading"

_DTYPES: Final = frozenset(getattr(torch, name) for name in DTYPES)


def on_gpu(device: torch.device) -> bool:
    """Whether weights on a device are decoded and multiplied there, by the CUDA backend."""
    return bool(device.type == "cuda")


def check_mode(
    mode: object,
    operand: object = None,
    options: EncodeOptions | None = None,
    *,
    modes: tuple[str, ...] = MODES,
) -> None:
    """Refuse words that mean nothing, and words that do not go together.

    Parameters
    ----------
    options
        How weights are to be compressed, if the caller says it.
    modes
        Those that there are.

    Raises
    ------
    EncodeError
        ``bad_option``: there is no such mode or operand; `operand` beside another mode than
        "fused", or beside options that say more than a preset: one of them would have no effect.
    """
    if mode not in modes:
        raise EncodeError("bad_option", f"mode {mode!r} is none of {', '.join(modes)}")
    if operand is None:
        return
    if operand not in OPERANDS:
        raise EncodeError("bad_option", f"operand {operand!r} is none of {', '.join(OPERANDS)}")
    if mode != "fused":
        raise EncodeError("bad_option", f"operand={operand!r} needs mode='fused', not {mode!r}")
    if _say_more(options):
        raise EncodeError(
            "bad_option",
            f"options say how to compress: leave operand out, or give options with {operand=}",
        )


def _say_more(options: EncodeOptions | None) -> bool:
    """Whether options say more than a preset."""
    return options is not None and options != EncodeOptions(preset=options.preset)


def options_for(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    options: EncodeOptions | None,
    mode: str,
    operand: str | None,
) -> EncodeOptions | None:
    """How a weight is compressed: in mode "fused" as an operand, if kernels can multiply by one of
    its shape and dtype.

    That is so on GPUs, and anywhere if `operand` names a form. `options` that say more than a
    preset are taken as they are. By default, bfloat16 has the form "fixed", of which kernels make
    the most; weights of a byte have "rans": fixed codes would not make them smaller. All segments
    are made of pairs, whatever number of patches that takes: a row of zeros, as embeddings have it,
    is no reason to decode.
    """
    if (
        mode != "fused"
        or _say_more(options)
        or len(shape) != 2
        or min(shape) == 0
        or dtype not in _DTYPES
    ):
        return options
    if operand is None:
        if not on_gpu(device):
            return options
        operand = "rans" if dtype.itemsize == 1 else "fixed"
    return EncodeOptions(operand=operand, layout="pairs")
