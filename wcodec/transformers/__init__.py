"""Models of Hugging Face transformers from compressed weights,
bit for bit the same as from plain ones.

Importing this package registers the quantization method ``wcodec``. After that, ``from_pretrained``
of any model or auto class takes a directory in hub form as it takes a plain one. `WCodecModel`
takes the other forms as well.

Examples
--------
>>> import wcodec.transformers
>>> model = AutoModelForCausalLM.from_pretrained("model-hub")  # decoded while loading
>>> config = WCodecConfig(mode="resident")  # held compressed
>>> model = AutoModelForCausalLM.from_pretrained("model-hub", quantization_config=config)
"""

from __future__ import annotations

from typing import Final

OLDEST: Final = (5, 16)  #: of transformers
_INSTALL: Final = "pip install 'wcodec[transformers]'"

try:
    import torch  # noqa: F401
    import transformers
except ImportError as e:
    raise ImportError(
        f"wcodec.transformers needs PyTorch and transformers, and {e.name} is missing: {_INSTALL}",
        name=e.name,
    ) from e

_version = tuple(int(n) for n in transformers.__version__.split(".")[:2])
if not OLDEST <= _version < (6,):
    _wants = f"transformers {OLDEST[0]}.{OLDEST[1]} or later, below 6"
    raise ImportError(
        f"wcodec.transformers works with {_wants}, not with {transformers.__version__}: {_INSTALL}"
    )

from wcodec.transformers.config import WCodecConfig  # noqa: E402
from wcodec.transformers.model import WCodecModel  # noqa: E402
from wcodec.transformers.quantizer import WCodecHfQuantizer, register  # noqa: E402

register()

__all__ = ["WCodecConfig", "WCodecHfQuantizer", "WCodecModel"]
