"""wcodec: a bit-exact codec for neural-network weights.

`import wcodec` takes a few milliseconds: what it offers is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from wcodec import backends as backends
    from wcodec import codec as codec
    from wcodec import errors as errors
    from wcodec import files as files
    from wcodec import inspect as inspect
    from wcodec import planner as planner
    from wcodec import reference as reference
    from wcodec.backends import Backend, available_backends, get_backend, set_backend, use_backend
    from wcodec.codec import decode, encode
    from wcodec.codec.decoder import Decoder
    from wcodec.codec.encoder import Encoder
    from wcodec.codec.urls import Url
    from wcodec.deltas.applying import Applied, apply
    from wcodec.deltas.chain import Chain
    from wcodec.directories.content import content_sha256
    from wcodec.directories.encoding import encode_safetensors_to_wcodec
    from wcodec.errors import (
        BackendUnavailable,
        DecodeError,
        EncodeError,
        MissingPackage,
        WcodecError,
    )
    from wcodec.files.file import File, open
    from wcodec.files.loading import load_file
    from wcodec.files.saving import save, save_file
    from wcodec.inspect.explain import explain
    from wcodec.planner.options import EncodeOptions

__version__ = "0.1.0"
__all__ = [
    "Applied",
    "Backend",
    "BackendUnavailable",
    "Chain",
    "DecodeError",
    "Decoder",
    "EncodeError",
    "EncodeOptions",
    "Encoder",
    "File",
    "MissingPackage",
    "Url",
    "WcodecError",
    "apply",
    "available_backends",
    "content_sha256",
    "decode",
    "encode",
    "encode_safetensors_to_wcodec",
    "explain",
    "get_backend",
    "load_file",
    "open",
    "save",
    "save_file",
    "set_backend",
    "use_backend",
]

#: Names by the module that they are in: as above, for type checkers.
_NAMES: Final[dict[str, str]] = {
    "backends": "Backend available_backends get_backend set_backend use_backend",
    "codec": "decode encode",
    "codec.decoder": "Decoder",
    "codec.encoder": "Encoder",
    "codec.urls": "Url",
    "directories.content": "content_sha256",
    "directories.encoding": "encode_safetensors_to_wcodec",
    "errors": "BackendUnavailable DecodeError EncodeError MissingPackage WcodecError",
    "deltas.applying": "Applied apply",
    "deltas.chain": "Chain",
    "files.file": "File open",
    "files.loading": "load_file",
    "files.saving": "save save_file",
    "inspect.explain": "explain",
    "planner.options": "EncodeOptions",
}
_MODULE_OF: Final = {name: module for module, names in _NAMES.items() for name in names.split()}
#: modules that can be used without being imported by name
_ROOMS: Final = ("backends", "codec", "errors", "files", "inspect", "planner", "reference")


if not TYPE_CHECKING:  # so that a type checker sees names that are not there

    def __getattr__(name: str) -> Any:
        """What is used for the first time: imported now, and from then on found without this."""
        if name not in _ROOMS and name not in _MODULE_OF:
            raise AttributeError(f"module 'wcodec' has no attribute {name!r}")
        from wcodec.processes import loading

        with loading:  # not by half, if the process forks meanwhile
            if name in _ROOMS:
                return import_module(f"wcodec.{name}")
            found = globals()[name] = getattr(import_module(f"wcodec.{_MODULE_OF[name]}"), name)
        return found


def __dir__() -> list[str]:
    """All names, imported or not."""
    return sorted({*globals(), *_MODULE_OF, *_ROOMS})
