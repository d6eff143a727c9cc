"""`swift export`: merges adapters into their base, makes a quantized model (swift.export.quantize), encodes data sets
ahead.

Promises: options and files are checked before torch is imported; --dry_run writes and loads nothing.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swift.config.commands import ExportConfig
from swift.config.record import explain, inherit, save_args
from swift.errors import UsageError
from swift.hub import AdapterFiles, LocalModel, ModelFiles, check_adapter_files, check_model_files, resolve_options
from swift.runs import announce, file_digest
from swift.say import speak

if TYPE_CHECKING:
    from swift.export.proof import Prompt

log = logging.getLogger("swift")

MOST_PROMPTS, MOST_TOKENS = 8, 256
PROMPTS = (
    "Who are you?",
    "你是谁？",
    "What is the capital of France? Answer in one sentence.",
    "请用一句话介绍北京。",
    "Write a Python function that adds two numbers.",
    "把下面的句子翻译成英文：今天天气很好。",
)
# settings that are part of the merged weights and config already, or that concerned the training
ABSORBED: dict[str, Any] = {
    "adapters": (),
    "model": None,
    "model_revision": None,
    "torch_dtype": None,
    "rope_scaling": None,
    "new_special_tokens": (),
    "quant_method": None,
    "quant_bits": None,
}

ENCODED = (
    "loss_scale",
    "add_non_thinking_prefix",
    "truncation_strategy",
    "padding_side",
)  # of rows to train on


def main(config: ExportConfig) -> int:
    """Run `swift export`; 0, or an error."""
    speak(stream="stderr")
    if not config.export.push_to_hub:
        return _export(config)
    from swift.export.push import run

    return run(config, _export)


def _export(config: ExportConfig) -> int:
    if config.export.to_cached_dataset:
        from swift.export.cached import export_rows

        return export_rows(config)
    if config.export.to_peft_format:
        from swift.export.peft_format import run as to_peft

        return to_peft(config)
    if config.export.to_ollama:
        config = _for_ollama(config)
    if config.quantization.quant_method or config.given("quant_bits"):
        from swift.export.quantize import run

        return run(config, find_model)
    if config.model.model and not config.model.adapters and config.export.output_dir and not config.export.merge_lora:
        from swift.export.convert import run as convert

        return convert(config, find_model)
    if not config.model.adapters:
        fix = "swift export --adapters CHECKPOINT --merge_lora true"
        if config.export.merge_lora:
            raise UsageError("no adapter to merge", where="--merge_lora", fix=fix)
        raise UsageError(
            "nothing to export", fix=f"{fix}; or --model M --output_dir D for a plain copy (--torch_dtype)"
        )
    if not config.export.merge_lora:
        raise UsageError("what to do with the adapter is not said", where="--adapters", fix="add --merge_lora true")
    return _merge(config)


def _for_ollama(config: ExportConfig) -> ExportConfig:
    """Ollama reads GGUF."""
    method = config.quantization.quant_method
    if method not in (None, "gguf"):
        raise UsageError(
            f"Ollama doesn't read {method}", where="--to_ollama", fix="--quant_method gguf, or leave it out"
        )
    return config.decide("what Ollama reads", quant_method="gguf")


def find_model(config: ExportConfig) -> tuple[ExportConfig, LocalModel, tuple[Path, ...]]:
    """The base model and the adapters that the options name, with what the training's args.json says."""
    from swift.models.adapters import find_checkpoint

    adapters = tuple(find_checkpoint(path) for path in config.model.adapters)
    files = [check_adapter_files(path) for path in adapters]
    if config.model.load_args and adapters:
        own = {name: config.value(name) for name in ("quant_method", "quant_bits", "max_length")}
        config = inherit(config, adapters[0]).replace(own, "command line")
    elif config.model.load_args and config.model.model and (Path(config.model.model) / "args.json").is_file():
        own = {name: config.value(name) for name in ("quant_method", "quant_bits", "max_length", "model")}
        config = inherit(config, Path(config.model.model)).replace(own, "command line")
    config, model = find_base(config, files)
    return config, model, adapters


def _refuse_idle(config: ExportConfig) -> None:
    """UsageError for an option of rows that a merge would do nothing with: it compares answers on whole rows."""
    compared = bool(config.data.dataset or config.data.val_dataset)
    for name, spec in config.specs().items():
        if not config.given(name):
            continue
        if spec.section == "encoding" or (spec.section == "chat" and name in ENCODED):
            raise UsageError("a merge encodes no rows to train on", where=f"--{name}", fix=f"leave out --{name}")
        if spec.section == "data" and not compared:
            why = "a merge reads rows only to compare on them, and none are named"
            raise UsageError(why, where=f"--{name}", fix=f"leave out --{name}, or name rows with --dataset")


def _merge(config: ExportConfig) -> int:
    _refuse_idle(config)
    config, model, adapters = find_model(config)
    base_files = check_model_files(model.path)
    _check_base(config, base_files)
    if config.export.output_dir is None:
        config = config.decide("the adapter's directory and -merged", output_dir=f"{adapters[0]}-merged")
    config = _decide_dtype(config, base_files)
    from swift.export.merge import check_output

    check_output(Path(config.export.output_dir).expanduser(), config.export.exist_ok, (model.path, *adapters))
    if config.common.dry_run:
        print(explain(config))
        return 0
    merge_adapters(config, model, base_files, adapters)
    return 0


def _check_base(config: ExportConfig, files: ModelFiles) -> None:
    """The exact result is that of the full-precision base; FP8 releases often have no other."""
    source = (files.quantization or {}).get("quant_method")
    if source in ("awq", "gptq", "compressed-tensors", "bitsandbytes") and not config.export.merge_quantized_base:
        fix = "the unquantized base with --model, or --merge_quantized_base true: onto what these weights stand for"
        raise UsageError(f"the base is quantized ({source})", where=f"--model {files.path}", fix=fix)


def find_base(config: ExportConfig, files: list[AdapterFiles]) -> tuple[ExportConfig, LocalModel]:
    """The base: --model, else the one in the run's args.json, else the one that the adapter names."""
    if config.model.model is None and not files:
        raise UsageError("no model", fix="--model DIRECTORY_OR_NAME, or --adapters CHECKPOINT")
    if config.model.model is None:
        named = files[0].base_model
        if named is None:
            raise UsageError(
                "the adapter doesn't name its base model", where=str(files[0].path), fix="name it with --model"
            )
        config = config.decide(f"the base named in {files[0].path}", model=named)
    return config, resolve_options(config.model)


def _decide_dtype(config: ExportConfig, files: ModelFiles) -> ExportConfig:
    """The merged weights keep the base's dtype. A dtype that the training ran in is no reason to change it."""
    if config.export.merge_dtype is not None:
        return config
    if config.given("torch_dtype") and config.model.torch_dtype:
        return config.decide("--torch_dtype", merge_dtype=config.model.torch_dtype)
    dtype, why = base_dtype(files)
    return config.decide(why, merge_dtype=dtype)


def base_dtype(files: ModelFiles) -> tuple[str, str]:
    """(dtype, why): of most of the stored values; bfloat16 for those that aren't stored as plain floats."""
    names = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
    if not files.dtypes:
        stated = str(files.config.get("dtype") or files.config.get("torch_dtype") or "float32").removeprefix("torch.")
        return (stated if stated in names.values() else "bfloat16"), "the base's config.json"
    most = max(files.dtypes, key=lambda name: files.dtypes[name])
    if files.is_gguf or most not in names:
        return "bfloat16", f"the base's weights are {most}, dequantized"
    return names[most], "the base's weights are"


def merge_adapters(config: ExportConfig, model: LocalModel, files: ModelFiles, adapters: tuple[Path, ...]) -> Path:
    """Merge as the config says and return the directory."""
    from swift.export.bases import beside, find_bases
    from swift.export.merge import MergeJob, merge, refuse_quantized
    from swift.models.gguf import as_directory
    from swift.models.heads import head_of, is_classifier, with_head
    from swift.models.load import load_tokenizer

    chosen, other = find_bases(config, as_directory(model.path), files, adapters)
    base, dtype = chosen.path, str(config.export.merge_dtype)
    files = check_model_files(base)
    head = head_of(config.head, fresh=not is_classifier(files.config))
    plan = with_head(chosen.plan(config, dtype), head)
    refuse_quantized(plan)
    # a tokenizer was saved with the adapter when training added tokens to it
    home = adapters[-1] if (adapters[-1] / "tokenizer_config.json").is_file() else base
    tokenizer = load_tokenizer(
        home, trust_remote_code=plan.trust_remote_code, new_special_tokens=plan.new_special_tokens
    )
    prompts, template = find_prompts(config, model, files, adapters, tokenizer)
    out = Path(config.export.output_dir).expanduser()
    shard, exist_ok = config.export.max_shard_size, config.export.exist_ok
    job = MergeJob(base, files, adapters, out, plan, prompts, shard, exist_ok, beside(config, other, dtype, head))
    for path in adapters:
        log.info("merging %s into %s", path, base)
    if "quantization" in plan.reasons:
        log.info(plan.reasons["quantization"])

    def complete(directory: Path, proof) -> None:
        if home != base or plan.new_special_tokens or template is not None:
            tokenizer.chat_template = template or tokenizer.chat_template
            tokenizer.save_pretrained(directory)
        (directory / "README.md").write_text(model_card(config, adapters, proof), encoding="utf-8")
        kept = config.replace(
            {name: value for name, value in ABSORBED.items() if name in config.specs()}, "decided", "merged"
        )
        made_of = {
            "model": str(model.path),
            "base": str(base),
            "adapters": [str(path) for path in adapters],
            "sha256": [file_digest(check_adapter_files(path).weight_file) for path in adapters],
        }
        save_args(directory, "export", kept, merged_from=made_of)

    merge(job, complete)
    log.info("merged model: %s", out)
    announce(model=out)
    return out


def find_prompts(
    config: ExportConfig, model: LocalModel, files: ModelFiles, adapters: tuple[Path, ...], tokenizer: Any
) -> tuple[list[Prompt], str | None]:
    """(the prompts to compare on, Jinja text of a template other than the tokenizer's own).

    Rows of --dataset or --val_dataset if given, else those that the training held out, else a few built-in questions,
    one about a picture of noise where the model sees: what was learned may be in its eyes alone.
    """
    from swift.data.processors import find_processing
    from swift.engines.setup import PlainEncoder
    from swift.export.proof import Prompt

    chat = config.chat
    if not chat.use_chat_template:
        encoder: Any = PlainEncoder(tokenizer, chat.system, chat.response_prefix)
        asked = [encoder.prompt([{"role": "user", "content": text}]) for text in PROMPTS]
        return [Prompt(ids[:MOST_TOKENS]) for ids in asked], None
    from swift.export.calibration import chat_encoder

    processing = find_processing(files.path, config.media, config.model.trust_remote_code)
    encoder, template = chat_encoder(config, model, files, tokenizer, processing)
    rows = _rows(config, adapters)
    if rows:
        prompts = [_prompt_of(encoder, row) for row in rows[:MOST_PROMPTS]]
        log.info("comparing on %d rows", len(prompts))
    else:
        asked = [encoder.prompt([{"role": "user", "content": text}]) for text in PROMPTS]
        prompts = [Prompt(ids[:MOST_TOKENS]) for ids in asked]
        if processing is not None and "image" in processing.kinds:
            prompts += _about_noise(encoder)
    return prompts, template


def _prompt_of(encoder: Any, row: Mapping[str, Any]) -> Prompt:
    """A row cut to MOST_TOKENS; one with media whole, with their tensors."""
    from swift.export.proof import Prompt

    encoded = encoder.encode(row)
    if encoded.media is None:
        return Prompt(encoded.input_ids[:MOST_TOKENS])
    media = dict(encoded.media)
    made = encoder.processor.run(media.pop("text"), media)
    return Prompt(made.ids, made.tensors)


def _about_noise(encoder: Any) -> list[Prompt]:
    """A question about a picture, none where the template or the processor takes it in another way."""
    import numpy as np
    from PIL import Image

    from swift.errors import DataError, TemplateError
    from swift.export.proof import Prompt

    noise = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    parts = [{"type": "image", "image": Image.fromarray(noise)}, {"type": "text", "text": "What is this?"}]
    try:
        ids, tensors = encoder.prompt_inputs([{"role": "user", "content": parts}])
    except (DataError, TemplateError) as error:
        log.info("the merge is compared on text alone: %s", error.what)
        return []
    return [Prompt(ids, tensors or {})]


def _rows(config: ExportConfig, adapters: tuple[Path, ...]) -> list[Mapping[str, Any]]:
    if config.data.dataset or config.data.val_dataset:
        from swift.data.load import load_rows

        loaded = load_rows(config.data, use_hf=config.model.use_hf, hub_token=config.model.hub_token)
        return [*loaded.val, *loaded.train][:MOST_PROMPTS]
    held_out = adapters[0].parent / "val_dataset.jsonl"
    if not held_out.is_file():
        return []
    with open(held_out, encoding="utf-8") as file:
        return [json.loads(line) for line, _ in zip(file, range(MOST_PROMPTS), strict=False)]


def model_card(config: ExportConfig, adapters: tuple[Path, ...], proof: Any) -> str:
    """README.md of the merged model: what it is made of and the figures of its proof."""
    base = config.model.model
    head = f"---\nlibrary_name: transformers\nbase_model: {base}\ntags:\n- merged\n---\n\n"
    made = f"LoRA adapters ({', '.join(path.name for path in adapters)}) merged into `{base}`.\n\n"
    return f"{head}# {Path(config.export.output_dir).name}\n\n{made}```\n" + "\n".join(proof.lines()) + "\n```\n"
