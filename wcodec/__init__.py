"""wcodec: a bit-exact codec for neural-network weights."""

from wcodec.backends import Backend, available_backends, get_backend, set_backend, use_backend
from wcodec.codec import Decoder, Encoder, decode, encode
from wcodec.directories import encode_safetensors_to_wcodec
from wcodec.errors import BackendUnavailable, DecodeError, EncodeError, WcodecError
from wcodec.explain import explain
from wcodec.files import File, load_file, open, save_file
from wcodec.reference.plan import EncodeOptions

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
