"""From a checked model directory and a LoadPlan to a model, a tokenizer, a processor.

Promises: reads only that directory (no network), prints nothing, and never hands out a model with a weight that
isn't the checkpoint's. GGUF files are turned into directories first (swift.models.gguf).
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from swift.compat.fp8_blocks import true_fp8_blocks
from swift.compat.no_torchvision import images_without_torchvision
from swift.errors import MissingPackage, ModelFileError, ResourceError, SwiftError, UsageError
from swift.hub.files import check_model_files
from swift.models.heads import bare_class, head_class, shape_head, without_any_head, without_head
from swift.models.packed import fused_experts
from swift.models.plan import LoadPlan
from swift.models.quantized import quantized_share
from swift.models.quantizers import after_loading, on_load_config
from swift.models.quiet import quiet

log = logging.getLogger("swift")

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
# Tensors that checkpoints carry and their classes rightly leave out: multi-token-prediction layers, old position
# buffers
SPARE_TENSORS = re.compile(
    r"(^|\.)(mtp|mtp_layers|nextn|eh_proj|enorm|hnorm|shared_head)(\.|$)|rotary_emb\.inv_freq$|masked_bias$"
)
PAD_TOKENS = ("<|endoftext|>", "<|finetune_right_pad_id|>", "<pad>", "<|pad|>", "<unk>")


def load_tokenizer(path: Path | str, *, trust_remote_code: bool = False, new_special_tokens: Iterable[str] = ()):
    """The tokenizer in directory `path`. It always has a padding token; `new_special_tokens` are added to it."""
    from transformers import AutoTokenizer

    path = Path(path)
    with quiet(), _explained(path):
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=trust_remote_code)
    if tokenizer.pad_token_id is None:
        known = tokenizer.get_vocab()
        tokenizer.pad_token = next((token for token in PAD_TOKENS if token in known), tokenizer.eos_token)
    beside = path / "chat_template.json"  # where processors kept it before there was chat_template.jinja
    if tokenizer.chat_template is None and beside.is_file():
        tokenizer.chat_template = json.loads(beside.read_text(encoding="utf-8")).get("chat_template")
    add_special_tokens(tokenizer, new_special_tokens)
    return tokenizer


def add_special_tokens(tokenizer, tokens: Iterable[str]) -> list[int]:
    """Add the tokens (a name ending in .txt is a file of tokens, one a line) and return the ids of those that were
    new.
    """
    wanted: list[str] = []
    for token in tokens:
        wanted += _tokens_of_file(Path(token)) if token.endswith(".txt") else [token]
    known = tokenizer.get_vocab()
    fresh = [token for token in dict.fromkeys(wanted) if token not in known]
    if fresh:
        tokenizer.add_tokens(fresh, special_tokens=True)
    return tokenizer.convert_tokens_to_ids(fresh)


def _tokens_of_file(path: Path) -> list[str]:
    if not path.is_file():
        raise UsageError("no such file of tokens", where=f"--new_special_tokens {path}")
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def has_processor(path: Path) -> bool:
    """Whether the model in directory `path` takes more than text."""
    return bool(processor_files(path))


def processor_files(path: Path) -> list[Path]:
    """The files of the processor in directory `path`, without those of its tokenizer."""
    return [path / name for name in PROCESSOR_FILES if (path / name).is_file()]


def load_processor(path: Path | str, *, trust_remote_code: bool = False):
    """The multimodal processor in directory `path`, or None when the model is text-only."""
    path = Path(path)
    if not has_processor(path):
        return None
    from transformers import AutoProcessor

    with quiet(), _explained(path), images_without_torchvision():
        return AutoProcessor.from_pretrained(path, local_files_only=True, trust_remote_code=trust_remote_code)


def load_config(path: Path | str, *, trust_remote_code: bool = False):
    """The transformers config in directory `path`."""
    from transformers import AutoConfig

    with quiet(), _explained(Path(path)):
        return AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=trust_remote_code)


def load_model(path: Path | str, plan: LoadPlan):
    """The model in directory `path`, loaded as planned, in eval mode.

    ModelFileError when a weight is missing, left over, or of another shape; ResourceError when memory runs out.
    """
    path = Path(path)
    config, auto = _config_and_class(path, plan)
    arguments: dict[str, Any] = {
        "config": config,
        "dtype": getattr(torch, plan.dtype),
        "trust_remote_code": plan.trust_remote_code,
        "local_files_only": True,
        "output_loading_info": True,
    }
    if plan.quant is not None:
        with quiet(), _explained(path), torch.device("meta"):
            skeleton = _model_class(auto, config, path)(config)
        arguments["quantization_config"] = on_load_config(plan, skeleton)
        if fused_experts(skeleton) and getattr(config, "_experts_implementation", None) is not None:
            arguments["experts_implementation"] = "eager"  # it asks for the experts that are needed, one by one
    for name, value in (
        ("attn_implementation", plan.attn_impl),
        ("experts_implementation", plan.experts_impl),
        ("device_map", plan.device_map),
        ("max_memory", plan.max_memory),
        ("quantization_config", _quantization_config(config, plan)),
    ):
        if value is not None:
            arguments[name] = value
    with quiet(), _explained(path), true_fp8_blocks():
        if plan.unpack:
            model, info = _load_unpacked(auto, path, plan, arguments)
        else:
            model, info = auto.from_pretrained(path, **arguments)
    if plan.head is not None and plan.head.fresh:
        info = without_head(info, model.base_model_prefix)
    if plan.bare:
        info = without_any_head(info, model)
    check_loading_info(path, info, strict=plan.strict)
    if plan.dequantize and not plan.unpack:
        forget_quantization(model)
        _unify_dtype(model, getattr(torch, plan.dtype))
        _cast_stored(model, getattr(torch, plan.dtype))
    after_loading(model, plan)
    if plan.quant is not None:
        log.info(quantized_share(model))
    if plan.new_special_tokens:
        resize_embeddings(model, load_tokenizer(path, new_special_tokens=plan.new_special_tokens))
    return model


def _config_and_class(path: Path, plan: LoadPlan):
    """(config, Auto class) of the model that the plan asks for."""
    config = load_config(path, trust_remote_code=plan.trust_remote_code)
    _apply_context(config, plan)
    keep_scale(config)
    if plan.bare:
        return config, bare_class()
    if plan.head is None:
        return config, auto_class(config, path, plan.trust_remote_code)
    auto = head_class(config, path)
    shape_head(config, plan.head, load_tokenizer(path, trust_remote_code=plan.trust_remote_code).pad_token_id)
    return config, auto


def skeleton(path: Path | str, plan: LoadPlan):
    """The planned model without a weight: its parameters are on the meta device, plain ones of a packed checkpoint
    too.
    """
    path = Path(path)
    config, auto = _config_and_class(path, plan)
    with quiet(), _explained(path), torch.device("meta"):
        model = _model_class(auto, config, path)(config)
        if plan.new_special_tokens:
            resize_embeddings(model, load_tokenizer(path, new_special_tokens=plan.new_special_tokens))
    return model


def _load_unpacked(auto, path: Path, plan: LoadPlan, arguments: dict[str, Any]):
    """A packed checkpoint as the plain model that its numbers stand for: (model, loading info)."""
    from transformers import GenerationConfig

    from swift.models.unpacked import check_packing, unpacked_state

    quantization = check_model_files(path, need_tokenizer=False).quantization or {}
    check_packing(path, quantization)
    config = arguments["config"]
    arguments.pop("trust_remote_code")
    for part in (config, getattr(config, "text_config", None)):
        if getattr(part, "quantization_config", None) is not None:
            del part.quantization_config
    files = list(check_model_files(path, need_tokenizer=False).weight_files)
    state = unpacked_state(files, quantization, getattr(torch, plan.dtype))
    model, info = _model_class(auto, config, path).from_pretrained(None, state_dict=state, **arguments)
    if (path / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(path, local_files_only=True)
    return model, info


def _model_class(auto, config, path: Path):
    """The class that `auto` would choose: the Auto classes themselves take no state dict without a name."""
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    if type(config) not in auto._model_mapping:
        return get_class_from_dynamic_module(config.auto_map[auto.__name__], str(path))
    found = auto._model_mapping[type(config)]
    classes = found if isinstance(found, (list, tuple)) else (found,)
    named = {kind.__name__: kind for kind in classes}
    return next((named[name] for name in config.architectures or () if name in named), classes[0])


def auto_class(config, path: Path, trust_remote_code: bool = False):
    """The Auto class whose mapping has this config; a class of the checkpoint's own code needs trust_remote_code.

    The name in `architectures` decides where a config is in several mappings (a composite config read as text-only
    would leave its vision weights out).
    """
    import transformers as tf
    from transformers.models.auto import modeling_auto as mappings

    names = [name for name in (config.architectures or []) if name]
    known = [
        (tf.AutoModelForCausalLM, mappings.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
        (tf.AutoModelForImageTextToText, mappings.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES),
        (tf.AutoModelForMultimodalLM, mappings.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES),
    ]
    if names and names[0] == mappings.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.get(config.model_type):
        return tf.AutoModelForSequenceClassification
    fitting = [(auto, mapping[config.model_type]) for auto, mapping in known if config.model_type in mapping]
    for auto, entry in fitting:
        if names and names[0] in ((entry,) if isinstance(entry, str) else entry):
            return auto
    if fitting:
        return fitting[0][0]
    registered = [auto for auto, _ in known if type(config) in auto._model_mapping]  # by a plugin
    if registered:
        return registered[0]
    if trust_remote_code and getattr(config, "auto_map", None):
        return tf.AutoModelForCausalLM
    what = (
        f"no model that generates text: model_type {config.model_type}, architecture {', '.join(names) or 'not named'}"
    )
    raise ModelFileError(
        what, where=str(path / "config.json"), fix="choose a causal language model or a multimodal one"
    )


def check_loading_info(path: Path, info: dict[str, Any], strict: bool = True) -> None:
    """ModelFileError unless every parameter came from the checkpoint and every tensor of it was used.

    `strict` False (--check_model false) lets left-over tensors pass, with a warning.
    """
    missing = sorted(info["missing_keys"])
    spare = sorted(key for key in info["unexpected_keys"] if not SPARE_TENSORS.search(key))
    broken = sorted(info.get("conversion_errors") or ())
    if missing or broken:
        names = missing or broken
        what = f"{len(names)} parameters are not in the checkpoint and would be random: {_some(names)}"
        if spare:
            what += f"; it has instead: {_some(spare)}"
        raise ModelFileError(
            what, where=str(path), fix="the weights don't belong to this config.json: download the model again"
        )
    if spare:
        what = f"{len(spare)} tensors of the checkpoint have no place in the model of config.json: {_some(spare)}"
        if strict:
            fix = "check config.json (number of layers, architecture); --check_model false loads without them"
            raise ModelFileError(what, where=str(path), fix=fix)
        log.warning("%s: %s", path, what)


def _some(names: list[str], most: int = 3) -> str:
    return ", ".join(map(str, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


def forget_quantization(model) -> None:
    """Make a dequantized model an ordinary one, so that saving it writes plain weights in the hub's layout.

    transformers remembers the loader's conversions and would apply their inverse when saving: FP8 bytes in a directory
    whose config says nothing of FP8. With None it takes the architecture's own (which unfuse MoE experts, say).
    """
    model._weight_conversions = None
    for config in (model.config, getattr(model.config, "text_config", None)):
        if config is not None and getattr(config, "quantization_config", None) is not None:
            del config.quantization_config
    model.is_quantized = model.is_loaded_in_4bit = model.is_loaded_in_8bit = False
    model.quantization_method = model.hf_quantizer = None


def _cast_stored(model, dtype: torch.dtype) -> None:
    """Give the weights that weren't quantized the dtype of those that were: the FP8 loader leaves them as stored."""
    for parameter in model.parameters():
        if parameter.dtype in (torch.bfloat16, torch.float16, torch.float32):
            parameter.data = parameter.data.to(dtype)


@torch.no_grad()
def _unify_dtype(model, dtype: torch.dtype) -> None:
    """Cast to `dtype` what a dequantizing load left in the checkpoint's dtype (norms, embeddings), but for the
    parameters that the architecture keeps in float32.
    """
    kept = re.compile("|".join(pattern.replace("*", ".*") for pattern in model._get_dtype_plan(dtype)) or r"(?!)")
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.dtype != dtype and not kept.search(name):
            parameter.data = parameter.data.to(dtype)


def resize_embeddings(model, tokenizer) -> None:
    """Grow the embeddings to the tokenizer's size; new rows are the mean of the old ones. Never shrinks (padding
    rows stay).
    """
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        with quiet():
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        _mean_rows(model, rows)


@torch.no_grad()
def _mean_rows(model, old_rows: int) -> None:
    """Set the rows that were added to the mean of the others: deterministic, and their logits are unremarkable."""
    layers = {id(m.weight): m for m in (model.get_input_embeddings(), model.get_output_embeddings()) if m is not None}
    for layer in layers.values():
        weight = layer.weight
        weight[old_rows:] = weight[:old_rows].float().mean(dim=0).to(weight.dtype)


def _apply_context(config, plan: LoadPlan) -> None:
    """Write rope_scaling and max_model_len into the (text) config, so that a saved model keeps them."""
    text = config.get_text_config()
    if plan.rope_scaling is not None:
        own = dict(text.rope_parameters)
        if any(isinstance(value, dict) for value in own.values()):
            own = {
                layer: {**value, **plan.rope_scaling} if layer == "full_attention" else value
                for layer, value in own.items()
            }
        else:
            own.update(plan.rope_scaling)
        text.rope_parameters = own
        if plan.max_model_len is not None:
            text.max_position_embeddings = plan.max_model_len


def keep_scale(config) -> None:
    """RWKV halves weights in place whenever it goes from training to evaluation, so that 16-bit floats don't overflow:
    weights saved then would be halved, and packed ones or those under an adapter don't survive it. With 0 it computes
    the same without that.
    """
    if getattr(config, "rescale_every", 0):
        config.rescale_every = 0


def _quantization_config(config, plan: LoadPlan):
    """What `quantization_config=` gets to dequantize the checkpoint; None when there is nothing to."""
    import transformers as tf

    if not plan.dequantize or plan.unpack:
        return None
    own = getattr(config, "quantization_config", None) or config.get_text_config().quantization_config
    own = own if isinstance(own, dict) else own.to_dict()
    kinds = {
        "fp8": tf.FineGrainedFP8Config,
        "mxfp4": tf.Mxfp4Config,
        "compressed-tensors": tf.CompressedTensorsConfig,
    }
    if plan.source_quant == "compressed-tensors":
        return tf.CompressedTensorsConfig(dequantize=True)
    return kinds[plan.source_quant].from_dict({**own, "dequantize": True})


class _explained:
    """Turns what transformers raises while loading from `path` into our errors; programming errors pass through."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind, error, trace) -> bool:
        if error is None or isinstance(error, SwiftError):
            return False
        where = str(self.path)
        text = " ".join(str(error).split())
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in text:
            fix = "--torch_dtype bfloat16, --load_in_4bit true, or a smaller model"
            raise ResourceError("memory ran out while loading the model", where=where, fix=fix) from error
        if "trust_remote_code" in text:
            what = "this model brings its own Python code"
            raise ModelFileError(
                what, where=where, fix="read that code, then pass --trust_remote_code true to run it"
            ) from error
        if isinstance(error, ImportError):
            raise MissingPackage(
                f"loading needs a package that is not installed: {_first(text)}", where=where
            ) from error
        if isinstance(error, (OSError, ValueError, RuntimeError, KeyError, json.JSONDecodeError)):
            raise ModelFileError(
                f"can't be loaded: {_first(text)}", where=where, fix="check the files, or download them again"
            ) from error
        return False


def _first(text: str, most: int = 300) -> str:
    return text if len(text) <= most else text[:most] + " ..."
