"""Decides how a model will be loaded, before anything is: dtype, quantization, attention, placement, and whether it
fits.

Promises: reads no weights; every decision carries its reason; what can't work here is an error now. The memory
figure is that of the weights alone (activations, optimizer state and the KV cache come on top).
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from swift.config.model import ON_LOAD, ModelOptions, QuantizationOptions
from swift.config.packages import bnb_switched_off
from swift.errors import MissingPackage, ModelFileError, NotBuiltYet, ResourceError, UsageError
from swift.hub.files import ModelFiles
from swift.hub.known import unknown_architecture
from swift.hub.resources import human_bytes
from swift.models import placement
from swift.models.device import Device
from swift.models.heads import Head

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# quantization method of a checkpoint -> (module to import, what to pip install)
PACKAGES = {
    "bitsandbytes": ("bitsandbytes", "bitsandbytes"),
    "awq": ("gptqmodel", "gptqmodel optimum"),
    "gptq": ("gptqmodel", "gptqmodel optimum"),
    "compressed-tensors": ("compressed_tensors", "compressed-tensors"),
    "torchao": ("torchao", "torchao"),
    "quanto": ("optimum.quanto", "optimum-quanto"),
    "auto-round": ("auto_round", "auto-round"),
    "aqlm": ("aqlm", "aqlm"),
    "eetq": ("eetq", "eetq"),
    "vptq": ("vptq", "vptq"),
    "higgs": ("flute", "flute-kernel"),
}
UNPACKED = ("awq", "gptq")  # swift.models.unpacked reads these
INSTEAD = {
    "quanto": "--quant_method torchao --quant_bits 8 (optimum-quanto has had no release since March 2025)",
    "hqq": "--quant_method bnb --quant_bits 4 (transformers 5 has no HQQ)",
    "eetq": "--quant_method bnb --quant_bits 8, the same precision (EETQ needs its CUDA kernels)",
    "awq": "swift export --quant_method awq (or gptq, gguf) writes a quantized model to load; "
    "--quant_method bnb, torchao or fp8 quantize while loading",
}
ROPE_TYPES = ("linear", "dynamic", "yarn")


@dataclass(frozen=True)
class LoadPlan:
    """How `load_model` will load. `reasons` maps a decision (dtype, attn_impl, quantization, device_map) to its why.

    `dequantize`: the checkpoint's quantized weights become plain ones of `dtype`, with `unpack` by our own reader.
    `quant`: quantize while loading, with `pack_experts` fused experts too (bitsandbytes has no file format for those).
    `needed_bytes`: the weights in memory; `available_bytes`: what the device had when planning (None: unknown).
    `head`: load as a classifier with this head in place of the vocabulary's. `bare`: load without any head.
    """

    device: Device
    dtype: str
    training: bool
    source_quant: str | None = None
    dequantize: bool = False
    unpack: bool = False
    quant: QuantizationOptions | None = None
    pack_experts: bool = True
    attn_impl: str | None = None
    experts_impl: str | None = None
    device_map: str | dict[str, Any] | None = None
    max_memory: dict[int | str, Any] | None = None
    rope_scaling: dict[str, Any] | None = None
    max_model_len: int | None = None
    new_special_tokens: tuple[str, ...] = ()
    trust_remote_code: bool = False
    strict: bool = True
    head: Head | None = None
    bare: bool = False
    needed_bytes: int = 0
    available_bytes: int | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)

    @property
    def quantized(self) -> bool:
        """True when the loaded model's weights are quantized."""
        return self.quant is not None or (self.source_quant is not None and not self.dequantize)

    def lines(self) -> list[str]:
        """The decisions as sentences for the user, the important ones only."""
        where = self.device if isinstance(self.device_map, (dict, type(None))) else f"device_map {self.device_map}"
        said = [f"loading in {self.dtype} on {where}: {self.reasons['dtype']}"]
        for decision in ("quantization", "attn_impl", "rope_scaling", "device_map"):
            if decision in self.reasons:
                said.append(self.reasons[decision])
        return said


def plan_loading(
    model: ModelOptions,
    quant: QuantizationOptions,
    files: ModelFiles,
    device: Device,
    training: bool,
) -> LoadPlan:
    """The plan for loading `files`; UsageError, MissingPackage, ModelFileError or ResourceError for what can't work."""
    _check_remote_code(model, files)
    reasons: dict[str, str] = {}
    source = _source_method(files)
    dequantize = _dequantize(source, files, device, training, reasons)
    on_load = _quantize_on_load(quant, source, reasons)
    dtype = _dtype(model, files, device, on_load, source is not None and not dequantize, reasons)
    needed = weight_bytes(files, dtype, dequantize, on_load)
    device_map = placement.device_map(model, device, needed, reasons)
    plan = LoadPlan(
        device=device,
        dtype=dtype,
        training=training,
        source_quant=source,
        dequantize=dequantize,
        unpack=dequantize and source in UNPACKED,
        quant=on_load,
        attn_impl=_attention(model, device, dtype, reasons),
        experts_impl=model.experts_impl,
        device_map=device_map,
        max_memory=placement.max_memory(model.max_memory),
        new_special_tokens=model.new_special_tokens,
        trust_remote_code=model.trust_remote_code,
        strict=model.check_model,
        needed_bytes=needed,
        available_bytes=device.free_memory(),
        reasons=reasons,
        **_context(model, files, reasons),
    )
    _check_fits(plan)
    return plan


def _check_remote_code(model: ModelOptions, files: ModelFiles) -> None:
    """A checkpoint whose class comes as Python code beside the weights needs the user's consent."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = files.config.get("model_type")
    if files.is_gguf or kind in CONFIG_MAPPING or model.trust_remote_code:
        return
    if files.config.get("auto_map"):
        what = f"this model brings its own Python code (model_type {kind}; transformers has no such class)"
        raise ModelFileError(
            what, where=str(files.path), fix="read that code, then pass --trust_remote_code true to run it"
        )
    raise unknown_architecture(files.path, kind)


def _source_method(files: ModelFiles) -> str | None:
    """The checkpoint's own quantization method; GGUF files are converted before they are loaded, so they have none."""
    if files.is_gguf or not files.quantization:
        return None
    method = files.quantization.get("quant_method")
    if method is None:
        for bits in ("load_in_8bit", "load_in_4bit"):
            if files.quantization.get(bits):
                return "bitsandbytes"
    return method


def _dequantize(source: str | None, files: ModelFiles, device: Device, training: bool, reasons: dict[str, str]) -> bool:
    """Whether the checkpoint's quantized weights are turned into plain ones; says why."""
    if source is None:
        return False
    if source == "hqq":
        raise NotBuiltYet(
            "HQQ checkpoints can't be loaded by this version of transformers", fix="use the unquantized model"
        )
    if source in UNPACKED:
        return _unpack(source, files, device, training, reasons)
    if source in PACKAGES:
        _require(*PACKAGES[source], f"loading a checkpoint quantized with {source}")
    if source in ("fp8", "mxfp4"):
        able = device.fp8 if source == "fp8" else device.kind == "cuda"
        if able and not training:
            reasons["quantization"] = f"the {source} weights stay as they are: {device.name} computes with them"
            return False
        why = "for training" if training else f"{device.name} can't compute in {source}"
        reasons["quantization"] = f"the checkpoint's {source} weights are dequantized: {why}"
        return True
    if source == "compressed-tensors":
        dense = device.kind == "cpu" or _is_asymmetric(files.quantization or {})
        why = "decompressed to plain weights" if dense else "kept as they are"
        reasons["quantization"] = f"the checkpoint's compressed-tensors weights are {why}"
        return dense
    reasons["quantization"] = f"the checkpoint is quantized with {source}; its weights stay so"
    return False


def _unpack(source: str, files: ModelFiles, device: Device, training: bool, reasons: dict[str, str]) -> bool:
    """Whether an AWQ or GPTQ checkpoint is unpacked: always, but for inference on a GPU that has kernels for it."""
    if training:
        why = "for training"
    elif device.kind != "cuda":
        why = f"{device.name} computes faster with plain weights"
    elif expert_count(files):
        why = "transformers can't load its experts packed"
    elif importlib.util.find_spec("gptqmodel") is None:
        why = "the kernels of gptqmodel are not installed"
    else:
        reasons["quantization"] = f"the checkpoint's {source} weights stay packed: gptqmodel has kernels for them"
        return False
    reasons["quantization"] = f"the checkpoint's {source} weights are unpacked to plain ones: {why}"
    return True


def expert_count(files: ModelFiles) -> int:
    """Experts of a mixture-of-experts model, 0 in a dense one."""
    text = files.config.get("text_config") or files.config
    return text.get("num_experts") or text.get("num_local_experts") or text.get("n_routed_experts") or 0


def _is_asymmetric(quantization: Mapping[str, Any]) -> bool:
    groups = quantization.get("config_groups") or {}
    return any((group.get("weights") or {}).get("symmetric") is False for group in groups.values())


def _quantize_on_load(
    quant: QuantizationOptions, source: str | None, reasons: dict[str, str]
) -> QuantizationOptions | None:
    """The quantization asked for while loading, with its bits."""
    method = quant.quant_method
    if method is None:
        if quant.quant_bits is not None:
            raise UsageError("--quant_bits needs --quant_method", fix="--quant_method bnb (or --load_in_8bit true)")
        return None
    if method not in ON_LOAD:
        what = f"{method} can't quantize a model while it is loaded"
        raise UsageError(what, where="--quant_method", fix=INSTEAD.get(method, INSTEAD["awq"]))
    if quant.quant_bits is None and len(ON_LOAD[method]) == 1:
        quant = replace(quant, quant_bits=ON_LOAD[method][0])
    if quant.quant_bits not in ON_LOAD[method]:
        have = " or ".join(f"--quant_bits {bits}" for bits in ON_LOAD[method])
        what = f"{method} has no {quant.quant_bits} bits" if quant.quant_bits else f"{method} needs the number of bits"
        raise UsageError(what, where="--quant_bits", fix=have)
    if source is not None:
        raise UsageError(
            f"the checkpoint is already quantized ({source}): {method} can't quantize it again",
            where=f"--quant_method {method}",
            fix="leave out --load_in_8bit / --load_in_4bit / --quant_method",
        )
    if method == "bnb" and bnb_switched_off():
        raise UsageError(
            "bitsandbytes is switched off by USE_BNB=0",
            where="--quant_method bnb",
            fix="--quant_method fp8, which needs no package; or unset USE_BNB",
        )
    package = {"bnb": "bitsandbytes", "torchao": "torchao"}.get(method)
    if package:
        _require(*PACKAGES[package], f"--quant_method {method}")
    by = {"bnb": " with bitsandbytes", "torchao": " with torchao"}
    reasons["quantization"] = f"quantizing the linear layers to {quant.quant_bits} bits{by.get(method, ' (FP8)')}"
    return quant


def _require(module: str, packages: str, purpose: str) -> None:
    try:
        found = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the parent package of a dotted name
        found = False
    if not found:
        raise MissingPackage(f"{purpose} needs {packages.split()[0]}", fix=f"pip install {packages}")


def _dtype(
    model: ModelOptions,
    files: ModelFiles,
    device: Device,
    on_load: QuantizationOptions | None,
    stays_quantized: bool,
    reasons: dict[str, str],
) -> str:
    if model.torch_dtype:
        reasons["dtype"] = "--torch_dtype says so"
        return model.torch_dtype
    if stays_quantized and device.kind != "cpu":
        reasons["dtype"] = "the dtype of the checkpoint's unquantized parts"
        stated = str(files.config.get("dtype") or files.config.get("torch_dtype") or "bfloat16").removeprefix("torch.")
        return stated if stated in ITEM_BYTES else "bfloat16"
    dtype, why = device.dtype, device.dtype_why
    free = device.free_memory()
    if dtype == "float32" and free is not None:
        wide, narrow = (weight_bytes(files, d, not stays_quantized, on_load) for d in ("float32", "bfloat16"))
        if wide > free * 0.9 and narrow < wide:
            dtype, why = "bfloat16", f"float32 would need {human_bytes(wide)}, {human_bytes(free)} are available"
    reasons["dtype"] = why
    return dtype


def weight_bytes(files: ModelFiles, dtype: str, dequantize: bool, on_load: QuantizationOptions | None = None) -> int:
    """Bytes of the loaded weights. With bnb the embeddings (input, and output unless tied) stay in `dtype`."""
    if not files.parameters:  # .bin files are not opened: their size is the best there is
        return files.total_bytes
    if files.quantization and not dequantize and not files.is_gguf:
        return files.total_bytes
    full = true_parameters(files) * ITEM_BYTES[dtype]
    if on_load is None:
        return full
    kept = min(unquantized_parameters(files), files.parameters)
    return kept * ITEM_BYTES[dtype] + (files.parameters - kept) * on_load.quant_bits // 8


def true_parameters(files: ModelFiles) -> int:
    """How many weights the checkpoint holds: a 32-bit word of AWQ or GPTQ packs several."""
    quantization = files.quantization or {}
    if quantization.get("quant_method") not in UNPACKED:
        return files.parameters
    packed = files.dtypes.get("I32", 0)
    return files.parameters - packed + packed * 32 // int(quantization.get("bits") or quantization.get("w_bit") or 4)


def unquantized_parameters(files: ModelFiles) -> int:
    """How many parameters stay as they are when the others are quantized while loading: the embeddings and the head."""
    text = files.config.get("text_config") or files.config
    hidden = text.get("hidden_size") or 0
    return (text.get("vocab_size") or 0) * hidden * (1 if text.get("tie_word_embeddings") else 2)


def _attention(model: ModelOptions, device: Device, dtype: str, reasons: dict[str, str]) -> str | None:
    wanted = model.attn_impl
    if wanted not in ("flash_attention_2", "flash_attention_3"):
        return wanted
    package = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}[wanted]
    if device.kind not in ("cuda", "npu"):
        lack = f"{wanted} needs a GPU"
    elif dtype == "float32":
        lack = f"{wanted} has no float32"
    elif device.kind == "cuda" and importlib.util.find_spec(package) is None:
        lack = f"{wanted} needs `pip install flash-attn --no-build-isolation`"
    else:
        return wanted
    reasons["attn_impl"] = f"attention: sdpa (torch's own kernels, the same result), because {lack}"
    return "sdpa"


def _context(model: ModelOptions, files: ModelFiles, reasons: dict[str, str]) -> dict[str, Any]:
    """rope_scaling and max_model_len as load_model needs them."""
    text = files.config.get("text_config") or files.config
    native = text.get("max_position_embeddings")
    limit = model.max_model_len
    if model.rope_scaling is None:
        if limit and native and limit > native:
            raise UsageError(
                f"the model has {native} positions, {limit} were asked for",
                where="--max_model_len",
                fix="add --rope_scaling yarn to stretch them, or ask for less",
            )
        return {"max_model_len": limit}
    scaling = _rope_scaling(model.rope_scaling, limit, native)
    if limit is None and native and "factor" in scaling:
        limit = int(native * scaling["factor"])
    reasons["rope_scaling"] = (
        f"positions stretched ({scaling['rope_type']}, factor {scaling.get('factor')}): {native} -> {limit}"
    )
    return {"rope_scaling": scaling, "max_model_len": limit}


def _rope_scaling(text: str, limit: int | None, native: int | None) -> dict[str, Any]:
    where = "--rope_scaling"
    if text.strip().startswith("{"):
        try:
            scaling = json.loads(text)
        except ValueError as error:
            raise UsageError(f"not valid JSON: {error}", where=where) from error
        if "type" in scaling:
            scaling["rope_type"] = scaling.pop("type")
        if "rope_type" not in scaling:
            raise UsageError("the JSON lacks rope_type", where=where, fix="""'{"rope_type": "yarn", "factor": 4.0}'""")
        return scaling
    if text not in ROPE_TYPES:
        raise UsageError(f"unknown type {text!r}", where=where, fix=f"{', '.join(ROPE_TYPES)}, or a JSON object")
    if not limit or not native:
        raise UsageError(
            "how far to stretch is not said", where=where, fix="add --max_model_len, or give JSON with a factor"
        )
    scaling = {"rope_type": text, "factor": float(max(-(-limit // native), 1))}
    return scaling if text == "linear" else {**scaling, "original_max_position_embeddings": native}


def _check_fits(plan: LoadPlan) -> None:
    """ResourceError when the weights alone are larger than the free memory of the one device they go to."""
    free = plan.available_bytes
    if free is None or plan.needed_bytes <= free or isinstance(plan.device_map, str):
        return
    if isinstance(plan.device_map, dict) and set(plan.device_map.values()) != {plan.device.torch_name}:
        return
    fixes = []
    if plan.dtype == "float32":
        fixes.append("--torch_dtype bfloat16")
    if plan.quant is None and plan.source_quant is None:
        fixes.append("--load_in_4bit true")
    raise ResourceError(
        f"the weights need {human_bytes(plan.needed_bytes)} in {plan.dtype}, {human_bytes(free)} are free",
        where="--model",
        fix=" or ".join([*fixes, "a smaller model"]),
    )
