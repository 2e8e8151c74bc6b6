"""Models that hold their weights compressed: `compress_model`, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

import torch

from wcodec.codec.pipelining import ignore_progress
from wcodec.errors import EncodeError
from wcodec.files.atomic import AnyPath
from wcodec.planner.options import EncodeOptions, chosen_options
from wcodec.reference.planes import OPAQUE
from wcodec.torch import dtypes
from wcodec.torch.loading.checkpoint import WCodecCheckpoint
from wcodec.torch.loading.reader import Device, Reader
from wcodec.torch.resident.compressed import OWN, CompressedTensor
from wcodec.torch.resident.holding import hold, moved
from wcodec.torch.resident.operands import check_mode
from wcodec.torch.resident.scratch import return_freed_memory

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
    model: torch.nn.Module,
    preset: str = "default",
    *,
    options: EncodeOptions | None = None,
    min_nbytes: int = MIN_NBYTES,
    skip: Callable[[str, torch.nn.Parameter], bool] | None = None,
    progress: Callable[[int], object] | None = None,
    mode: str = "resident",
    operand: str | None = None,
) -> torch.nn.Module:
    """Hold the weights of a model compressed from now on.

    All parameters of two or more dimensions are taken. Tied ones stay tied. They are frozen:
    gradients go through them to activations and adapters, not into them.

    Parameters
    ----------
    model
        It is changed in place. Weights stay on the device that they are on.
    preset
        ``"fast"``, ``"default"`` or ``"max"``; `options` says more.
    min_nbytes
        Smaller weights are left alone, those that do not get smaller, and those of float4.
    skip
        Called with name and parameter; true for those to leave alone.
    progress
        Called with the number of bytes of each weight that was looked at.
    mode
        ``"resident"``: decoded for each operation, with the bits of before. ``"fused"``: matrices
        are multiplied without being decoded first (spec: 14.1); last bits of results may differ.
    operand
        The form of operands in mode "fused", on a CPU too: ``"fixed"`` or ``"rans"``. By default,
        bfloat16 takes ``"fixed"`` on a GPU, int8 and float8 ``"rans"``.

    Returns
    -------
    The model.

    Raises
    ------
    EncodeError
        ``unsupported_dtype``; ``bad_option``: choices that are none, or do not go together.
    """
    chosen = chosen_options(preset, options)
    check_mode(mode, operand, options)

    def compressed(name: str, parameter: torch.nn.Parameter) -> torch.nn.Parameter | None:
        dense = parameter.dim() >= 2 and not isinstance(parameter, CompressedTensor)
        if not (dense and dtypes.has_row(parameter.dtype)) or (skip and skip(name, parameter)):
            return None
        new, nbytes = parameter, parameter.numel() * parameter.element_size()
        if nbytes >= min_nbytes:
            new = _if_smaller(parameter, chosen, name, mode, operand)
        (progress or ignore_progress)(nbytes)
        return new

    _replace_weights(model, compressed)
    return_freed_memory()
    return model


def _if_smaller(
    parameter: torch.nn.Parameter,
    options: EncodeOptions,
    name: str,
    mode: str,
    operand: str | None,
) -> torch.nn.Parameter:
    """A weight compressed, or as it is where that takes no more memory.

    Raises
    ------
    EncodeError
        ``unsupported_dtype``: also of a subclass, which would be a plain parameter afterwards.
    """
    if type(parameter) is not torch.nn.Parameter:
        raise EncodeError(
            "unsupported_dtype",
            f"a {type(parameter).__name__} cannot be held compressed, for it would be a plain "
            "parameter afterwards: leave it alone (skip=)",
            tensor=name,
        )
    small = compressed_parameter(parameter, options, name, mode, operand)
    nbytes = parameter.numel() * parameter.element_size()
    return small if small.stream.numel() < nbytes else parameter


def _replace_weights(
    model: torch.nn.Module,
    make: Callable[[str, torch.nn.Parameter], torch.nn.Parameter | None],
) -> None:
    """Put what `make` makes of each weight in its place, or leave it alone if that is None. Of tied
    ones `make` is called once.
    """
    done: dict[int, torch.nn.Parameter] = {}
    for name, module, leaf, parameter in _weights(model):
        new = done.get(id(parameter))
        if new is None:
            new = make(name, parameter)
            if new is None:
                continue
            done[id(parameter)] = new
        if new is not parameter:
            setattr(module, leaf, new)


def compressed_parameter(
    tensor: torch.Tensor,
    options: EncodeOptions | None = None,
    name: str = "",
    mode: str = "resident",
    operand: str | None = None,
) -> torch.nn.Parameter:
    """A tensor as a frozen parameter that is held compressed, with its attributes."""
    small = CompressedTensor.from_dense(tensor, options, name, mode=mode, operand=operand)
    return with_attributes_of(torch.nn.Parameter(small, requires_grad=False), tensor)


def with_attributes_of(new: torch.nn.Parameter, old: torch.Tensor) -> torch.nn.Parameter:
    """A parameter in place of another one, with the attributes that users have set on that one."""
    new.__dict__.update(
        {k: v for k, v in old.__dict__.items() if k not in OWN and k not in new.__dict__}
    )
    return new


class Keys(NamedTuple):
    """What did not match between a model and a checkpoint; as of ``load_state_dict``."""

    missing_keys: list[str]
    unexpected_keys: list[str]


def load_compressed(
    model: torch.nn.Module,
    path: AnyPath,
    device: Device | None = None,
    *,
    min_nbytes: int = MIN_NBYTES,
    strict: bool = True,
    base: AnyPath | None = None,
    mode: str = "resident",
    operand: str | None = None,
    variant: str | None = None,
) -> Keys:
    """Put the weights of a ``.wcodec`` checkpoint into a model as they are, compressed.

    What `compress_model` would not take is decoded. Parameters become those of the checkpoint, as
    by ``load_state_dict(assign=True)``: the model may have been made on the device ``meta``.

    Parameters
    ----------
    path, base, variant
        As of `WCodecCheckpoint`.
    device
        Where to hold them; ``None`` for where each parameter is, the CPU for those on ``meta``.
    strict
        Whether all names have to match, and nothing may be left on ``meta``.
    mode, operand
        As of `compress_model`. An operand in the file stays as it is, unless `operand` names the
        other form; another matrix that has to become one is decoded and encoded anew.

    Returns
    -------
    Names without a tensor in the checkpoint, and tensors without a name in the model. With
    `strict`, both are empty.

    Raises
    ------
    DecodeError, EncodeError, BackendUnavailable
    RuntimeError
        With `strict`, names that do not match, or what is still on ``meta``.
        A shape that does not match.
    """
    check_mode(mode, operand)
    places = _places(model)
    missing, unexpected = set(places), list[str]()
    with WCodecCheckpoint(path, base=base, variant=variant) as checkpoint, torch.no_grad():
        if strict and (wrong := sorted(set(checkpoint) - set(places))):
            raise RuntimeError(f"tensors that the model does not have: {_some(wrong)}")
        for reader, names in checkpoint.readers():
            unexpected += [name for name in names if name not in places]
            for name in filter(places.__contains__, names):
                place = places[name]
                original = (reader.name, reader.file.original(reader.record(name)).name)
                if place.loaded != original:  # not only tied, but stored once
                    _load(place, reader, name, device, min_nbytes, mode, operand)
                    place.loaded = original
                missing -= {name for name, _, _ in place.where}
    if strict:
        _check_complete(model, missing)
    return Keys(sorted(missing), unexpected)


def _check_complete(model: torch.nn.Module, missing: set[str]) -> None:
    """Refuse a model that the checkpoint has left without values somewhere."""
    if missing:
        raise RuntimeError(f"the checkpoint lacks {_some(sorted(missing))}")
    nowhere = [n for n, t in [*model.named_parameters(), *model.named_buffers()] if t.is_meta]
    if nowhere:
        raise RuntimeError(
            f"still on the device meta, as checkpoints do not hold them: {_some(nowhere)}; make "
            "the model with its buffers (accelerate.init_empty_weights does), or by "
            "WCodecModel.from_pretrained"
        )


@dataclass
class _Place:
    """A parameter or buffer of a model, and all names that it has there."""

    tensor: torch.Tensor
    where: list[tuple[str, torch.nn.Module, str]]
    is_buffer: bool
    loaded: tuple[str, str] | None = None


def _places(model: torch.nn.Module) -> dict[str, _Place]:
    by_id: dict[int, _Place] = {}
    for prefix, module in model.named_modules():
        persistent = (
            (n, b)
            for n, b in module._buffers.items()
            if n not in module._non_persistent_buffers_set
        )
        for leaf, tensor in [*module._parameters.items(), *persistent]:
            if tensor is not None:
                place = by_id.setdefault(id(tensor), _Place(tensor, [], leaf in module._buffers))
                place.where.append((f"{prefix}.{leaf}" if prefix else leaf, module, leaf))
    return {name: place for place in by_id.values() for name, _, _ in place.where}


def _load(
    place: _Place,
    reader: Reader,
    name: str,
    device: Device | None,
    min_nbytes: int,
    mode: str,
    operand: str | None,
) -> None:
    """Put a tensor into its places."""
    t, old, shape = reader.record(name), place.tensor, reader.form(name).shape
    if shape != old.shape:
        raise RuntimeError(
            f"size mismatch for {name}: {tuple(shape)} in the checkpoint, "
            f"{tuple(old.shape)} in the model"
        )
    goes_to = (
        torch.device(device)
        if device is not None
        else torch.device("cpu")
        if old.is_meta
        else old.device
    )
    recurrent = any(isinstance(module, torch.nn.RNNBase) for _, module, _ in place.where)
    new: torch.Tensor
    if (
        place.is_buffer
        or recurrent
        or len(t.shape) < 2
        or t.nbytes < min_nbytes
        or t.payload_nbytes >= t.nbytes
        or t.difference
        or t.dtype is OPAQUE  # a stream would not say of which dtype
    ):
        new = reader.tensor(name).to(goes_to)
        new = (
            new
            if place.is_buffer
            else torch.nn.Parameter(
                new, requires_grad=old.requires_grad and new.is_floating_point()
            )
        )
    else:
        stream = torch.from_numpy(reader.file.extract(name))
        held = moved(hold(stream, name), goes_to, mode, operand)
        new = torch.nn.Parameter(CompressedTensor(held, mode=mode), requires_grad=False)
    for _, module, leaf in place.where:
        setattr(module, leaf, new)


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def decompress_model(model: torch.nn.Module) -> torch.nn.Module:
    """Decode all weights that are held compressed, in place. They stay frozen.

    Raises
    ------
    DecodeError
    """

    def dense(_: str, parameter: torch.nn.Parameter) -> torch.nn.Parameter | None:
        if not isinstance(parameter, CompressedTensor):
            return None
        values = parameter.decode().contiguous()
        new = torch.nn.Parameter(values, requires_grad=parameter.requires_grad)
        return with_attributes_of(new, parameter)

    _replace_weights(model, dense)
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


def _weights(
    model: torch.nn.Module,
) -> Iterator[tuple[str, torch.nn.Module, str, torch.nn.Parameter]]:
    """Name, module, name in it, and parameter; a tied one as often as it stands somewhere. None of
    recurrent layers: those hand their weights to kernels that read memory.
    """
    for prefix, module in model.named_modules():
        if isinstance(module, torch.nn.RNNBase):
            continue
        for leaf, parameter in list(module._parameters.items()):
            if parameter is not None:
                yield f"{prefix}.{leaf}" if prefix else leaf, module, leaf, parameter
