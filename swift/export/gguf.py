"""GGUF files for llama.cpp, Ollama and LM Studio, written from the weights of a plain model.

Which architectures: those in ARCHITECTURES, whose files transformers reads back too, so that every export is proven by
a reader that isn't ours. Matrices get the chosen type, embeddings and head at least 8 bits, vectors stay float32.
Tensors are converted one at a time while the file is written. What isn't known here is refused before any work: an
architecture, a tokenizer, a scaling of positions, a pattern of layers that llama.cpp would not follow.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type

from swift.errors import UsageError
from swift.export.gguf_blocks import FORMS
from swift.export.gguf_tensors import MIXED, PLAIN, Entry, Packed, entries, file_type, namer, type_of
from swift.export.gguf_tokens import Vocabulary, first_ids, read_vocabulary
from swift.export.layerwise import Recipe
from swift.export.quantize import QuantJob, check_shares
from swift.models.parts import config_value

log = logging.getLogger("swift")

BLOCK = 32  # values that share a scale in every type written here


@dataclass(frozen=True)
class Architecture:
    """`name` in GGUF; `permuted`: rows of q and k are interleaved; `shifted`: norms are stored as weight + 1; `every`:
    the n-th layer looks at everything, the others at a window (0: all do); `tied`: the head is the embeddings.
    """

    name: str
    permuted: bool = False
    shifted: bool = False
    every: int = 0
    tied: bool = False


ARCHITECTURES = {
    "LlamaForCausalLM": Architecture("llama", permuted=True),
    "MistralForCausalLM": Architecture("llama", permuted=True),
    "MixtralForCausalLM": Architecture("llama", permuted=True),
    "SmolLM3ForCausalLM": Architecture("smollm3", permuted=True),
    "Qwen2ForCausalLM": Architecture("qwen2"),
    "Qwen3ForCausalLM": Architecture("qwen3"),
    "Qwen3MoeForCausalLM": Architecture("qwen3moe"),
    "Phi3ForCausalLM": Architecture("phi3"),
    "GemmaForCausalLM": Architecture("gemma", shifted=True, tied=True),
    "Gemma2ForCausalLM": Architecture("gemma2", shifted=True, every=2, tied=True),
    "Gemma3ForCausalLM": Architecture("gemma3", shifted=True, every=6, tied=True),
}


def check_source(directory: Path, config: Mapping[str, Any], adapters: Sequence[Path] = ()) -> None:
    """UsageError for a model that can't be written, from its config.json and tokenizer alone. A tokenizer that was
    saved with an adapter is the one that the merged model will have.
    """
    name = (config.get("architectures") or ["?"])[0]
    if "vision_config" in config or "audio_config" in config:
        fix = "llama.cpp's convert_hf_to_gguf.py, also with --mmproj; or --quant_method awq, gptq, bnb or fp8"
        what = f"{name} takes more than text: its encoder belongs into a second file (mmproj), which isn't written here"
        raise UsageError(what, where="--quant_method gguf", fix=fix)
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
    window = getattr(values, "sliding_window", None)
    if window and not ARCHITECTURES[name].every and window < values.max_position_embeddings:
        log.warning("llama.cpp has no sliding window for this model: answers differ behind %d tokens", window)
    homes = [path for path in adapters if (path / "tokenizer_config.json").is_file()]
    tokenizer = load_tokenizer(homes[-1] if homes else directory)
    read_vocabulary(tokenizer, max(values.vocab_size, len(tokenizer)))


def _unlike(config: Any, arch: Architecture) -> str | None:
    """What of this config llama.cpp has no setting for."""
    rope = rope_of(config)
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
    if arch.tied and not config.tie_word_embeddings:
        return "its head isn't its embeddings"
    if getattr(config, "mlp_bias", False):
        return "its feed-forward layers have biases"
    return _unlike_experts(config) or _unlike_positions(config)


def _unlike_experts(config: Any) -> str | None:
    if not getattr(config, "norm_topk_prob", True):
        return "the weights of its experts don't add up to 1 (norm_topk_prob)"
    if getattr(config, "mlp_only_layers", None) or getattr(config, "decoder_sparse_step", 1) != 1:
        return "not every layer has experts"
    return None


def _unlike_positions(config: Any) -> str | None:
    """SmolLM3: every fourth layer knows no positions."""
    given = getattr(config, "no_rope_layers", None)
    if given is not None and list(given) != [int((i + 1) % 4 != 0) for i in range(config.num_hidden_layers)]:
        return "not every fourth layer is without positions"
    return None


def head_size(config: Any) -> int:
    return config_value(config, "head_dim") or config.hidden_size // config.num_attention_heads


def rope_of(config: Any) -> dict[str, Any]:
    """The positions' parameters; those of layers that see everything where kinds of layers have their own."""
    rope = dict(config.rope_parameters)
    return {"rope_type": "default", **rope.get("full_attention", rope)}


def write(job: QuantJob, model: Any, staging: Path) -> float:
    """Write the GGUF file into `staging`; the share of the weights stored in the chosen type. Uses up `model`."""
    staging.mkdir(parents=True)
    wanted, layers = job.config.export.gguf_type, model.config.num_hidden_layers
    arch = ARCHITECTURES[type(model).__name__]
    name_of = namer(arch.name, layers)
    if job.rows.samples is None:
        state = state_of(model)
    else:
        state = calibrated(job, model, lambda name, shape: type_of(name_of(name), shape, wanted, layers))
    plan = list(entries(state, name_of, changes(model.config, arch), wanted, layers))
    factors = _rope_factors(model.config)
    if factors is not None:
        plan.append(Entry("rope_freqs.weight", (factors,), Type.F32))
    file = staging / file_name(job.config.export.output_dir, wanted)
    out = gguf.GGUFWriter(file, arch.name)
    _metadata(out, job, model)
    _tokenizer(out, job, model)
    for entry in plan:
        of = np.dtype({Type.F32: np.float32, Type.F16: np.float32, Type.BF16: np.float32}.get(entry.kind, np.uint8))
        width = {Type.F32: 4, Type.F16: 2, Type.BF16: 2}.get(entry.kind, 1)
        out.add_tensor_info(entry.name, entry.stored_shape, of, int(np.prod(entry.stored_shape)) * width, entry.kind)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_ti_data_to_file()
    for entry in plan:
        out.write_tensor_data(entry.bytes())
    out.close()
    if job.config.export.to_ollama:
        _write_modelfile(job, model, file)
    whole = wanted in [kind.name for kind in PLAIN]
    done = sum(entry.size for entry in plan if (entry.kind.name == wanted if whole else entry.in_few_bits))
    return check_shares(done, sum(entry.size for entry in plan), f"no row of its matrices is a multiple of {BLOCK}")


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


def state_of(model: Any, without: str | None = None) -> dict[str, torch.Tensor]:
    """The model's weights by their names in the checkpoint, experts one by one, tied ones once; those below `without`
    left out.
    """
    from transformers.core_model_loading import revert_weight_conversion
    from transformers.modeling_utils import remove_tied_weights_from_state_dict

    state = {n: t for n, t in model.state_dict().items() if without is None or not n.startswith(f"{without}.")}
    return revert_weight_conversion(model, remove_tied_weights_from_state_dict(state, model))


def calibrated(job: QuantJob, model: Any, kind_of: Callable[[str, tuple[int, ...]], Type]) -> dict[str, Any]:
    """`state_of(model)` with the layers' matrices scaled and rounded for the calibration rows (AWQ; with
    --quant_search GPTQ's rounding too), as Packed. Moves the layers of `model` away.
    """
    from safetensors.torch import load_file

    from swift.export.integers import layer_files, matrices_of
    from swift.export.layers import find_layers

    wanted, search = job.config.export.gguf_type, job.config.export.quant_search
    form = FORMS[MIXED[wanted][0] if wanted in MIXED else Type[wanted]]
    recipe = Recipe("gguf", form.bits, form.group, False, True, search, damping=0.1, source_inputs=not search)
    row = find_layers(model)
    inputs = matrices_of(model, row)
    shapes = {name: tuple(p.shape) for name, p in state_of(model).items() if name.startswith(f"{row.name}.")}
    kinds = {name: kind_of(name, shape) for name, shape in shapes.items()}
    fitting = {name for name, size in inputs.items() if size % BLOCK == 0}
    log.info("%s, calibrating on %d samples of %d tokens", wanted, *job.rows.samples.shape)
    files = layer_files(job, model, row, recipe, fitting, torch.float32, lambda name, shape: kinds[name])
    state: dict[str, Any] = dict(state_of(model, without=row.name))
    for file in files:
        for name, tensor in load_file(file).items():
            stem, _, part = name.rpartition(".")
            if part in Type.__members__:
                state[f"{stem}.weight"] = Packed(tensor, Type[part], shapes[f"{stem}.weight"])
            else:
                state[name] = tensor
    return state


def changes(config: Any, arch: Architecture) -> Callable[[str, Any], Any]:
    """A function that gives a weight, by its name in the checkpoint, the form that llama.cpp wants."""
    heads, kv = config.num_attention_heads, config.num_key_value_heads

    def change(name: str, tensor: Any) -> Any:
        part = re.search(r"\.(q|k)_proj\.", name)
        if arch.permuted and part:
            count = heads if part[1] == "q" else kv
            if isinstance(tensor, Packed):
                return replace(tensor, data=interleave(tensor.data, count))
            return interleave(tensor, count)
        return tensor.float() + 1 if arch.shifted and name.endswith("norm.weight") else tensor

    return change


def interleave(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """transformers turns the first half of a head against the second, llama.cpp neighbours: row i of the first half
    is followed by row i of the second.
    """
    size = rows.shape[0] // heads
    return rows.reshape(heads, 2, size // 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def _rope_factors(config: Any) -> torch.Tensor | None:
    """What llama.cpp divides the frequencies by, for Llama 3's scaling."""
    rope = rope_of(config)
    if rope["rope_type"] != "llama3":
        return None
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, device=torch.device("cpu"))
    size = head_size(config)
    plain = 1.0 / rope["rope_theta"] ** (torch.arange(0, size, 2, dtype=torch.float32) / size)
    return plain / scaled.float()


def _metadata(out: gguf.GGUFWriter, job: QuantJob, model: Any) -> None:
    config = model.config
    out.add_type("model")
    out.add_name(Path(job.config.export.output_dir).name)
    out.add_quantization_version(gguf.GGML_QUANT_VERSION)
    out.add_file_type(file_type(job.config.export.gguf_type))
    out.add_context_length(config.max_position_embeddings)
    out.add_embedding_length(config.hidden_size)
    out.add_block_count(config.num_hidden_layers)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count(config.num_attention_heads)
    out.add_head_count_kv(config.num_key_value_heads)
    out.add_key_length(head_size(config))
    out.add_value_length(head_size(config))
    out.add_rope_dimension_count(int(head_size(config) * rope_of(config).get("partial_rotary_factor", 1.0)))
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    out.add_vocab_size(config.vocab_size)
    _positions(out, config)
    _experts(out, config)
    if type(model).__name__ == "Phi3ForCausalLM":  # llama.cpp asks for both
        out.add_sliding_window(config.sliding_window or 0)
        out.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)
    if ARCHITECTURES[type(model).__name__].every:
        out.add_sliding_window(config.sliding_window)
        if getattr(config, "attn_logit_softcapping", None):
            out.add_attn_logit_softcapping(config.attn_logit_softcapping)
        if getattr(config, "final_logit_softcapping", None):
            out.add_final_logit_softcapping(config.final_logit_softcapping)


def _experts(out: gguf.GGUFWriter, config: Any) -> None:
    count = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None)
    if count:
        out.add_expert_count(count)
        out.add_expert_used_count(config.num_experts_per_tok)
    if getattr(config, "moe_intermediate_size", None):
        out.add_expert_feed_forward_length(config.moe_intermediate_size)


def _positions(out: gguf.GGUFWriter, config: Any) -> None:
    rope = rope_of(config)
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
