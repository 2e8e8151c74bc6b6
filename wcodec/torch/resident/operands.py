"""Weights of fused mode as operands: streams that kernels on a GPU multiply by as they are (spec: chapter 14.1)."""

from __future__ import annotations

from typing import Final, TypeAlias

import torch

from wcodec.errors import EncodeError
from wcodec.planner.options import OPERANDS, EncodeOptions
from wcodec.reference.operands import DTYPES

#: whether weights are in fused mode; or that, and "fixed" or "rans": the form of operands
Fused: TypeAlias = bool | str

_DTYPES: Final = frozenset(getattr(torch, name) for name in DTYPES)


def on_gpu(device: torch.device) -> bool:
    """Whether weights on a device are decoded and multiplied there, by the CUDA backend."""
    return bool(device.type == "cuda")


def check_fused(fused: Fused) -> None:
    """Refuse what is neither true nor false nor a form.

    Raises
    ------
    EncodeError
        ``bad_option``
    """
    if fused not in (True, False, *OPERANDS):
        raise EncodeError(
            "bad_option", f"fused {fused!r} is none of True, False, {', '.join(OPERANDS)}"
        )


def check_options(options: EncodeOptions | None, fused: Fused) -> None:
    """Refuse a form beside options that say how to compress: one of them would do nothing.

    Raises
    ------
    EncodeError
        ``bad_option``
    """
    if _say_more(options) and isinstance(fused, str):
        raise EncodeError(
            "bad_option",
            f"options say how to compress: give fused=True, or options with operand={fused!r}",
        )


def _say_more(options: EncodeOptions | None) -> bool:
    """Whether options say more than a preset."""
    return options is not None and options != EncodeOptions(preset=options.preset)


def options_for(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    options: EncodeOptions | None,
    fused: Fused,
) -> EncodeOptions | None:
    """How a weight is compressed: in fused mode as an operand, if kernels can multiply by one of its shape and dtype.

    That is so on GPUs, and anywhere if `fused` names a form. `options` that say more than a preset are taken as they are. By default,
    bfloat16 has the form "fixed", of which kernels make the most; weights of a byte have "rans": fixed codes would not make them smaller.
    All segments are made of pairs, whatever number of patches that takes: a row of zeros, as embeddings have it, is no reason to decode.

    Raises
    ------
    EncodeError
        ``bad_option``: there is no such form.
    """
    check_fused(fused)
    if (
        not fused
        or _say_more(options)
        or len(shape) != 2
        or min(shape) == 0
        or dtype not in _DTYPES
    ):
        return options
    if isinstance(fused, str):
        return EncodeOptions(operand=fused, layout="pairs")
    return (
        EncodeOptions(operand="rans" if dtype.itemsize == 1 else "fixed", layout="pairs")
        if on_gpu(device)
        else options
    )
