"""GGUF files for llama.cpp, Ollama and LM Studio, written from the weights of a plain model.

Which architectures: those in ARCHITECTURES, whose files transformers reads back too, so that every export is proven by
a reader that isn't ours. Matrices get the chosen type, embeddings and head at least 8 bits, vectors stay float32.
Tensors are converted one at a time while the file is written. What isn't known here is refused before any work: an
architecture, a tokenizer, a scaling of positions, a pattern of layers that llama.cpp would not follow.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type

from swift.errors import ExportError, UsageError
from swift.export.gguf_tokens import Vocabulary, first_ids, read_vocabulary
from swift.export.quantize import QuantJob, check_shares

BLOCK = 32  # values that share a scale in every type written here


@dataclass(frozen=True)
class Architecture:
    """`name` in GGUF; `permuted`: rows of q and k are interleaved; `shifted`: norms are stored as weight + 1; `every`:
    the n-th layer looks at everything, the others at a window (0: all do).
    """

    name: str
    permuted: bool = False
    shifted: bool = False
    every: int = 0


ARCHITECTURES = {
    "LlamaForCausalLM": Architecture("llama", permuted=True),
    "MistralForCausalLM": Architecture("llama", permuted=True),
    "Qwen2ForCausalLM": Architecture("qwen2"),
    "Qwen3ForCausalLM": Architecture("qwen3"),
    "Gemma2ForCausalLM": Architecture("gemma2", shifted=True, every=2),
    "Gemma3ForCausalLM": Architecture("gemma3", shifted=True, every=6),
}


def check_source(directory: Path, config: Mapping[str, Any], adapters: Sequence[Path] = ()) -> None:
    """UsageError for a model that can't be written, from its config.json and tokenizer alone. A tokenizer that was
    saved with an adapter is the one that the merged model will have.
    """
    name = (config.get("architectures") or ["?"])[0]
    if name not in ARCHITECTURES:
        known = ", ".join(sorted(key.removesuffix("ForCausalLM") for key in ARCHITECTURES))
        what = f"{name} can't be written as GGUF here ({known} can)"
        fix = "--quant_method awq, gptq, bnb or fp8, or llama.cpp's convert_hf_to_gguf.py"
        raise UsageError(what, where="--quant_method gguf", fix=fix)
    from swift.models.load import load_config, load_tokenizer

    values = load_config(directory)
    reason = _unlike(values, ARCHITECTURES[name])
    if reason:
        raise UsageError(f"llama.cpp would run this model differently: {reason}", where=str(directory / "config.json"))
    homes = [path for path in adapters if (path / "tokenizer_config.json").is_file()]
    tokenizer = load_tokenizer(homes[-1] if homes else directory)
    read_vocabulary(tokenizer, max(values.vocab_size, len(tokenizer)))


def _unlike(config: Any, arch: Architecture) -> str | None:
    """What of this config llama.cpp has no setting for."""
    rope = _rope(config)
    if rope["rope_type"] not in ("default", "linear", "llama3", "yarn"):
        return f"rope_type is {rope['rope_type']}"
    types = list(getattr(config, "layer_types", None) or ())
    if arch.every:
        wanted = [
            "full_attention" if (i + 1) % arch.every == 0 else "sliding_attention"
            for i in range(config.num_hidden_layers)
        ]
        if types != wanted:
            return f"not every layer but the {arch.every}th has a sliding window"
        scale = {46: config.hidden_size / config.num_attention_heads, 62: config.hidden_size / 32}
        if config.query_pre_attn_scalar != scale.get(config.num_hidden_layers, head_size(config)):
            return f"query_pre_attn_scalar is {config.query_pre_attn_scalar}, not the head's size"
    elif "sliding_attention" in types:
        return "it has layers with a sliding window"
    if getattr(config, "mlp_bias", False):
        return "its feed-forward layers have biases"
    return None


def head_size(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _rope(config: Any) -> dict[str, Any]:
    """The positions' parameters; those of layers that see everything where kinds of layers have their own."""
    rope = dict(config.rope_parameters)
    return {"rope_type": "default", **rope.get("full_attention", rope)}


def write(job: QuantJob, model: Any, staging: Path) -> float:
    """Write the GGUF file into `staging`; the share of the weights stored in the chosen type."""
    staging.mkdir(parents=True)
    kind = Type[job.config.export.gguf_type]
    arch = ARCHITECTURES[type(model).__name__]
    file = staging / file_name(job.config.export.output_dir, kind.name)
    out = gguf.GGUFWriter(file, arch.name)
    _metadata(out, job, model, kind)
    _tokenizer(out, job, model)
    plan = [(name, tensor, _type_of(name, tensor, kind)) for name, tensor in tensors_of(model, arch)]
    for name, tensor, stored in plan:
        shape = gguf.quant_shape_to_byte_shape(tensor.shape, stored) if _packed(stored) else tuple(tensor.shape)
        size = int(np.prod(shape)) * (1 if _packed(stored) else 4 if stored == Type.F32 else 2)
        out.add_tensor_info(name, shape, np.dtype(np.uint8 if _packed(stored) else np.float32), size, stored)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_ti_data_to_file()
    for name, tensor, stored in plan:
        out.write_tensor_data(_encode(name, tensor, stored))
    out.close()
    if job.config.export.to_ollama:
        _write_modelfile(job, model, file)
    done = sum(tensor.numel() for _, tensor, stored in plan if stored == kind)
    total = sum(tensor.numel() for _, tensor, _ in plan)
    return check_shares(done, total, f"no row of its matrices is a multiple of {BLOCK} values")


def _write_modelfile(job: QuantJob, model: Any, file: Path) -> None:
    from swift.export.ollama import MODELFILE, modelfile

    generation = model.generation_config.to_diff_dict()
    ends, context = end_ids(job.tokenizer, model), model.config.max_position_embeddings
    text = modelfile(file, job.tokenizer, generation, ends, context)
    (file.parent / MODELFILE).write_text(text, encoding="utf-8")


def file_name(output_dir: str, kind: str) -> str:
    return (
        f"{Path(output_dir).name}-{kind}.gguf" if kind not in Path(output_dir).name else f"{Path(output_dir).name}.gguf"
    )


def tensors_of(model: Any, arch: Architecture) -> Iterator[tuple[str, torch.Tensor]]:
    """(name in GGUF, tensor as llama.cpp wants it) of everything the model holds."""
    from transformers.core_model_loading import revert_weight_conversion
    from transformers.modeling_utils import remove_tied_weights_from_state_dict

    state = revert_weight_conversion(model, remove_tied_weights_from_state_dict(model.state_dict(), model))
    enum = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == arch.name)
    names = gguf.get_tensor_name_map(enum, model.config.num_hidden_layers)
    heads, kv = model.config.num_attention_heads, model.config.num_key_value_heads
    for name, tensor in state.items():
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise ExportError(f"GGUF has no place for the tensor {name}", where="--quant_method gguf")
        if arch.permuted and (part := re.search(r"\.(q|k)_proj\.", name)):
            tensor = interleave(tensor, heads if part[1] == "q" else kv)
        if arch.shifted and name.endswith("norm.weight"):
            tensor = tensor.float() + 1
        yield found, tensor
    factors = _rope_factors(model.config)
    if factors is not None:
        yield "rope_freqs.weight", factors


def interleave(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """transformers turns the first half of a head against the second, llama.cpp neighbours: row i of the first half
    is followed by row i of the second.
    """
    size = rows.shape[0] // heads
    return rows.reshape(heads, 2, size // 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def _rope_factors(config: Any) -> torch.Tensor | None:
    """What llama.cpp divides the frequencies by, for Llama 3's scaling."""
    rope = _rope(config)
    if rope["rope_type"] != "llama3":
        return None
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, device=torch.device("cpu"))
    size = head_size(config)
    plain = 1.0 / rope["rope_theta"] ** (torch.arange(0, size, 2, dtype=torch.float32) / size)
    return plain / scaled.float()


def _type_of(name: str, tensor: torch.Tensor, kind: Type) -> Type:
    """Vectors stay float32; embeddings and head get at least 8 bits; rows that blocks don't fit stay 16-bit."""
    if tensor.ndim == 1:
        return Type.F32
    if not _packed(kind):
        return kind
    if tensor.shape[-1] % BLOCK:
        return Type.F16
    return Type.Q8_0 if name in ("token_embd.weight", "output.weight") else kind


def _packed(kind: Type) -> bool:
    return kind not in (Type.F32, Type.F16, Type.BF16)


def _encode(name: str, tensor: torch.Tensor, kind: Type) -> np.ndarray:
    plain = tensor.detach().cpu()
    if kind == Type.BF16:
        return plain.bfloat16().contiguous().view(torch.int16).numpy()
    values = plain.float().contiguous().numpy()
    if not np.isfinite(values).all():
        raise ExportError(f"{name} holds values that are not finite", where="--model")
    if kind == Type.F16 and np.abs(values).max(initial=0) > 65504:
        raise ExportError(f"{name} holds values too large for F16", where="--gguf_type", fix="--gguf_type BF16")
    return gguf.quantize(values, kind)


def _metadata(out: gguf.GGUFWriter, job: QuantJob, model: Any, kind: Type) -> None:
    config = model.config
    out.add_type("model")
    out.add_name(Path(job.config.export.output_dir).name)
    out.add_quantization_version(gguf.GGML_QUANT_VERSION)
    plain = {Type.F32: "ALL_F32", Type.BF16: "MOSTLY_BF16"}
    out.add_file_type(gguf.LlamaFileType[plain.get(kind, f"MOSTLY_{kind.name}")])
    out.add_context_length(config.max_position_embeddings)
    out.add_embedding_length(config.hidden_size)
    out.add_block_count(config.num_hidden_layers)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count(config.num_attention_heads)
    out.add_head_count_kv(config.num_key_value_heads)
    out.add_key_length(head_size(config))
    out.add_value_length(head_size(config))
    out.add_rope_dimension_count(head_size(config))
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    out.add_vocab_size(config.vocab_size)
    _positions(out, config)
    if ARCHITECTURES[type(model).__name__].every:
        out.add_sliding_window(config.sliding_window)
        if getattr(config, "attn_logit_softcapping", None):
            out.add_attn_logit_softcapping(config.attn_logit_softcapping)
        if getattr(config, "final_logit_softcapping", None):
            out.add_final_logit_softcapping(config.final_logit_softcapping)


def _positions(out: gguf.GGUFWriter, config: Any) -> None:
    rope = _rope(config)
    out.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] in ("linear", "yarn"):
        out.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        out.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        out.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


def _tokenizer(out: gguf.GGUFWriter, job: QuantJob, model: Any) -> None:
    tokenizer, words = job.tokenizer, read_vocabulary(job.tokenizer, model.config.vocab_size)
    _words(out, words)
    ends = end_ids(tokenizer, model)
    for value, add in (
        (tokenizer.bos_token_id, out.add_bos_token_id),
        (tokenizer.pad_token_id, out.add_pad_token_id),
        (tokenizer.unk_token_id, out.add_unk_token_id),
        *zip(ends, (out.add_eos_token_id, out.add_eot_token_id, out.add_eom_token_id), strict=False),
    ):
        if value is not None:
            add(value)
    before, after = first_ids(tokenizer)
    out.add_add_bos_token(before)
    out.add_add_eos_token(after)
    if job.template:
        out.add_chat_template(job.template)


def _words(out: gguf.GGUFWriter, words: Vocabulary) -> None:
    out.add_tokenizer_model(words.model)
    out.add_tokenizer_pre(words.pre)
    out.add_token_list(words.tokens)
    out.add_token_types(words.kinds)
    if words.merges:
        out.add_token_merges(words.merges)
    if words.scores:
        out.add_token_scores(words.scores)
        out.add_add_space_prefix(words.space_prefix)


def end_ids(tokenizer: Any, model: Any) -> list[int]:
    """The ids that end a reply, the tokenizer's own first."""
    stated = model.generation_config.eos_token_id
    ends = [tokenizer.eos_token_id, *(stated if isinstance(stated, list) else [stated])]
    return list(dict.fromkeys(end for end in ends if end is not None))


def reload(job: QuantJob, directory: Path) -> Any:
    """The written file as transformers reads it, in the source's dtype. What its reader doesn't take from the file
    (Llama 3's scaling, the patterns of Gemma's layers) comes from the source's config.json.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    from swift.compat.gguf_reading import fast_gguf_reading
    from swift.models.load import check_loading_info, load_config
    from swift.models.quiet import quiet

    path = next(directory.glob("*.gguf"))
    source = load_config(job.base)
    with fast_gguf_reading(), quiet():
        config = AutoConfig.from_pretrained(directory, gguf_file=path.name)
        arch = ARCHITECTURES[json.loads((job.base / "config.json").read_text(encoding="utf-8"))["architectures"][0]]
        read = {*GGUF_CONFIG_MAPPING[arch.name].values(), "model_type", "architectures", "transformers_version"}
        for name, value in source.to_diff_dict().items():
            if name not in read and name != "rope_parameters" and name in config.to_dict():
                setattr(config, name, value)
        if _rope(source)["rope_type"] != "default" or arch.every:
            config.rope_parameters = source.rope_parameters
        model, info = AutoModelForCausalLM.from_pretrained(
            directory, gguf_file=path.name, config=config, local_files_only=True, output_loading_info=True,
            quantization_config=GgufConfig(dequantize=True), dtype=getattr(torch, job.plan.dtype),
        )  # fmt: skip
    check_loading_info(path, info)
    return model.to(job.plan.device.torch_name).eval()
