"""The name of `WCodecLinear` in pickles of models that earlier versions wrote."""

from wcodec.torch.resident.layers import WCodecLinear

__all__ = ["WCodecLinear"]
