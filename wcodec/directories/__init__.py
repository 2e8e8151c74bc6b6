"""Directories of models: weights are encoded, all else is carried along, and the whole comes back
byte for byte. Spec: hub.md.

Names of files come from the file system; an index of shards is a text that is changed, never a list
of files to open.
"""

from wcodec.directories.decoding import decode_directory, verify_directory
from wcodec.directories.encoding import encode_directory, encode_safetensors_to_wcodec

__all__ = [
    "decode_directory",
    "encode_directory",
    "encode_safetensors_to_wcodec",
    "verify_directory",
]
