"""Texts beside the weights of a model: ``config.json`` in hub form, and indexes of shards.
Spec: hub.md.
"""

from __future__ import annotations

import json
from typing import Any, Final

from wcodec.directories.hub_header import VERSION_TEXT, parse_version
from wcodec.errors import DecodeError, EncodeError

METHOD: Final = "wcodec"  #: ``quant_method`` of a model in hub form
KEY: Final = "quantization_config"
_BEGINNING: Final = f'\n  "{KEY}": '
_KEYS: Final = {"quant_method", "format_version", "dtype"}
#: keys of a config.json that transformers wrote
_MARKS: Final = ("model_type", "architectures", "transformers_version")


# ---- config.json ---------------------------------------------------------------------------------
def read_config(raw: bytes) -> dict[str, Any]:
    """A ``config.json`` that is to get an entry.

    Raises
    ------
    EncodeError
        ``bad_source``: not a JSON object.
    """
    try:
        config = json.loads(raw.decode())
    except (ValueError, RecursionError) as e:
        raise EncodeError("bad_source", f"not JSON ({type(e).__name__})") from None
    if not isinstance(config, dict):
        raise EncodeError("bad_source", "not a JSON object")
    return config


def is_of_transformers(config: dict[str, Any]) -> bool:
    """Whether transformers loads the weights beside this ``config.json``:
    other libraries do not know the hub form.
    """
    return any(mark in config for mark in _MARKS)


def add_entry(raw: bytes, dtype: str | None = None) -> bytes:
    """Say in the text of a ``config.json`` that the weights are in hub form.
    `remove_entry` gives the same bytes back.

    Parameters
    ----------
    dtype
        Of the weights, such as ``"bfloat16"``: noted where the configuration names none, for then
        transformers takes that of the first weight, which in hub form is a stream.

    Raises
    ------
    EncodeError
        ``bad_source``: not a JSON object, or the model is quantized.
    """
    config = read_config(raw)
    if KEY in config:
        by = (
            config[KEY].get("quant_method", "an unknown method")
            if isinstance(config[KEY], dict)
            else "an unknown method"
        )
        raise EncodeError(
            "bad_source", f"the model is quantized by {by} already; use --form wcodec"
        )
    if not config:
        raise EncodeError("bad_source", "the object is empty")
    entry = {"quant_method": METHOD, "format_version": VERSION_TEXT}
    if dtype is not None and not {"dtype", "torch_dtype"} & set(config):
        entry["dtype"] = dtype
    text = raw.decode()
    at = text.index("{") + 1
    return (text[:at] + _BEGINNING + json.dumps(entry) + "," + text[at:]).encode()


def remove_entry(raw: bytes) -> bytes:
    """The text before `add_entry`; of a ``config.json`` that another program has written since, the
    object without the entry.

    Raises
    ------
    DecodeError
        ``unsupported_version``: of a later hub form. ``bad_value``: not a JSON object.
    """
    try:
        text = raw.decode()
        config = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise DecodeError("bad_value", f"not JSON ({type(e).__name__})") from None
    entry = config.get(KEY) if isinstance(config, dict) else None
    if not isinstance(entry, dict) or entry.get("quant_method") != METHOD:
        return raw
    if "format_version" in entry:
        parse_version(entry["format_version"])
    at = text.index("{") + 1
    inserted = _BEGINNING + json.dumps(entry) + ","
    if (
        set(entry) <= _KEYS
        and text.startswith(inserted, at)
        and KEY not in json.loads(text[:at] + text[at + len(inserted) :])
    ):
        return (text[:at] + text[at + len(inserted) :]).encode()
    del config[KEY]
    return (json.dumps(config, indent=2) + "\n").encode()  # as save_pretrained writes it


# ---- indexes of shards ---------------------------------------------------------------------------
def rename_shards(raw: bytes, old: bytes, new: bytes) -> bytes | None:
    """The text of an index with names of files that end in `old` ending in `new`; ``None`` if that
    could not be turned back.
    """
    renamed = raw.replace(old + b'"', new + b'"')
    return renamed if renamed.replace(new + b'"', old + b'"') == raw else None
