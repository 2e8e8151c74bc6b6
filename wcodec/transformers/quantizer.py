"""`WCodecHfQuantizer`: how ``from_pretrained`` and ``save_pretrained`` of transformers come to
compressed weights.

transformers knows one interface for weights that are stored in another way, its quantizers.
Nothing is quantized here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch
from transformers import PreTrainedModel
from transformers.core_model_loading import WeightConverter, build_glob_alternation
from transformers.modeling_utils import unwrap_model
from transformers.quantizers.auto import (
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer

from wcodec.directories import hub_header as hub
from wcodec.directories.configs import METHOD
from wcodec.planner.options import EncodeOptions
from wcodec.torch.resident.compressed import CompressedTensor
from wcodec.torch.resident.holding import hold
from wcodec.torch.resident.models import decompress_model
from wcodec.torch.resident.operands import INSTEAD
from wcodec.transformers.config import WCodecConfig
from wcodec.transformers.conversion import (
    LOADER_ASKS,
    AnyConverter,
    CodedConverter,
    Coding,
    Decode,
    Stream,
    is_stream,
)
from wcodec.transformers.weight_files import stored_dtype

PARALLEL: Final = ("tp_size", "fsdp_size", "pp_size", "ep_size", "dp_replicate_size")


def register() -> None:
    """Tell transformers of the quantization method ``wcodec``, unless it knows."""
    if METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantization_config(METHOD)(WCodecConfig)
        register_quantizer(METHOD)(WCodecHfQuantizer)


class WCodecHfQuantizer(HfQuantizer):
    """Decodes weights while a model is loaded, or has it hold them compressed,
    and encodes them when it is saved.

    Parameters
    ----------
    quantization_config
        See `WCodecConfig`.
    """

    requires_calibration = False
    _loaded: Any = None  #: the model, while it is loaded
    #: `Coding.casts` of it
    _casts: dict[str, torch.dtype] = {}  # noqa: RUF012 (it is replaced, not changed)
    quantization_config: WCodecConfig

    # ---- before loading
    def validate_environment(self, *_: Any, device_map: Any = None, **__: Any) -> None:
        """Check what is known before anything is loaded.

        Raises
        ------
        DecodeError
            ``unsupported_version``, ``bad_value``: of the format version that ``config.json``
            names.
        ValueError
            Weights that are to stay compressed would be moved to and fro between memories.
        """
        hub.parse_version(self.quantization_config.format_version)
        places = set(map(str, device_map.values())) if isinstance(device_map, dict) else set()
        config = self.quantization_config
        if config.stays_compressed and ("disk" in places or ("cpu" in places and len(places) > 1)):
            raise ValueError(
                f"mode {config.mode!r} holds all weights compressed on the devices that compute;"
                f" this device_map puts some on others ({', '.join(sorted(places))}): {INSTEAD}"
            )

    def update_attn_implementation(self, config: Any) -> Any:
        """The first sight of the model's configuration:
        what ``dtype="auto"`` is, where it has no dtype.
        """
        if self.pre_quantized and getattr(config, "dtype", None) is None:
            path = config.name_or_path
            config.dtype = self.quantization_config.dtype or (
                stored_dtype(Path(path), named=getattr(config, "transformers_weights", None))
                if path and Path(path).is_dir()
                else None
            )
        return config

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Refuse to take the dtype of streams for that of the model."""
        if isinstance(dtype, torch.dtype) and not dtype.is_floating_point:
            raise ValueError(
                "config.json does not say which dtype the model has: give from_pretrained one, "
                "such as dtype=torch.bfloat16"
            )
        return dtype

    def update_tp_plan(self, config: Any) -> Any:
        """As `update_attn_implementation`, which transformers does not call before 5.20."""
        return self.update_attn_implementation(config)

    def preprocess_model(self, model: Any, dtype: torch.dtype | None = None, **more: Any) -> None:
        """What is known of the model before its weights are loaded."""
        self._loaded = model
        self._casts = {} if LOADER_ASKS or not self.pre_quantized else _casts(model, dtype)
        super().preprocess_model(model, dtype=dtype, **more)

    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> Any:
        plan = getattr(model.config, "distributed_config", None)
        sizes = {name: getattr(plan, name, None) or 1 for name in PARALLEL}
        if any(n > 1 for n in sizes.values()):
            given = ", ".join(f"{name}={n}" for name, n in sizes.items() if n > 1)
            raise ValueError(
                f"weights in hub form cannot be cut into the parts of several processes ({given}): "
                "bring the model into the wcodec form (wcodec encode), and load that by "
                "WCodecModel.from_pretrained, or the tensors of a part by wcodec.torch.load_shard"
            )
        return model

    def update_weight_conversions(
        self, weight_conversions: list[Any], model: Any = None
    ) -> list[Any]:
        """Has all tensors of the checkpoint go through converters that decode.
        Transformers gives the model from 5.21 on.
        """
        config = self.quantization_config
        weights = _weights(self._loaded if model is None else model)
        coding = Coding(
            self.pre_quantized, config.mode, config.operand, weights, config.preset, self._casts
        )
        coded = [
            CodedConverter.around(c, coding) if isinstance(c, WeightConverter) else c
            for c in weight_conversions
        ]
        return [AnyConverter(coding, [c for c in coded if isinstance(c, CodedConverter)]), *coded]

    # ---- while loading
    def get_new_dtype(
        self, converter: Any, param: Any, dtype: torch.dtype | None
    ) -> torch.dtype | None:
        """What to cast a tensor of the checkpoint to as it is read:
        what may be a stream is cast when it is decoded.
        """
        if not _may_be_stream(param):
            return dtype
        if isinstance(converter, CodedConverter):
            converter.cast = dtype
        else:
            converter.quantization_operation = Decode(dtype)
        return None

    # ---- the loaded model
    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        self._loaded = None
        _decode_left(model, self._casts)
        if not self.quantization_config.stays_compressed:  # an ordinary model
            model.is_quantized = False
            for module in _models(model):
                if hasattr(module.config, "_is_quantized"):
                    del module.config._is_quantized
        return model

    def dequantize(self, model: Any, dtype: torch.dtype | None = None) -> Any:
        """Make it a plain model: its weights are decoded, and saved as they are.

        Parameters
        ----------
        dtype
            To cast weights to; ``None`` to leave them as they are.
        """
        self._dequantize(model)
        self.remove_quantization_config(model)
        return model if dtype is None else model.to(dtype)

    def _dequantize(self, model: Any, dtype: torch.dtype | None = None) -> Any:
        held = [name for name, p in model.named_parameters() if isinstance(p, CompressedTensor)]
        decompress_model(model)
        for parameter in map(model.get_parameter, held):
            parameter.requires_grad_(parameter.is_floating_point())  # as the loader makes them
        return model

    def remove_quantization_config(self, model: Any) -> None:
        """Take away what makes ``save_pretrained`` encode."""
        conversions = getattr(model, "_weight_conversions", None)
        # transformers 5.24 takes them away, for other quantizers cannot revert them
        super().remove_quantization_config(model)
        if conversions is not None:
            plain = [c.plain() if isinstance(c, CodedConverter) else c for c in conversions]
            model._weight_conversions = [c for c in plain if c is not None]
        for module in _models(model):
            for name in ("quantization_config", "_is_quantized"):
                if hasattr(module.config, name):
                    delattr(module.config, name)

    def get_state_dict_and_metadata(
        self, model: Any
    ) -> tuple[dict[str, torch.Tensor] | None, dict[str, str]]:
        """What to save, ``None`` for all that the model holds, and the metadata of the files."""
        metadata = {hub.VERSION_KEY: hub.VERSION_TEXT}
        state = unwrap_model(model).state_dict()
        if not any(isinstance(t, CompressedTensor) for t in state.values()):
            return None, metadata
        options = EncodeOptions(preset=self.quantization_config.preset)
        return {
            k: Stream.of(t, options) if isinstance(t, CompressedTensor) else t
            for k, t in state.items()
        }, metadata

    # ---- what it can do
    def is_serializable(self) -> bool:
        """``save_pretrained`` writes hub form."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Adapters can be trained; in mode "decoded" so can the model."""
        return True

    @property
    def is_compileable(self) -> bool:
        """Whether ``generate`` may compile the model by itself."""
        return not self.quantization_config.stays_compressed


def _models(model: Any) -> list[Any]:
    return [m for m in model.modules() if isinstance(m, PreTrainedModel)]


def _weights(model: torch.nn.Module) -> frozenset[str]:
    """Names of the parameters that can be held compressed. Those of recurrent layers cannot:
    kernels read their memory.
    """
    return frozenset(
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if not isinstance(module, torch.nn.RNNBase)
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False)
        if parameter.dim() >= 2
    )


def _casts(model: Any, dtype: torch.dtype | None) -> dict[str, torch.dtype]:
    """What each tensor of a model is loaded as:
    as its parameter is, but for modules that are kept in float32.
    """
    plan: dict[str, torch.dtype] = model._get_dtype_plan(dtype)
    kept, pattern_of, _ = build_glob_alternation(list(plan))
    casts = dict[str, torch.dtype]()
    for name, t in model.state_dict().items():
        found = kept.search(name) if plan else None
        casts[name] = t.dtype if found is None else plan[pattern_of[found.lastgroup]]
    return casts


def _decode_left(model: Any, casts: dict[str, torch.dtype]) -> None:
    """Decode the streams that the loader has brought to no converter,
    where it does not ask about them (`LOADER_ASKS`).
    """
    decoded = dict[int, torch.nn.Parameter]()  # tied weights are one parameter
    for name, p in list(model.named_parameters(remove_duplicate=False)):
        if (
            casts.get(name, torch.uint8) != torch.uint8
            and not isinstance(p, CompressedTensor)
            and is_stream(p)
        ):
            if id(p) not in decoded:
                dense = hold(p.detach(), name).dense().to(casts[name])
                decoded[id(p)] = torch.nn.Parameter(dense, requires_grad=dense.is_floating_point())
            module, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(module), leaf, decoded[id(p)])


def _may_be_stream(param: Any) -> bool:
    """Of a tensor, or of the slice of one in a file."""
    if isinstance(param, torch.Tensor):
        return bool(param.dtype == torch.uint8 and param.dim() == 1)
    return bool(param.get_dtype() == "U8" and len(param.get_shape()) == 1)
