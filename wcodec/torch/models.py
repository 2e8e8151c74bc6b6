"""Models that hold their weights compressed: `compress_model`, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import torch

from wcodec.errors import EncodeError
from wcodec.reference.plan import EncodeOptions
from wcodec.torch.compressed import CompressedTensor

MIN_NBYTES: Final = 4096  #: smaller weights stay as they are


@dataclass(frozen=True)
class Memory:
    """Bytes of a model's parameters and buffers.

    Attributes
    ----------
    held
        As they are in memory, compressed weights compressed.
    dense
        As they would be without compression.
    n_compressed
        Weights that are held compressed, tied ones counted once.
    """

    held: int
    dense: int
    n_compressed: int


def compress_model(
    model: torch.nn.Module, preset: str = "default", *, options: EncodeOptions | None = None, min_nbytes: int = MIN_NBYTES,
    skip: Callable[[str, torch.nn.Parameter], bool] | None = None, progress: Callable[[int], object] | None = None,
) -> torch.nn.Module:  # fmt: skip
    """Hold the weights of a model compressed from now on. They are decoded as they are used; results have the same bits.

    All parameters of two or more dimensions are taken: of linear and convolution layers, embeddings, stacks of experts. Tied ones
    stay tied. They are frozen: gradients go through them to activations and adapters, not into them.

    Parameters
    ----------
    model
        It is changed in place. Its weights may be on the CPU or on GPUs, and stay there.
    preset
        ``"fast"``, ``"default"`` or ``"max"``; `options` says more.
    min_nbytes
        Smaller weights are left alone, and those that do not get smaller.
    skip
        Called with name and parameter; true for those to leave alone.
    progress
        Called with the number of bytes of each weight that was looked at.

    Returns
    -------
    The model.

    Raises
    ------
    EncodeError
        ``unsupported_dtype``; ``bad_option``: no such preset.

    Examples
    --------
    >>> model = compress_model(AutoModelForCausalLM.from_pretrained(path))
    """
    if options is not None and preset != "default":
        raise EncodeError("bad_option", "preset and options are two ways to say the same: give one")
    options = EncodeOptions(preset=preset) if options is None else options
    done: dict[int, torch.nn.Parameter] = {}
    for name, module, leaf, parameter in _weights(model):
        if id(parameter) in done:
            setattr(module, leaf, done[id(parameter)])
            continue
        if isinstance(parameter, CompressedTensor) or parameter.dim() < 2 or (skip is not None and skip(name, parameter)):
            continue
        nbytes = parameter.numel() * parameter.element_size()
        if nbytes >= min_nbytes:
            small = compressed_parameter(parameter, options, name)
            if small.stream.numel() < nbytes:
                done[id(parameter)] = small
                setattr(module, leaf, small)
        if progress is not None:
            progress(nbytes)
    return model


def compressed_parameter(tensor: torch.Tensor, options: EncodeOptions | None = None, name: str = "") -> torch.nn.Parameter:
    """A tensor as a frozen parameter that is held compressed, with what was noted on it."""
    small = torch.nn.Parameter(CompressedTensor.from_dense(tensor, options, name), requires_grad=False)
    small.__dict__.update({k: v for k, v in tensor.__dict__.items() if k not in small.__dict__})
    return small


def decompress_model(model: torch.nn.Module) -> torch.nn.Module:
    """Decode all weights that are held compressed, in place. They stay frozen.

    Raises
    ------
    DecodeError
    """
    done: dict[int, torch.nn.Parameter] = {}
    for _, module, leaf, parameter in _weights(model):
        if isinstance(parameter, CompressedTensor):
            if id(parameter) not in done:
                done[id(parameter)] = torch.nn.Parameter(parameter.decode().contiguous(), requires_grad=parameter.requires_grad)
            setattr(module, leaf, done[id(parameter)])
    return model


def model_memory(model: torch.nn.Module) -> Memory:
    """What the weights of a model take."""
    held = dense = n = 0
    for t in {id(t): t for t in [*model.parameters(), *model.buffers()]}.values():
        nbytes = t.numel() * t.element_size()
        dense += nbytes
        held += t.stream.numel() if isinstance(t, CompressedTensor) else nbytes
        n += isinstance(t, CompressedTensor)
    return Memory(held, dense, n)


def _weights(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module, str, torch.nn.Parameter]]:
    """Name, module, name in it, and parameter; a tied one as often as it stands somewhere. None of recurrent layers: those hand
    their weights to kernels that read memory."""
    for prefix, module in model.named_modules():
        if isinstance(module, torch.nn.RNNBase):
            continue
        for leaf, parameter in list(module._parameters.items()):
            if parameter is not None:
                yield f"{prefix}.{leaf}" if prefix else leaf, module, leaf, parameter
