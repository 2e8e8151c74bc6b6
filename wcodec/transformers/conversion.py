"""How weights come out of streams on their way into a model, and go back into them.

transformers brings each tensor of a checkpoint into a model through a converter
(`transformers.core_model_loading`): it collects the tensors of a parameter, applies operations such
as stacking experts, and is reversed to save the model. The converters here decode what was
collected before the operations, and encode what comes out when they are reversed. They do it
outside of the operations, because the loader makes a report of what an operation raises; a
`DecodeError` has to reach the caller.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.quantizers.base import HfQuantizer

from wcodec.codec.decoder import Decoder
from wcodec.codec.sources import BufferSource
from wcodec.directories import hub_header as hub
from wcodec.errors import DecodeError, EncodeError
from wcodec.planner.options import EncodeOptions
from wcodec.reference.checksums import crc32_each
from wcodec.reference.container import MAGIC
from wcodec.torch.resident import operands
from wcodec.torch.resident.compressed import CompressedTensor
from wcodec.torch.resident.held import Held, compress, encode
from wcodec.torch.resident.holding import hold, moved

#: Whether the loader asks a quantizer what to cast a tensor of the checkpoint to, and looks whether
#: its shape is right, as transformers does from 5.21 on. Before, it leaves as they are tensors that
#: are not of floating point, as streams, or whose parameters have other names.
LOADER_ASKS: Final = hasattr(HfQuantizer, "get_new_dtype")


@dataclass(frozen=True)
class Coding:
    """What the converters of a model have in common.

    Attributes
    ----------
    decodes
        Whether the checkpoint may hold streams.
    mode, operand
        How to hold weights and multiply by them; as of `WCodecConfig`.
    weights
        Names of the parameters that can be held so.
    preset
        How to compress.
    casts
        What each parameter is to be, by name, where the loader does not say it
        (`CodedConverter.cast`).
    """

    decodes: bool
    mode: str
    operand: str | None
    weights: frozenset[str]
    preset: str
    casts: dict[str, torch.dtype]

    def __deepcopy__(self, _: Any) -> Coding:  # the loader copies converters for each parameter
        return self

    @property
    def options(self) -> EncodeOptions:
        """The same for the encoder."""
        return EncodeOptions(preset=self.preset)


# ---- tensors and streams -------------------------------------------------------------------------
def is_stream(tensor: torch.Tensor) -> bool:
    """Whether a tensor of a checkpoint in hub form is a stream."""
    if tensor.dtype != torch.uint8 or tensor.dim() != 1:
        return False
    return hub.is_stream(tensor[: len(MAGIC)].cpu().numpy())


class Stream(torch.Tensor):
    """The stream of a weight that is held compressed, on its way into a file. It has memory, which
    transformers compares to find tied weights.
    """

    @classmethod
    def of(cls, weight: CompressedTensor, options: EncodeOptions) -> Stream:
        """The stream that a weight is held as; of a transposed one, a new one."""
        stream = encode(weight.decode().contiguous(), options) if weight._swapped else weight.stream
        out: Stream = stream.detach().as_subclass(cls)
        return out

    def plain(self) -> torch.Tensor:
        """The same as an ordinary tensor."""
        return self.as_subclass(torch.Tensor)


def to_stream(
    tensor: torch.Tensor,
    options: EncodeOptions,
    mode: str = "resident",
    operand: str | None = None,
) -> torch.Tensor:
    """How a tensor stands in hub form: as a stream if it is worth it, or as it is."""
    if isinstance(tensor, Stream):
        return tensor.plain()
    nbytes = tensor.numel() * tensor.element_size()
    forced = is_stream(tensor)
    if nbytes < hub.LEAST_NBYTES and not forced:
        return tensor
    try:
        stream, _ = compress(tensor.contiguous(), options, mode=mode, operand=operand)
    except EncodeError as e:
        if e.code == "unsupported_dtype":
            return tensor
        raise
    return stream if forced or stream.numel() < nbytes else tensor


def check_payload(held: Held) -> None:
    """Compare the CRC-32s of a weight that is not decoded now.

    Raises
    ------
    DecodeError
        ``bad_checksum``; of a weight on a GPU, which is decoded for it, what decoding may give.
    """
    if operands.on_gpu(held.stream.device):
        held.dense()
        return
    source = BufferSource(held.stream.numpy())
    index = Decoder().read_index(source)
    t = index.tensors[0]
    offsets = t.plan(index.tables).offsets
    wrong = crc32_each(source.read(t.payload_offset, t.payload_nbytes), offsets) != t.segment_crc32
    if wrong.any():
        k = int(wrong.argmax())
        at = t.payload_offset + int(offsets[k])
        raise DecodeError(
            "bad_checksum", f"the CRC-32 of segment {k} does not match", tensor=held.name, offset=at
        )


def frozen(weight: CompressedTensor) -> torch.nn.Parameter:
    """A compressed weight as a parameter."""
    return torch.nn.Parameter(weight, requires_grad=False)


# ---- operations ----------------------------------------------------------------------------------
class KeepName(ConversionOps):
    """Hands on one tensor under the full name of its parameter."""

    def convert(
        self, input_dict: dict[str, Any], *, full_layer_name: str, **_: Any
    ) -> dict[str, Any]:
        (tensors,) = input_dict.values()
        return {full_layer_name: tensors}

    @property
    def reverse_op(self) -> KeepName:
        return self


class Decode(ConversionOps):
    """Decodes the stream of a parameter that the loader has brought to no converter."""

    def __init__(self, cast: torch.dtype | None) -> None:
        self.cast = cast

    def convert(
        self, input_dict: dict[str, Any], *, full_layer_name: str, **_: Any
    ) -> dict[str, Any]:
        (tensors,) = input_dict.values()
        tensor = tensors[0] if isinstance(tensors, list) else tensors
        dense = hold(tensor, full_layer_name).dense() if is_stream(tensor) else tensor
        return {full_layer_name: dense if self.cast is None else dense.to(self.cast)}


def _of_right_shapes(loaded: dict[str, Any], model: Any, info: Any) -> dict[str, Any]:
    """Parameters as they are in the model; others are told to the loader,
    as it does it itself from transformers 5.21 on.
    """
    right = dict[str, Any]()
    for name, value in loaded.items():
        shape, due = (
            getattr(t, "shape", None)
            for t in (
                value[0] if isinstance(value, list) else value,
                model.get_parameter_or_buffer(name),
            )
        )
        if shape == due:
            right[name] = value
        else:
            info.missing_keys.discard(name)
            info.mismatched_keys.add((name, shape, due))
    return right


# ---- converters ----------------------------------------------------------------------------------
class CodedConverter(WeightConverter):
    """A converter that decodes the tensors that it collects; without a `coding`, as its base."""

    def __init__(
        self,
        source_patterns: Any,
        target_patterns: Any,
        operations: list[Any],
        force_cpu: bool = False,
        coding: Coding | None = None,
    ) -> None:
        super().__init__(source_patterns, target_patterns, operations, force_cpu)
        self.coding, self.met_stream = coding, False
        #: what the loader would have cast those to that it was told to hand on as they are
        self.cast: torch.dtype | None = None
        self.names = dict[str, list[str]]()

    @classmethod
    def around(cls, converter: WeightConverter, coding: Coding) -> CodedConverter:
        """A converter that does the same with compressed tensors."""
        if type(converter) is not WeightConverter:
            raise TypeError(f"wcodec does not know how to decode for a {type(converter).__name__}")
        sources = list(converter._original_source_patterns)
        targets = list(converter._original_target_patterns)
        out = cls(sources, targets, list(converter.operations), converter.force_cpu, coding)
        out.scope_prefix = converter.scope_prefix
        out.base_model_prefix = converter.base_model_prefix
        return out

    def plain(self) -> WeightConverter | None:
        """The converter that was there before."""
        sources = list(self._original_source_patterns)
        targets = list(self._original_target_patterns)
        out = WeightConverter(sources, targets, list(self.operations), self.force_cpu)
        out.scope_prefix, out.base_model_prefix = self.scope_prefix, self.base_model_prefix
        return out

    def add_tensor(
        self, target_key: str, source_key: str, source_pattern: str, future: Any
    ) -> None:
        self.names.setdefault(source_pattern, []).append(source_key)
        super().add_tensor(target_key, source_key, source_pattern, future)

    # ---- loading
    def materialize_tensors(self) -> dict[str, list[torch.Tensor]]:
        """The tensors that were collected, decoded.

        Raises
        ------
        DecodeError
            With the name that the tensor has in the file.
        """
        collected: dict[str, list[torch.Tensor]] = super().materialize_tensors()
        if self.coding is not None and self.coding.decodes:
            for pattern, tensors in collected.items():
                for i, name in enumerate(self.names[pattern][: len(tensors)]):
                    tensors[i] = self._opened(tensors[i], name)
        return collected

    def _opened(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        if is_stream(tensor):
            self.met_stream = True
            return self._decoded(hold(tensor, name))
        return tensor if self.cast is None else tensor.to(self.cast)

    def _decoded(self, held: Held) -> torch.Tensor:
        dense = held.dense()
        return dense if self.cast is None else dense.to(self.cast)

    def convert(self, layer_name: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if self.coding is not None:
            self.cast = self.coding.casts.get(layer_name, self.cast)
        out: dict[str, Any] = super().convert(layer_name, *args, **kwargs)
        if not LOADER_ASKS:
            out = _of_right_shapes(out, kwargs["model"], kwargs["loading_info"])
        if (
            self.coding is None
            or self.coding.mode == "decoded"
            or (self.coding.decodes and not self.met_stream)
        ):
            return out
        return {name: self._held(name, value) for name, value in out.items()}

    def _held(self, name: str, value: Any) -> Any:
        """A parameter as it is held: compressed, if that pays."""
        assert self.coding is not None
        tensor = value[0] if isinstance(value, list) else value
        if name not in self.coding.weights or isinstance(tensor, CompressedTensor):
            return value
        coding = self.coding
        stream = to_stream(tensor, coding.options, coding.mode, coding.operand)
        if stream is tensor:
            return value
        return frozen(CompressedTensor.from_stream(stream, name, mode=coding.mode))

    # ---- saving
    def reverse_transform(self) -> EncodingConverter:
        operations = [op.reverse_op for op in self.operations[::-1]]
        sources = list(self._original_target_patterns)
        targets = list(self._original_source_patterns)
        out = EncodingConverter(sources, targets, operations, self.force_cpu)
        out.scope_prefix, out.base_model_prefix = self.scope_prefix, self.base_model_prefix
        out.coding, out.dense_first = self.coding, not isinstance(self, AnyConverter)
        return out


class AnyConverter(CodedConverter):
    """Takes the tensors that no other converter takes, of any name. The last one of the list when
    loading, and when saving.
    """

    def __init__(self, coding: Coding, others: list[WeightConverter] | None = None) -> None:
        super().__init__("", "", [KeepName()], coding=coding)
        self.others = [] if others is None else others

    def __deepcopy__(self, _: Any) -> AnyConverter:
        assert self.coding is not None
        return AnyConverter(self.coding)

    def rename_source_key(self, source_key: str) -> tuple[str, str | None]:
        if any(c._scoped_match(source_key) is not None for c in self.others):
            return source_key, None
        found: tuple[str, str | None] = super().rename_source_key(source_key)
        return found

    def plain(self) -> None:
        return None

    def _decoded(self, held: Held) -> torch.Tensor:
        """Of the one tensor of a parameter: it may stay as it is stored."""
        assert self.coding is not None
        (target,) = self.layer_targets
        if (
            self.coding.mode == "decoded"
            or target not in self.coding.weights
            or self.cast not in (None, held.dtype)
        ):
            return super()._decoded(held)
        there = moved(held, held.stream.device, self.coding.mode, self.coding.operand)
        if there is held:  # it was not decoded
            check_payload(held)
        return frozen(CompressedTensor(there, mode=self.coding.mode))


class EncodingConverter(WeightConverter):
    """Encodes what comes out of it, to be saved."""

    coding: Coding | None = None
    dense_first = True  #: whether operations have to be done on the dense tensors

    def materialize_tensors(self) -> dict[str, list[torch.Tensor]]:
        collected: dict[str, list[torch.Tensor]] = super().materialize_tensors()
        if not self.dense_first:
            return collected
        return {
            k: [hold(t.plain()).dense() if isinstance(t, Stream) else t for t in v]
            for k, v in collected.items()
        }

    def convert(self, layer_name: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        out: dict[str, Any] = super().convert(layer_name, *args, **kwargs)
        if self.coding is None:
            return out
        return {
            k: to_stream(v[0] if isinstance(v, list) else v, self.coding.options)
            for k, v in out.items()
        }
