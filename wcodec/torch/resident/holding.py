"""How a stream is held: on the CPU or on a GPU.
Here one is chosen, for all who have a stream and want a weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from wcodec.errors import BackendUnavailable, EncodeError
from wcodec.planner.options import EncodeOptions
from wcodec.reference.operands import operand_form
from wcodec.torch.resident import operands
from wcodec.torch.resident.held import Held, encode, pays


def hold(stream: torch.Tensor, name: str = "", options: EncodeOptions | None = None) -> Held:
    """A stream on any device, held.

    Raises
    ------
    DecodeError
        It is no file of one tensor.
    EncodeError
        ``bad_source``: the tensor is not uint8 of one dimension.
    BackendUnavailable
        On a device that wcodec has no backend for, or lacks what one needs.
    """
    if stream.dtype != torch.uint8 or stream.dim() != 1:
        raise EncodeError(
            "bad_source", "a stream is a uint8 tensor of one dimension", tensor=name or None
        )
    if operands.on_gpu(stream.device):
        from wcodec.torch.resident.device import DeviceHeld

        return DeviceHeld(stream.contiguous(), name, options)
    if stream.device.type == "cpu":
        return Held(stream.contiguous(), name, options)
    raise BackendUnavailable(
        f"compressed weights cannot be decoded on {stream.device}: "
        "move the model to a CPU or an NVIDIA GPU"
    )


def moved(
    held: Held, device: torch.device, mode: str = "resident", operand: str | None = None
) -> Held:
    """A weight on a device, itself if it is there. In mode "fused" as an operand, where
    `options_for` has it so: if it is none yet, or not of the form that `operand` names, it is
    decoded and encoded anew.

    Raises
    ------
    DecodeError
        It is damaged, and had to be decoded.
    """
    # a form that is asked for now goes before how the weight was compressed
    known = held.options if operand is None else None
    options = operands.options_for(held.shape, held.dtype, device, known, mode, operand)
    if mode == "fused" and options is not None and options.operand is not None:
        form = operand_form(held.record())
        if form is None or operand not in (None, form):
            dense = held.dense()
            stream = encode(dense, options, held.name)
            if pays(stream, dense):
                return hold(stream.to(device), held.name, options)
    if device == held.stream.device:
        return held
    return hold(held.stream.to(device), held.name, held.options)


# ---- streams of graphs ---------------------------------------------------------------------------
_held: Final = WeakTensorKeyDictionary()  #: streams that operators get, as they are held
_names: Final = WeakTensorKeyDictionary()  #: what the weights are called whose streams graphs get


def name_stream(stream: torch.Tensor, name: str) -> None:
    """Say what errors of operators on a stream call the weight."""
    _names[stream] = name


def held_of(stream: torch.Tensor, shape: Sequence[int], dtype: torch.dtype) -> Held:
    """What an operator of PyTorch reads: its index and plans are kept for as long as the stream is
    there.

    Raises
    ------
    DecodeError
        It is no file of one tensor.
    RuntimeError
        Its tensor has another shape or dtype.
    """
    held: Held | None = _held.get(stream)
    if held is None:
        # what is kept must not keep the key
        held = _held[stream] = hold(stream.detach(), _names.get(stream, ""))
    if held.shape != tuple(shape) or held.dtype != dtype:
        raise RuntimeError(
            f"the stream holds a {held.dtype} tensor of shape {held.shape}, "
            f"not {dtype} of {tuple(shape)}"
        )
    return held
