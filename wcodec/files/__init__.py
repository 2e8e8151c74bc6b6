"""Files and checkpoints: read, written, converted, each output whole or not there."""

from wcodec.files.checkpoint import decode_file, encode_file, verify_file
from wcodec.files.file import File, open
from wcodec.files.loading import load_file
from wcodec.files.saving import save_file

__all__ = [
    "File",
    "decode_file",
    "encode_file",
    "load_file",
    "open",
    "save_file",
    "verify_file",
]
