"""`WCodecModel`: a model from a directory in any form."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import transformers
from transformers import AutoConfig
from transformers.dynamic_module_utils import (
    get_class_from_dynamic_module,
    resolve_trust_remote_code,
)
from transformers.models.auto.auto_factory import _get_model_class

from wcodec.codec.urls import Place, place_of, url_of
from wcodec.directories.configs import METHOD
from wcodec.directories.tasks import copy_file
from wcodec.errors import DecodeError
from wcodec.files.shard_index import CODED
from wcodec.reference.planes import OPAQUE
from wcodec.torch.loading.reader import Reader
from wcodec.transformers.config import WCodecConfig
from wcodec.transformers.weight_files import StreamSlice, stored_dtype, weight_files


class WCodecModel:
    """Makes models of transformers from directories in wcodec form, in hub form, or plain.
    See `from_pretrained`.
    """

    def __init__(self) -> None:
        raise TypeError(
            "WCodecModel is no class of models: call WCodecModel.from_pretrained(directory)"
        )

    @classmethod
    def from_pretrained(
        cls,
        directory: str | os.PathLike[str],
        *model_args: Any,
        auto_class: Any = None,
        mode: str = "decoded",
        operand: str | None = None,
        preset: str = "default",
        **kwargs: Any,
    ) -> Any:
        """Load a model. It is the one that transformers makes of the plain directory, bit for bit.

        Parameters
        ----------
        directory
            With ``config.json`` and weights in any form: ``.wcodec`` files, safetensors files in
            hub form, or plain ones. A name that is no directory goes to transformers as it is. At a
            URL, ``.wcodec`` files are read where they are; all else is copied for a while.
        auto_class
            Such as ``AutoModelForCausalLM``, to pick the class of the model; by default it is the
            one that ``config.json`` names.
        mode, operand, preset
            See `WCodecConfig`.
        **kwargs
            As of ``from_pretrained`` of transformers.

        Returns
        -------
        A model of a class of transformers. ``save_pretrained`` writes hub form if any of it was
        compressed, or stays so.

        Raises
        ------
        DecodeError
            The weights are damaged, or of a format version that this wcodec does not know.
        EncodeError
            ``bad_option``, as of `WCodecConfig`.
        ValueError
            The class of the model cannot be told.
        """
        with _at_hand(directory) as (local, place):
            out = cls._load(local, place, model_args, auto_class, mode, operand, preset, kwargs)
        if local is not place:
            model = out[0] if isinstance(out, tuple) else out
            model.config.name_or_path = model.name_or_path = str(place)
        return out

    @classmethod
    def _load(
        cls,
        directory: Any,
        place: Any,
        model_args: Any,
        auto_class: Any,
        mode: str,
        operand: str | None,
        preset: str,
        kwargs: dict[str, Any],
    ) -> Any:
        """As `from_pretrained`, of a directory of which `place` has the weights."""
        config, kwargs = _config(directory, kwargs)
        coding = _coding(kwargs, WCodecConfig(mode, operand, preset))
        model_class = _model_class(config, auto_class, directory, kwargs)
        of_config = kwargs.get("variant"), getattr(config, "transformers_weights", None)
        files = weight_files(_folder(place, kwargs), CODED, *of_config)
        if files:
            where = directory, place
            return _from_wcodec(model_class, where, files, config, coding, model_args, kwargs)
        if coding is not None and (_method(config) == METHOD or coding.stays_compressed):
            kwargs["quantization_config"] = coding
            if kwargs.get("variant") and getattr(config, "dtype", None) is None:
                # the quantizer is not told of the variant, which may have a dtype of its own
                config = copy.deepcopy(config)
                config.dtype = stored_dtype(_folder(directory, kwargs), *of_config)
        elif coding is not None and coding.preset != "default":
            raise ValueError(
                "preset says how to compress, but in mode 'decoded' nothing of a plain model is: "
                "give mode='resident' or 'fused'"
            )
        return model_class.from_pretrained(directory, *model_args, config=config, **kwargs)


#: How weights are held unless a caller says it.
_USUAL: Final = WCodecConfig().get_loading_attributes()
#: What says where files are.
_WHERE: Final = (
    "cache_dir",
    "force_download",
    "local_files_only",
    "proxies",
    "revision",
    "subfolder",
    "token",
    "trust_remote_code",
)


def _config(directory: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The model's configuration, and the arguments that are not meant for it."""
    config = kwargs.pop("config", None)
    if config is not None and not isinstance(config, str | os.PathLike):
        return config, kwargs
    for_model = {
        k: kwargs.pop(k) for k in ("dtype", "torch_dtype", "quantization_config") if k in kwargs
    }
    where = {k: kwargs[k] for k in _WHERE if k in kwargs}
    config, rest = AutoConfig.from_pretrained(
        config or directory, return_unused_kwargs=True, **kwargs
    )
    return config, {**where, **rest, **for_model}


def _folder(directory: Any, kwargs: dict[str, Any]) -> Place:
    below = kwargs.get("subfolder") or ""
    return place_of(directory) / below if below else place_of(directory)


@contextmanager
def _at_hand(directory: Any) -> Iterator[tuple[Any, Any]]:
    """A directory as transformers reads it, and where its weights are: of one at a URL, a copy of
    all but ``.wcodec`` files is there meanwhile.
    """
    url = url_of(directory)
    if url is None:
        yield directory, directory
        return
    with tempfile.TemporaryDirectory(prefix="wcodec-model-") as folder:
        for name, file in url.files().items():
            if not name.endswith(CODED):
                path = Path(folder, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                copy_file(file, path, overwrite=False, fsync=False)
        yield folder, url


def _method(config: Any) -> str | None:
    """The quantization method that the configuration names."""
    stored = getattr(config, "quantization_config", None)
    return (
        stored.get("quant_method")
        if isinstance(stored, dict)
        else getattr(stored, "quant_method", None)
    )


def _model_class(config: Any, auto_class: Any, directory: Any, kwargs: dict[str, Any]) -> Any:
    """The class of the model: of transformers, or of code that comes with the directory,
    if the caller trusts it.
    """
    architectures = getattr(config, "architectures", None) or []
    remote = _remote_class(config, auto_class, architectures)
    local = None
    if auto_class is not None:
        local = (
            _get_model_class(config, auto_class._model_mapping)
            if type(config) in auto_class._model_mapping
            else None
        )
    elif architectures:
        local = getattr(transformers, architectures[0], None)
    trust = resolve_trust_remote_code(
        kwargs.get("trust_remote_code"), str(directory), local is not None, remote is not None
    )
    if remote is not None and trust:
        where = {k: kwargs[k] for k in _WHERE if k in kwargs and k != "trust_remote_code"}
        return get_class_from_dynamic_module(remote, str(directory), **where)
    if local is None:
        what = (
            f"{auto_class.__name__} has no class for it"
            if auto_class is not None
            else f"config.json names {architectures or 'none'}"
        )
        raise ValueError(
            f"which class the model of {type(config).__name__} has cannot be told: {what}; "
            "give another auto_class"
        )
    return local


def _remote_class(config: Any, auto_class: Any, architectures: list[str]) -> str | None:
    """The reference to a class in code that comes with the directory, such as
    ``modeling_x.XForCausalLM``.
    """
    references: dict[str, Any] = getattr(config, "auto_map", None) or {}
    if auto_class is not None:
        return references.get(auto_class.__name__)
    named = (r for k, r in references.items() if k.startswith("AutoModel") and isinstance(r, str))
    return next((r for r in named if r.rpartition(".")[2] in architectures[:1]), None)


_PARALLEL: Final = ("distributed_config", "tp_plan", "tp_size", "device_mesh")


def _coding(kwargs: dict[str, Any], own: WCodecConfig) -> WCodecConfig | None:
    """How weights are held: as the caller says in either way; ``None`` for another quantization,
    which stays in `kwargs`.
    """
    given = kwargs.pop("quantization_config", None)
    if given is None:
        return own
    if own.get_loading_attributes() != _USUAL:
        raise ValueError(
            "mode, operand and preset stand in the quantization_config: give them there"
        )
    if isinstance(given, WCodecConfig):
        return given
    kwargs["quantization_config"] = given
    return None


def _names_in(reader: Reader, named: set[str] | None) -> list[str]:
    """Tensors of a file that are to be loaded: all, or those that the index names for it."""
    names = [k for k in reader.keys() if named is None or k in named]  # noqa: SIM118
    if named is not None and (lacking := named.difference(names)):
        raise DecodeError(
            "bad_range",
            f"the index says that the tensor is in {reader.name}, which does not hold it",
            tensor=min(lacking),
        )
    return names


def _from_wcodec(
    model_class: Any,
    where: tuple[Any, Any],
    files: dict[Place, set[str] | None],
    config: Any,
    coding: WCodecConfig | None,
    model_args: Any,
    kwargs: dict[str, Any],
) -> Any:
    """A model from ``.wcodec`` files. Their tensors go to the loader as the streams of the hub form
    would; if another quantization or another process takes a part in it, they go there decoded, of
    each as much as is asked for.
    """
    (directory, place), config = where, copy.deepcopy(config)  # a caller's, perhaps
    streams = (
        coding is not None
        and _method(config) in (None, METHOD)
        and not any(kwargs.get(k) is not None for k in _PARALLEL)
    )
    if coding is not None and streams:
        config.quantization_config = {**coding.to_dict(), **coding.get_loading_attributes()}
    elif coding is not None and coding.stays_compressed:
        raise ValueError(
            f"mode {coding.mode!r} does not go together with another quantization, nor with a model"
            " in parts"
        )
    if getattr(config, "dtype", None) is None:
        named = getattr(config, "transformers_weights", None)
        config.dtype = stored_dtype(_folder(place, kwargs), kwargs.get("variant"), named)
    with ExitStack() as open_files:
        state = dict[str, Any]()
        for path, named in files.items():
            reader = open_files.enter_context(Reader(path))
            for name in _names_in(reader, named):
                # a stream of opaque bytes would not say of which dtype they are
                as_stream = streams and reader.record(name).dtype is not OPAQUE
                state[name] = StreamSlice(reader.file, name) if as_stream else reader.slice(name)
        elsewhere = {k: v for k, v in kwargs.items() if k not in ("variant", "subfolder")}
        out = model_class.from_pretrained(
            None, *model_args, config=config, state_dict=state, **elsewhere
        )
    model = out[0] if isinstance(out, tuple) else out
    model.config.name_or_path = model.name_or_path = str(place)
    if model.can_generate() and hasattr(model, "adjust_generation_fn"):
        given = {
            k: kwargs.get(k)
            for k in ("cache_dir", "proxies", "token", "revision", "trust_remote_code")
        }
        model.adjust_generation_fn(
            kwargs.get("generation_config"), False, None, directory, **given, force_download=False,
            local_files_only=True, subfolder=kwargs.get("subfolder") or "",
        )  # fmt: skip
    return out
