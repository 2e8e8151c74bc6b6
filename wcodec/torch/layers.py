"""A linear layer whose weight is held compressed: `WCodecLinear`."""

from __future__ import annotations

from typing import Any, Final

import torch

from wcodec.errors import EncodeError
from wcodec.reference.plan import EncodeOptions
from wcodec.torch.compressed import CompressedTensor
from wcodec.torch.models import compressed_parameter, noted

MODES: Final = ("fused", "resident")


class WCodecLinear(torch.nn.Linear):
    """A linear layer whose weight is a frozen `CompressedTensor`, random as that of ``torch.nn.Linear`` at first.

    Parameters
    ----------
    in_features, out_features, bias, device, dtype
        As of ``torch.nn.Linear``.
    mode
        ``"fused"``: the weight is multiplied tile by tile as it is decoded, and never there as a whole. ``"resident"``: it is decoded
        for each call, into memory that all weights share; results have the bits of the dense layer.
    options
        How it is compressed; ``None`` for the default preset.
    name
        What errors call the weight.

    Raises
    ------
    EncodeError
        ``bad_option``: no such mode. ``unsupported_dtype``, also on the device ``meta``: a weight without values.

    Examples
    --------
    >>> layer = WCodecLinear.from_linear(torch.nn.Linear(4096, 4096, dtype=torch.bfloat16))
    """

    weight: torch.nn.Parameter

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, device: Any = None, dtype: torch.dtype | None = None, *,
        mode: str = "fused", options: EncodeOptions | None = None, name: str = "weight",
    ) -> None:  # fmt: skip
        _check(mode)
        super().__init__(in_features, out_features, bias, device, dtype)
        self.weight = _compressed(self.weight, mode, options, name)

    @classmethod
    def from_linear(
        cls, linear: torch.nn.Linear, mode: str = "fused", *, options: EncodeOptions | None = None, name: str = "weight"
    ) -> WCodecLinear:
        """A layer with the weight of another one, compressed if it is not already, and the same bias. Raises as the class."""
        _check(mode)
        layer = cls.__new__(cls)
        torch.nn.Module.__init__(layer)
        layer.in_features, layer.out_features = linear.in_features, linear.out_features
        layer.weight, layer.bias = _compressed(linear.weight, mode, options, name), linear.bias
        layer.training = linear.training
        return layer

    @property
    def mode(self) -> str:
        """``"fused"``, ``"resident"``, or ``"dense"`` if another weight was put there."""
        if not isinstance(self.weight, CompressedTensor):
            return "dense"
        return "fused" if self.weight.fused else "resident"

    def extra_repr(self) -> str:
        """What stands in the layer's text."""
        return f"{super().extra_repr()}, mode={self.mode}"


def _check(mode: str) -> None:
    if mode not in MODES:
        raise EncodeError("bad_option", f"no mode {mode!r}: fused or resident")


def _compressed(weight: torch.Tensor, mode: str, options: EncodeOptions | None, name: str) -> torch.nn.Parameter:
    """A weight, held compressed in a mode."""
    if not isinstance(weight, CompressedTensor):
        return compressed_parameter(weight, options, name, mode == "fused")
    other = weight.detach()
    assert isinstance(other, CompressedTensor)
    other.fused = mode == "fused"
    return noted(torch.nn.Parameter(other, requires_grad=False), weight)
