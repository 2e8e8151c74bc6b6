"""wcodec: a bit-exact codec for neural-network weights."""

from typing import TYPE_CHECKING, Any

from wcodec.backends import Backend, available_backends, get_backend, set_backend, use_backend
from wcodec.codec import decode, encode
from wcodec.codec.decoder import Decoder
from wcodec.codec.encoder import Encoder
from wcodec.errors import BackendUnavailable, DecodeError, EncodeError, WcodecError
from wcodec.files.file import File, load_file, open
from wcodec.files.saving import save_file
from wcodec.inspect.explain import explain
from wcodec.planner.options import EncodeOptions

if TYPE_CHECKING:
    from wcodec.directories.encoding import encode_safetensors_to_wcodec

__version__ = "0.1.0"
__all__ = [
    "Backend",
    "BackendUnavailable",
    "DecodeError",
    "Decoder",
    "EncodeError",
    "EncodeOptions",
    "Encoder",
    "File",
    "WcodecError",
    "available_backends",
    "decode",
    "encode",
    "encode_safetensors_to_wcodec",
    "explain",
    "get_backend",
    "load_file",
    "open",
    "save_file",
    "set_backend",
    "use_backend",
]


def __getattr__(name: str) -> Any:
    """What is imported when it is used: directories of models take a fifth of the time of all."""
    if name != "encode_safetensors_to_wcodec":
        raise AttributeError(f"module 'wcodec' has no attribute {name!r}")
    from wcodec.directories.encoding import encode_safetensors_to_wcodec

    return encode_safetensors_to_wcodec
