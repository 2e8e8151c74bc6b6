"""`WCodecConfig`: what stands as ``quantization_config`` in ``config.json`` of a directory in hub
form, and how to load it.
"""

from __future__ import annotations

from typing import Any, Final

from transformers.utils.quantization_config import MetalConfig

from wcodec.directories.configs import METHOD
from wcodec.directories.hub_header import VERSION_TEXT
from wcodec.errors import DecodeError
from wcodec.planner.options import EncodeOptions
from wcodec.torch.resident.operands import Fused, check_fused

_DTYPES: Final = ("float16", "bfloat16", "float32", "float64")
_STORED: Final = ("format_version", "dtype", "resident", "preset", "fused")


# transformers lets the configuration that a caller gives override that of the directory, and does
# so silently, only where both are of a few classes of its own
# (AutoHfQuantizer.merge_quantization_configs). That is all that this one has of its base.
class WCodecConfig(MetalConfig):
    """How weights are stored and held.

    Parameters
    ----------
    resident
        Keep weights of two or more dimensions compressed in memory, and decode them as they are
        used; by default they are decoded while they are loaded, and the model is an ordinary one.
    preset
        ``"fast"``, ``"default"`` or ``"max"``: how weights are compressed where that is to be done,
        by ``save_pretrained`` or while a plain directory is loaded.
    format_version
        Of the streams in the directory.
    dtype
        What ``dtype="auto"`` means where ``config.json`` has no dtype;
        ``None`` for what the weights say.
    fused
        With `resident`: matrices are multiplied without being decoded first. ``True``, or
        ``"fixed"`` or ``"rans"`` for the form that they are held in; see
        `wcodec.torch.compress_model`. ``save_pretrained`` writes them as they are held.

    Raises
    ------
    ValueError
        `fused` without `resident`.
    EncodeError
        ``bad_option``: there is no such preset or form.
    DecodeError
        ``bad_value``: no such dtype.
    """

    def __init__(
        self,
        resident: bool = False,
        preset: str = "default",
        format_version: str = VERSION_TEXT,
        dtype: str | None = None,
        fused: Fused = False,
    ) -> None:
        self.quant_method, self.resident, self.preset, self.fused = METHOD, resident, preset, fused
        if fused and not resident:
            raise ValueError(
                f"fused={fused!r} multiplies by weights that stay compressed: "
                "it needs resident=True"
            )
        check_fused(fused)
        self.format_version, self.dtype = format_version, dtype
        EncodeOptions(preset=preset)
        if dtype is not None and dtype not in _DTYPES:
            raise DecodeError(
                "bad_value",
                f"the quantization_config names the dtype {dtype!r}, in which no model can be made",
            )

    @classmethod
    def from_dict(
        cls, config_dict: dict[str, Any], return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """From what stands in ``config.json``; keys that mean nothing here are left alone."""
        config = cls(**{k: v for k, v in {**config_dict, **kwargs}.items() if k in _STORED})
        return (
            (config, {k: v for k, v in kwargs.items() if k not in _STORED})
            if return_unused_kwargs
            else config
        )

    def get_loading_attributes(self) -> dict[str, Any]:
        """What the caller's configuration says and the directory's does not."""
        return {"resident": self.resident, "preset": self.preset, "fused": self.fused}

    def to_dict(self) -> dict[str, Any]:
        """What is stored: nothing of how this model was loaded."""
        stored = {"quant_method": METHOD, "format_version": self.format_version}
        return stored if self.dtype is None else {**stored, "dtype": self.dtype}
