"""A linear layer whose weight is held compressed: `WCodecLinear`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (as everyone calls it)

from wcodec.errors import EncodeError
from wcodec.planner.options import EncodeOptions
from wcodec.torch.resident import products
from wcodec.torch.resident.compressed import CompressedTensor
from wcodec.torch.resident.holding import moved
from wcodec.torch.resident.models import compressed_parameter, with_attributes_of
from wcodec.torch.resident.operands import check_mode


class WCodecLinear(torch.nn.Linear):
    """A linear layer whose weight is a frozen `CompressedTensor`, random as that of
    ``torch.nn.Linear`` at first.

    Quantised weights come with a scale for each row (`from_quantized`):
    ``y = (x @ weight.T) * weight_scale + bias``.

    Parameters
    ----------
    in_features, out_features, bias, device, dtype
        As of ``torch.nn.Linear``.
    mode
        ``"fused"``: the weight is multiplied without being decoded first; see `compress_model`.
        ``"resident"``: it is decoded for each call, into memory that all weights share; results
        have the bits of the dense layer. A quantised weight is then multiplied by its scale too and
        rounded to the dtype of the activations, a copy for each call.
    operand
        The form of the operand that the weight becomes in mode "fused", ``"fixed"`` or ``"rans"``;
        ``None`` for the one that suits device and dtype, on a CPU none. See `compress_model`.
    options
        How the weight is compressed where it becomes no operand; ``None`` for the default preset.
        They may say more than a preset if there is no `operand`; then it is compressed so in any
        case.
    name
        What errors call the weight.

    Attributes
    ----------
    weight_scale
        ``None``, or a frozen parameter of shape (out_features,), float32 whatever dtype the layer
        is taken to. It may be trained: set its ``requires_grad``.

    Raises
    ------
    EncodeError
        ``bad_option``: there is no such mode or operand; an operand beside mode "resident", or
        beside options that say more than a preset. ``unsupported_dtype``, also on the device
        ``meta``: a weight without values.

    Examples
    --------
    >>> layer = WCodecLinear.from_linear(torch.nn.Linear(4096, 4096, dtype=torch.bfloat16))
    """

    weight: torch.nn.Parameter
    weight_scale: torch.nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        mode: str = "fused",
        operand: str | None = None,
        options: EncodeOptions | None = None,
        name: str = "weight",
    ) -> None:
        check_mode(mode, operand, options)
        super().__init__(in_features, out_features, bias, device, dtype)
        self.weight = _compressed(self.weight, mode, operand, options, name)
        self.register_parameter("weight_scale", None)

    @classmethod
    def from_linear(
        cls,
        linear: torch.nn.Linear,
        mode: str = "fused",
        *,
        operand: str | None = None,
        options: EncodeOptions | None = None,
        name: str = "weight",
    ) -> WCodecLinear:
        """A layer with the weight of another one and the same bias. Raises as the class.

        A weight that is compressed already keeps its name, and how it is compressed, unless
        `operand` or `options` say how.
        """
        check_mode(mode, operand, options)
        layer = cls._made(_compressed(linear.weight, mode, operand, options, name), linear.bias)
        layer.weight_scale = linear.weight_scale if isinstance(linear, WCodecLinear) else None
        layer.training = linear.training
        return layer

    @classmethod
    def from_quantized(
        cls,
        weight: torch.Tensor,
        scale: torch.Tensor,
        bias: torch.Tensor | None = None,
        mode: str = "fused",
        *,
        operand: str | None = None,
        options: EncodeOptions | None = None,
        name: str = "weight",
    ) -> WCodecLinear:
        """A layer of a weight that was quantised row by row: ``y = (x @ weight.T) * scale + bias``.

        Activations have any float type, with a bias its.

        Parameters
        ----------
        weight
            int8 or float8 of shape (n, k), or compressed already; see `from_linear`.
        scale
            A factor for each row, of shape (n,) or (n, 1), or one for all. float32, or what it
            holds exactly: bfloat16, float16.
        bias
            Of shape (n,). A parameter is taken as it is; another tensor becomes a frozen one.
        mode, operand, options, name
            As of the class.

        Raises
        ------
        EncodeError
            ``bad_option``: as of the class; shapes or dtypes that are not those above.
            ``unsupported_dtype``: as of the class.

        Examples
        --------
        >>> scale = dense.weight.float().abs().amax(1) / 127
        >>> weight = (dense.weight.float() / scale[:, None]).round().to(torch.int8)
        >>> layer = WCodecLinear.from_quantized(weight, scale, dense.bias)
        """
        check_mode(mode, operand, options)
        _check_quantized(weight, scale, bias)
        if bias is not None and not isinstance(bias, torch.nn.Parameter):
            bias = torch.nn.Parameter(bias.detach(), requires_grad=False)
        layer = cls._made(_compressed(weight, mode, operand, options, name), bias)
        layer.weight_scale = torch.nn.Parameter(
            _per_row(scale, weight.shape[0]), requires_grad=False
        )
        return layer

    @classmethod
    def _made(cls, weight: torch.nn.Parameter, bias: torch.Tensor | None) -> WCodecLinear:
        layer = cls.__new__(cls)
        torch.nn.Module.__init__(layer)
        layer.out_features, layer.in_features = weight.shape
        for name, parameter in (("weight", weight), ("bias", bias), ("weight_scale", None)):
            layer.register_parameter(name, parameter)
        return layer

    @property
    def mode(self) -> str:
        """``"fused"``, ``"resident"``, or ``"decoded"`` if a dense weight was put there."""
        return self.weight.mode if isinstance(self.weight, CompressedTensor) else "decoded"

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """As of ``torch.nn.Linear``; of a quantised weight, see the class."""
        scale, bias = self.weight_scale, self.bias
        if scale is None:
            return super().forward(input)
        device = input.device.type
        if (
            torch.amp.is_autocast_available(device)
            and torch.is_autocast_enabled(device)
            and input.dtype != torch.float64
        ):
            dtype = torch.get_autocast_dtype(device)
            input, bias = input.to(dtype), None if bias is None else bias.to(dtype)
        if isinstance(self.weight, CompressedTensor):
            shape = [self.out_features, self.in_features]
            return torch.ops.wcodec.linear(
                input, self.weight, shape, self.weight.dtype, bias, scale
            )
        dense = self.weight.to(products.wide_of(input.dtype)) * scale[:, None]
        return F.linear(input, dense.to(input.dtype), bias)

    def extra_repr(self) -> str:
        """What stands in the layer's text."""
        scaled = "" if self.weight_scale is None else f", weight={self.weight.dtype} with a scale"
        return f"{super().extra_repr()}, mode={self.mode}{scaled}"

    def _apply(
        self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True
    ) -> WCodecLinear:
        """To other devices as ever. To another dtype neither a quantised weight nor its scale goes:
        both say what the weight is.
        """
        scale = self.weight_scale
        keep = () if scale is None else (id(self.weight), id(scale), id(scale.grad))

        def apply(t: torch.Tensor) -> torch.Tensor:
            if id(t) in keep:
                probe = fn(torch.empty(0, dtype=t.dtype, device=t.device))
                if probe.dtype != t.dtype:
                    return t.to(probe.device)
            return fn(t)

        super()._apply(apply, recurse)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Scales are taken in all shapes that `from_quantized` takes."""
        scale = state_dict.get(f"{prefix}weight_scale")
        if (
            self.weight_scale is not None
            and isinstance(scale, torch.Tensor)
            and _is_scale(scale, self.out_features)
        ):
            state_dict[f"{prefix}weight_scale"] = _per_row(scale, self.out_features)
        super()._load_from_state_dict(state_dict, prefix, *rest)


#: pickles name it so, wherever it lies
WCodecLinear.__module__ = "wcodec.torch"


def _check_quantized(weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Refuse what makes no layer.

    Raises
    ------
    EncodeError
    """

    def refuse(what: str, t: Any, due: str) -> EncodeError:
        found = (
            f"{t.dtype} of {tuple(t.shape)}"
            if isinstance(t, torch.Tensor)
            else f"a {type(t).__name__}"
        )
        return EncodeError("bad_option", f"the {what} is {found}, not {due}")

    if (
        not isinstance(weight, torch.Tensor)
        or weight.dim() != 2
        or weight.dtype not in products.NARROW
    ):
        raise refuse("weight", weight, "int8 or float8 of two dimensions")
    n = weight.shape[0]
    if not isinstance(scale, torch.Tensor) or not _is_scale(scale, n):
        raise refuse(
            "scale",
            scale,
            f"a tensor of float32, bfloat16 or float16 of {(n,)} or {(n, 1)}, or of one number",
        )
    if bias is not None and not (
        isinstance(bias, torch.Tensor)
        and tuple(bias.shape) == (n,)
        and bias.dtype in products.FLOATS
    ):
        raise refuse("bias", bias, f"a tensor of a float type of {(n,)}")


def _is_scale(scale: torch.Tensor, n: int) -> bool:
    """Whether a tensor is a scale for `n` rows, or one for all, that float32 holds."""
    return scale.dtype in (torch.float32, torch.bfloat16, torch.float16) and tuple(scale.shape) in (
        (n,),
        (n, 1),
        (1,),
        (1, 1),
        (),
    )


def _per_row(scale: torch.Tensor, n: int) -> torch.Tensor:
    """A scale for each of `n` rows, in float32 and memory of its own."""
    flat = scale.detach().to(torch.float32).reshape(-1)
    return (flat.expand(n) if flat.numel() == 1 else flat).clone(
        memory_format=torch.contiguous_format
    )


def _compressed(
    weight: torch.Tensor,
    mode: str,
    operand: str | None,
    options: EncodeOptions | None,
    name: str,
) -> torch.nn.Parameter:
    """A weight, held compressed in a mode; one that is compressed already is coded anew if there
    are options."""
    if not isinstance(weight, CompressedTensor):
        return compressed_parameter(weight, options, name, mode, operand)
    if options is not None:
        dense = weight.decode().contiguous()
        return with_attributes_of(
            compressed_parameter(dense, options, weight.held.name, mode, operand), weight
        )
    held = moved(weight.held, weight.device, mode, operand)
    other = CompressedTensor(held, weight._swapped, mode=mode)
    return with_attributes_of(torch.nn.Parameter(other, requires_grad=False), weight)
