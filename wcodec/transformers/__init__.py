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
>>> trainer = Trainer(model, args, callbacks=[WCodecCallback()])  # smaller checkpoints
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

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

if TYPE_CHECKING:
    from wcodec.transformers.state_hooks import AccelerateHooks
    from wcodec.transformers.training import WCodecCallback, restore_checkpoint

register()

__all__ = [
    "AccelerateHooks",
    "WCodecCallback",
    "WCodecConfig",
    "WCodecHfQuantizer",
    "WCodecModel",
    "restore_checkpoint",
]

#: what needs ``torch.distributed.checkpoint``, which is slow to import: imported when it is used
_MODULE_OF: Final = {
    "AccelerateHooks": "state_hooks",
    "WCodecCallback": "training",
    "restore_checkpoint": "training",
}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Names of `_MODULE_OF`."""
        if name not in _MODULE_OF:
            raise AttributeError(f"module 'wcodec.transformers' has no attribute {name!r}")
        from importlib import import_module

        module = import_module(f"wcodec.transformers.{_MODULE_OF[name]}")
        found = globals()[name] = getattr(module, name)
        return found
