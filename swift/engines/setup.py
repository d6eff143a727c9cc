"""From the command line's options to what an engine needs: which model and adapters, which settings, and then the
engine.

Promises: what can be wrong with options and files is found before torch is imported; nothing is written.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from swift.config.commands import EngineConfig, ExportConfig
from swift.config.heads import HEADED
from swift.config.record import inherit
from swift.engines.protocol import Engine, Sampling
from swift.errors import UsageError
from swift.hub import LocalModel, ModelFiles, check_adapter_files, check_model_files, resolve_model, resolve_options
from swift.hub.files import read_json_object
from swift.models import imports
from swift.models.heads import is_classifier
from swift.models.sentence import has_layout
from swift.runs import ARGS, file_digest, read_args, verify_dir

log = logging.getLogger("swift")
C = TypeVar("C", bound=EngineConfig)


@dataclass(frozen=True)
class Source:
    """The model and adapters on disk. `home` is the directory that results belong to: the checkpoint, or None."""

    model: LocalModel
    files: ModelFiles
    adapters: tuple[Path, ...]
    home: Path | None


def find_source(config: C, adapters: Sequence[str] | None = None, load_data_args: bool = False) -> tuple[C, Source]:
    """Find the files that the options mean, and take over the settings that were saved with them (--load_args).

    `adapters` are their paths where --adapters says more than that; `load_data_args` takes over data settings too.
    """
    given = config.model.adapters if adapters is None else adapters
    for name in given:
        if not Path(name).is_dir():
            raise UsageError(
                "no such directory", where=f"--adapters {name}", fix="name a checkpoint or a run directory"
            )
    folders = tuple(_checkpoint(name) for name in given)
    inherit_from = folders[:1]
    if not folders and config.model.model and (Path(config.model.model) / ARGS).is_file():
        inherit_from = (Path(config.model.model),)
    if config.model.load_args:
        for folder in inherit_from:
            config = inherit(config, folder, load_data_args)
    home = inherit_from[0] if inherit_from else None
    adapter_files = [check_adapter_files(folder) for folder in folders]
    if config.engine.merge_lora and not folders:
        raise UsageError("no adapter to merge", where="--merge_lora", fix="add --adapters CHECKPOINT")
    if config.model.model is None and adapter_files:
        base = adapter_files[0].base_model
        if base is None:
            raise UsageError(
                "the adapter doesn't name its base model", where=str(folders[0]), fix="name it with --model"
            )
        config = config.decide(f"the base named in {folders[0]}", model=base)
    if config.model.model is None:
        raise UsageError("no model", fix="--model DIRECTORY_OR_NAME, or --adapters CHECKPOINT")
    model = resolve_options(config.model)
    files = check_model_files(model.path)
    return _saved_head(config, files), Source(model, files, folders, home)


def _saved_head(config: C, files: ModelFiles) -> C:
    """A checkpoint whose config.json is a classifier's is one, whoever saved it; sentence-transformers' are for
    vectors."""
    if config.head.task_type == "causal_lm" and has_layout(files.path) and not config.given("task_type"):
        return config.decide("modules.json is sentence-transformers'", task_type="embedding")
    if config.head.task_type != "causal_lm" or not is_classifier(files.config):
        return config
    names = {int(number): str(name) for number, name in (files.config.get("id2label") or {0: "", 1: ""}).items()}
    own = tuple(names[i] for i in sorted(names))
    head = {"task_type": "seq_cls", "num_labels": len(own), "problem_type": files.config.get("problem_type")}
    if not all(not name or name == f"LABEL_{i}" for i, name in enumerate(own)):
        head["label_names"] = own
    return config.decide("config.json names a classifier", **head)


def _checkpoint(name: str) -> Path:
    from swift.models.adapters import find_checkpoint

    return find_checkpoint(name)


def merge_on_disk(config: EngineConfig, source: Source) -> tuple[EngineConfig, Source]:
    """--merge_lora for a server, which takes a directory: the source with its adapters merged into a model of its own
    beside the checkpoint. It is made anew when it is incomplete or was made of other weights.

    The pt engine merges in memory instead (`build_pt`).
    """
    home = source.adapters[0]
    merged = home.with_name(f"{home.name}-merged")
    if merged.is_dir() and not stale(merged, source):
        log.info("taking the merged model in %s", merged)
    else:
        from swift.export.export import main as export

        if merged.is_dir():
            log.info("%s is of other weights, or incomplete: merging anew", merged)
        shared = {name: getattr(config, name) for name in ("model", "quantization", "chat")}
        values = {"merge_lora": True, "output_dir": str(merged), "exist_ok": True}
        export(ExportConfig(**shared).replace(values, "command line"))
    config = config.decide(f"{home} merged into its base", model=str(merged), adapters=())
    model = resolve_model(str(merged))
    return config, Source(model, check_model_files(model.path), (), source.home)


def stale(merged: Path, source: Source) -> bool:
    """Whether a merged model is not the one that these adapters make with this base."""
    if verify_dir(merged, hashes=False):
        return True
    made_of = (read_args(merged) or {}).get("merged_from") or {}
    digests = [file_digest(check_adapter_files(folder).weight_file) for folder in source.adapters]
    return made_of.get("sha256") != digests or made_of.get("model") != str(source.model.path)


def decide_generation(config: C, files: ModelFiles) -> C:
    """Fill the sampling options that were not given from the model's generation_config.json, so that --dry_run shows
    them.

    The model samples when it says do_sample; naming top_k, top_p or min_p asks for sampling too.
    """
    path = files.path / "generation_config.json"
    own: dict[str, Any] = read_json_object(path) if path.is_file() else {}
    options = config.generation
    filters = [name for name in ("top_k", "top_p", "min_p") if getattr(options, name) is not None]
    for name in ("top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens"):
        if getattr(options, name) is None and own.get(name) is not None:
            config = config.decide("generation_config.json", **{name: own[name]})
    if options.temperature is None:
        if own.get("do_sample"):
            config = config.decide("generation_config.json", temperature=float(own.get("temperature") or 1.0))
        elif filters:
            why = f"{' and '.join(f'--{name}' for name in filters)} given, so sampling"
            config = config.decide(why, temperature=float(own.get("temperature") or 1.0))
        else:
            config = config.decide("greedy: generation_config.json doesn't ask for sampling", temperature=0.0)
    return config


def sampling_of(config: EngineConfig) -> Sampling:
    """The request settings that the options mean."""
    options = config.generation
    return Sampling(
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        repetition_penalty=options.repetition_penalty,
        num_beams=options.num_beams,
        stop=options.stop_words,
        seed=options.seed,
        logprobs=options.logprobs or options.top_logprobs is not None,
        top_logprobs=options.top_logprobs or 0,
    )


def build_engine(
    config: EngineConfig, source: Source | None, names: Sequence[str] | None = None, patience: float = 600.0
) -> tuple[Engine, Any]:
    """The engine of --infer_backend with what renders prompts and reads replies (a ChatEncoder, or what stands for it).

    `names` are those of the adapters that requests choose from; without them the adapters are always on. `patience`:
    seconds that requests wait for a server that is away.
    """
    backend = config.engine.infer_backend
    _refuse_head(config)
    if backend == "fake":
        from swift.engines.fake import FakeEngine

        return FakeEngine(), PlainEncoder(None)
    if backend == "http":
        from swift.engines.backends import connect
        from swift.engines.wire import parse_reply

        return connect(config, patience), PlainEncoder(None, parse=parse_reply)
    assert source is not None
    if backend == "pt":
        engine, encoder = build_pt(config, source if names is None else replace(source, adapters=()))
        for name, folder in zip(names or (), source.adapters, strict=False):
            engine.load_adapter(name, folder)
        return engine, encoder
    return _build_server(config, source, names, patience)


def _refuse_head(config: EngineConfig) -> None:
    if config.head.task_type in HEADED:
        fix = "swift infer --val_dataset FILE, or --prompt TEXT"
        raise UsageError(f"this model is trained for --task_type {config.head.task_type} and writes no text", fix=fix)


def _build_server(
    config: EngineConfig, source: Source, names: Sequence[str] | None, patience: float
) -> tuple[Engine, Any]:
    from swift.engines.backends import launch_server
    from swift.models.gguf import as_directory
    from swift.models.load import load_tokenizer

    if config.engine.merge_lora:
        config, source = merge_on_disk(config, source)
    if names is None and len(source.adapters) > 1:
        fix = "--merge_lora true merges them first"
        raise UsageError("a server can't apply several adapters at once", where="--adapters", fix=fix)
    directory = as_directory(source.files.path)
    tokenizer = load_tokenizer(directory, trust_remote_code=config.model.trust_remote_code)
    encoder = build_encoder(config, source, tokenizer)
    adapters = dict(zip(names or ("adapter",), source.adapters, strict=False))
    engine = launch_server(
        config.engine.infer_backend,
        config,
        directory,
        encoder,
        adapters,
        default_adapter=next(iter(adapters), None) if names is None else None,
        patience=patience,
    )
    return engine, encoder


def load_pt(config: EngineConfig, source: Source) -> tuple[Any, Any, Any]:
    """(model with its adapters, tokenizer, ChatEncoder). Imports torch and loads the weights."""
    from swift.models.adapters import load_adapters, merge_in_memory
    from swift.models.device import pick_device
    from swift.models.gguf import as_directory
    from swift.models.load import load_model, load_tokenizer
    from swift.models.plan import plan_loading

    _refuse_head(config)
    plan = plan_loading(config.model, config.quantization, source.files, pick_device(), training=False)
    directory = as_directory(source.files.path)
    tokenizer = load_tokenizer(
        directory, trust_remote_code=plan.trust_remote_code, new_special_tokens=plan.new_special_tokens
    )
    encoder = build_encoder(config, source, tokenizer)
    for line in plan.lines():
        log.info(line)
    model = load_model(directory, plan)
    if source.adapters:
        tuned = load_adapters(model, source.adapters)
        model = merge_in_memory(tuned) if config.engine.merge_lora else tuned.get_base_model()
    return model, tokenizer, encoder


def build_pt(config: EngineConfig, source: Source) -> tuple[Engine, Any]:
    """The in-process engine with its ChatEncoder. Imports torch and loads the weights."""
    with imports.left_out(imports.unused(config, source.files)):
        from swift.engines.pt import PtEngine

    model, tokenizer, encoder = load_pt(config, source)
    engine = PtEngine(
        model,
        tokenizer,
        encoder,
        max_batch_size=config.engine.max_batch_size,
        context_length=config.model.max_model_len,
        prompt_limit=config.chat.max_length if config.given("max_length") else None,
        truncation=config.chat.truncation_strategy,
    )
    return engine, encoder


def build_encoder(config: EngineConfig, source: Source, tokenizer: Any) -> Any:
    """The ChatEncoder that the options mean, or what stands for it with --use_chat_template false."""
    from swift.chat import ChatEncoder
    from swift.chat.template import check_variables, choose_template
    from swift.data.processors import find_processing
    from swift.models.gguf import as_directory

    chat = config.chat
    if not chat.use_chat_template:
        return PlainEncoder(tokenizer, chat.system, chat.response_prefix)
    model = source.model
    family = model.entry.template if model.entry else None
    template = choose_template(chat.template, tokenizer.chat_template, family, source.files.path).text
    check_variables(chat, template or (tokenizer.get_chat_template() if tokenizer.chat_template else None))
    return ChatEncoder(
        tokenizer,
        template=template,
        system=chat.system,
        enable_thinking=chat.enable_thinking,
        preserve_thinking=chat.preserve_thinking,
        template_kwargs=chat.template_kwargs,
        response_prefix=chat.response_prefix,
        processor=find_processing(as_directory(source.files.path), config.media, config.model.trust_remote_code),
    )


class PlainEncoder:
    """Prompts without a chat template (--use_chat_template false): the messages' texts one after the other.

    `parse` reads replies where they aren't plain text.
    """

    processor = None

    def __init__(
        self,
        tokenizer: Any,
        system: str | None = None,
        response_prefix: str | None = None,
        parse: Callable[[str, Any], dict[str, Any]] | None = None,
    ):
        self.tokenizer, self.system, self.response_prefix = tokenizer, system or "", response_prefix or ""
        self._parse = parse

    def prompt(self, messages: Sequence[Mapping[str, Any]], tools: Any = None) -> list[int]:
        if tools:
            raise UsageError("tools need a chat template", where="--use_chat_template false", fix="leave it out")
        return self.tokenizer(self.prompt_text(messages))["input_ids"]

    def prompt_inputs(self, messages: Sequence[Mapping[str, Any]], tools: Any = None) -> tuple[list[int], None]:
        return self.prompt(messages, tools), None

    def prompt_text(self, messages: Sequence[Mapping[str, Any]], tools: Any = None) -> str:
        head = self.system if not any(message["role"] == "system" for message in messages) else ""
        return head + "".join(str(message["content"]) for message in messages) + self.response_prefix

    @property
    def stop_token_ids(self) -> list[int]:
        return [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids)

    def parse(self, text: str, tools: Any = None) -> dict[str, Any]:
        return {"role": "assistant", "content": text} if self._parse is None else self._parse(text, tools)
