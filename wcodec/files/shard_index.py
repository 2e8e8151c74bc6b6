"""Names of files of weights, and the indexes that say which tensor is in which of them.

A model may be there in variants, such as ``fp16``, under names that libraries form in their own
ways. What these are stands here, and nowhere else.

Source: https://huggingface.co/docs/safetensors, "Sharded checkpoints"; ``_add_variant`` of
transformers and diffusers, ``_fetch_index_file_legacy`` of diffusers, ``save_torch_state_dict`` of
huggingface_hub.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

from wcodec.codec.urls import Place, Url, size_of
from wcodec.errors import DecodeError, within
from wcodec.files.atomic import read_bytes

PLAIN: Final = ".safetensors"
CODED: Final = ".wcodec"
MAX_INDEX_NBYTES: Final = 1 << 28

_INDEX: Final = "{stem}{ending}.index.json"  #: of weights that are no variant
#: indexes of a variant. A stem is such as ``model`` or ``diffusion_pytorch_model``
_INDEXES: Final = (
    "{stem}{ending}.index.{variant}.json",  # transformers, diffusers
    "{stem}.{variant}{ending}.index.json",  # huggingface_hub
    "{stem}{ending}.{variant}.index.json",  # diffusers before 0.31
)
_WEIGHTS: Final = "{stem}{ending}"  #: weights in one file
#: files of a variant, whole or one of several
_VARIANTS: Final = (
    "{stem}.{variant}{ending}",  # diffusers before 0.31: model-00001-of-00002.fp16.safetensors
    "{stem}.{variant}-{number}{ending}",  # all others: model.fp16-00001-of-00002.safetensors
)
_NUMBER: Final = r"\d{5}-of-\d{5}"


class Weights(NamedTuple):
    """The files of a model's weights in a folder.

    Attributes
    ----------
    names
        Of the files, in order.
    weight_map
        Names of files by those of their tensors, as an index says; empty without one.
    """

    names: list[str]
    weight_map: dict[str, str]


# ---- names ---------------------------------------------------------------------------------------
@lru_cache(maxsize=64)
def _pattern(template: str, ending: str, variant: str | None) -> re.Pattern[str]:
    """What names of a kind look like, in any folder; of any variant, if that is ``None``."""
    return re.compile(
        template.replace(".", r"\.").format(
            stem="(?P<stem>.*)",
            ending=re.escape(ending),
            variant="[^/]+" if variant is None else re.escape(variant),
            number=_NUMBER,
        )
    )


def is_index(name: str, ending: str) -> bool:
    """Whether a name is that of an index of files with this ending, of a variant or not."""
    return any(_pattern(t, ending, None).fullmatch(name) for t in (_INDEX, *_INDEXES))


def with_ending(name: str, old: str, new: str) -> str:
    """A name of weights, or of an index of them, with its other ending; other names as they are."""
    if name.endswith(old):
        return name[: -len(old)] + new
    for template in (_INDEX, *_INDEXES):
        if found := _pattern(template, old, None).fullmatch(name):
            head = found["stem"]
            return head + name[len(head) :].replace(old, new, 1)
    return name


def file_names(stem: str, ending: str, variant: str | None) -> list[str]:
    """What the single file of a model's weights may be called, and then what their index may."""
    templates = (_WEIGHTS, _INDEX) if variant is None else (_VARIANTS[0], *_INDEXES)
    return [t.format(stem=stem, ending=ending, variant=variant) for t in templates]


def _of_variant(names: Iterable[str], templates: Iterable[str], variant: str | None) -> list[str]:
    return sorted(
        n for n in names if any(_pattern(t, CODED, variant).fullmatch(n) for t in templates)
    )


def is_variant_of(name: str, other: str) -> bool:
    """Whether a file, or an index, is called as a variant of another one."""
    stem = other
    for ending in (CODED, PLAIN):
        stem = stem.removesuffix(_INDEX.format(stem="", ending=ending)).removesuffix(ending)
    return name != other and name.startswith(f"{stem}.")


def weights_in(folder: Place, variant: str | None = None) -> Weights:
    """The ``.wcodec`` files of a folder that hold the weights of a model: those that an index
    names, or without one, all, but variants that are there beside.

    Parameters
    ----------
    variant
        Such as ``fp16``; ``None`` for the weights that are none, or for the only variant.

    Raises
    ------
    FileNotFoundError
        There are none.
    DecodeError
        ``bad_value``: two indexes, or one that is none. ``bad_name``: as `read_weight_map`.
    """
    names = names_in(folder)
    variants = _of_variant(names, _INDEXES, variant)
    if variant is None:
        files = sorted(n for n in names if n.endswith(CODED))
        indexes = _of_variant(names, [_INDEX], None)
        others = [*indexes, *files]
        indexes = [n for n in indexes if not any(is_variant_of(n, of) for of in others)]
        variants = [n for n in variants if n not in indexes]
        if not indexes:
            of_variants = {f for n in variants for f in read_weight_map(folder / n, CODED).values()}
            files = [n for n in files if n not in of_variants]
            indexes = [] if files else variants
    else:
        indexes, files = variants, _of_variant(names, _VARIANTS, variant)
    if len(indexes) > 1:
        raise DecodeError(
            "bad_value",
            f"{folder.name} holds two indexes: {indexes[0]} and {indexes[1]}; name the variant, if "
            "one of them is of one",
        )
    if indexes:
        weight_map = read_weight_map(folder / indexes[0], CODED)
        return Weights(sorted(set(weight_map.values())), weight_map)
    if not files:
        raise FileNotFoundError(_nothing_in(folder, names, variant))
    return Weights(files, {})


def names_in(folder: Place) -> list[str]:
    """Names of the files of a folder, not of those below."""
    if isinstance(folder, Url):
        return [name for name in folder.files() if "/" not in name]
    return [p.name for p in folder.iterdir()]


def _nothing_in(folder: Place, names: list[str], variant: str | None) -> str:
    what = f"{CODED} file" + ("" if variant is None else f" of the variant {variant!r}")
    to_do = (
        "; wcodec.transformers loads directories with safetensors files, in hub form or plain"
        if any(n.endswith(PLAIN) for n in names)
        else ""
    )
    return f"the folder {folder} holds no {what}{to_do}"


# ---- indexes -------------------------------------------------------------------------------------
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


def read_weight_map(index: Place, suffix: str) -> dict[str, str]:
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
        if size_of(index) > MAX_INDEX_NBYTES:
            raise DecodeError("resource_limit", f"more than {MAX_INDEX_NBYTES} bytes")
        weight_map = parse_weight_map(read_bytes(index))
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
    return Path(name).name == name not in ("", "..") and not set("/\\\0") & set(name)
