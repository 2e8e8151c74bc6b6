"""Directories of models, in either form: encoded, decoded, verified. Spec: hub.md."""

from wcodec.directories.decoding import decode_directory, verify_directory
from wcodec.directories.encoding import encode_directory, encode_safetensors_to_wcodec

__all__ = [
    "decode_directory",
    "encode_directory",
    "encode_safetensors_to_wcodec",
    "verify_directory",
]
