"""Names of files of weights, and the indexes that say which tensor is in which of them.

Source: https://huggingface.co/docs/safetensors, "Sharded checkpoints".
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from wcodec.errors import DecodeError, within

PLAIN: Final = ".safetensors"
CODED: Final = ".wcodec"
INDEX: Final = ".index.json"  #: comes after one of these
MAX_INDEX_NBYTES: Final = 1 << 28


def parse_weight_map(raw: bytes) -> dict[str, str]:
    """Names of files by those of their tensors. They are a stranger's: nothing to open.

    Raises
    ------
    DecodeError
        ``bad_value``: not an index.
    """
    try:
        weight_map = json.loads(raw.decode())["weight_map"]
    except (ValueError, RecursionError, TypeError, KeyError) as e:
        raise DecodeError("bad_value", f"not an index of shards ({type(e).__name__})") from None
    if not isinstance(weight_map, dict):
        raise DecodeError("bad_value", "not an index of shards: its weight_map is no object")
    if not all(isinstance(name, str) for name in weight_map.values()):
        raise DecodeError("bad_value", "not an index of shards: the name of a file is no text")
    return weight_map


def read_weight_map(index: Path, suffix: str) -> dict[str, str]:
    """Names of files by those of their tensors, all of them in the folder of the index.

    Parameters
    ----------
    index
        Such as ``model.wcodec.index.json``.
    suffix
        What the files have to end in.

    Raises
    ------
    DecodeError
        ``bad_value``: not an index. ``bad_name``: it names a file elsewhere, or of another kind.
        ``resource_limit``
    """
    with within(index.name):
        if index.stat().st_size > MAX_INDEX_NBYTES:
            raise DecodeError("resource_limit", f"more than {MAX_INDEX_NBYTES} bytes")
        weight_map = parse_weight_map(index.read_bytes())
        if not weight_map:
            raise DecodeError("bad_value", "not an index of shards: its weight_map is empty")
        for tensor, name in weight_map.items():
            if not is_plain_name(name) or not name.endswith(suffix):
                raise DecodeError(
                    "bad_name", f"{name!r} is no {suffix} file beside the index", tensor=tensor
                )
        return weight_map


def is_plain_name(name: str) -> bool:
    """Whether a name is that of a file in the same folder, and no path."""
    return Path(name).name == name and not set("/\\\0") & set(name)
