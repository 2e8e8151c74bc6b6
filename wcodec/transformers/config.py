"""`WCodecConfig`: what stands as ``quantization_config`` in ``config.json`` of a directory in hub
form, and how to load it.
"""

from __future__ import annotations

from typing import Any, Final

from transformers.utils.quantization_config import MetalConfig

from wcodec.directories.configs import METHOD
from wcodec.directories.hub_header import VERSION_TEXT
from wcodec.errors import DecodeError, EncodeError
from wcodec.planner.options import EncodeOptions
from wcodec.torch.resident.operands import LOADING_MODES, check_mode

_DTYPES: Final = ("float16", "bfloat16", "float32", "float64")
_STORED: Final = ("format_version", "dtype", "mode", "operand", "preset")


# transformers lets the configuration that a caller gives override that of the directory, and does
# so silently, only where both are of a few classes of its own
# (AutoHfQuantizer.merge_quantization_configs). That is all that this one has of its base.
class WCodecConfig(MetalConfig):
    """How weights are stored and held.

    Parameters
    ----------
    mode
        ``"decoded"``: weights are decoded while they are loaded, and the model is an ordinary one.
        ``"resident"``: weights of two or more dimensions stay compressed in memory, and are decoded
        for each operation. ``"fused"``: so they do, and matrices are multiplied without being
        decoded first. See `wcodec.torch.compress_model`. ``save_pretrained`` writes them as they
        are held.
    operand
        The form of the operands that matrices become in mode "fused", ``"fixed"`` or ``"rans"``;
        ``None`` leaves it to device and dtype.
    preset
        ``"fast"``, ``"default"`` or ``"max"``: how weights are compressed where that is to be done,
        by ``save_pretrained`` or while a plain directory is loaded.
    format_version
        Of the streams in the directory.
    dtype
        What ``dtype="auto"`` means where ``config.json`` has no dtype;
        ``None`` for what the weights say.

    Raises
    ------
    EncodeError
        ``bad_option``: there is no such mode, operand or preset; an operand beside another mode
        than "fused".
    DecodeError
        ``bad_value``: no such dtype.
    """

    def __init__(
        self,
        mode: str = "decoded",
        operand: str | None = None,
        preset: str = "default",
        format_version: str = VERSION_TEXT,
        dtype: str | None = None,
    ) -> None:
        check_mode(mode, operand, modes=LOADING_MODES)
        self.quant_method, self.mode, self.operand, self.preset = METHOD, mode, operand, preset
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
        """From what stands in ``config.json``, also as earlier versions have written it; keys that
        mean nothing here are left alone."""
        given = {**_of_earlier(config_dict), **config_dict, **kwargs}
        config = cls(**{k: v for k, v in given.items() if k in _STORED})
        return (
            (config, {k: v for k, v in kwargs.items() if k not in _STORED})
            if return_unused_kwargs
            else config
        )

    def get_loading_attributes(self) -> dict[str, Any]:
        """What the caller's configuration says and the directory's does not."""
        return {"mode": self.mode, "operand": self.operand, "preset": self.preset}

    @property
    def stays_compressed(self) -> bool:
        """Whether weights are held compressed once they are loaded."""
        return self.mode != "decoded"

    def to_dict(self) -> dict[str, Any]:
        """What is stored: nothing of how this model was loaded."""
        stored = {"quant_method": METHOD, "format_version": self.format_version}
        return stored if self.dtype is None else {**stored, "dtype": self.dtype}


def _of_earlier(entry: dict[str, Any]) -> dict[str, Any]:
    """`mode` and `operand` of an entry that says, as earlier versions did, ``resident``, and
    ``fused``: true, false, or the form of operands.

    Raises
    ------
    EncodeError
        ``bad_option``: `fused` without `resident`.
    """
    resident, fused = entry.get("resident", False), entry.get("fused", False)
    if not resident:
        if fused:
            raise EncodeError(
                "bad_option", f"the quantization_config has {fused=} without resident"
            )
        return {}
    if not fused:
        return {"mode": "resident"}
    return {"mode": "fused", "operand": None if fused is True else fused}
