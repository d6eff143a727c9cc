"""From the options to a loaded model that embeds, ranks or classifies, and how texts are given to it.

Promises: what a checkpoint is for decides how it is read: `swift sft`'s own as their training did, those of
sentence-transformers as their modules.json says, language models by their last token, other encoders by the mean of
their tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from swift.config.commands import EngineConfig
from swift.engines import setup
from swift.engines.pooling import Pooler, causal_vectors, classes, sentence_vectors
from swift.engines.texts import ChatTexts, PlainTexts, Texts
from swift.models.sentence import Layout, has_layout, load_dense, read_layout

MOST_LENGTH = 10**6  # tokenizers without a limit name a number far above this


@dataclass(frozen=True)
class Judge:
    """`labels` are the classes' names, () when they have none."""

    pooler: Pooler
    texts: Texts
    tasks: frozenset[str]
    labels: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def load_judge(config: EngineConfig, source: setup.Source) -> Judge:
    """Imports torch and loads the weights. `config.head` says what the model is for."""
    from swift.models.adapters import load_adapters
    from swift.models.device import pick_device
    from swift.models.gguf import as_directory
    from swift.models.heads import head_of, with_head
    from swift.models.load import load_model, load_tokenizer
    from swift.models.plan import plan_loading

    head = config.head
    plan = plan_loading(config.model, config.quantization, source.files, pick_device(), training=False)
    directory = as_directory(source.files.path)
    tokenizer = load_tokenizer(
        directory, trust_remote_code=plan.trust_remote_code, new_special_tokens=plan.new_special_tokens
    )
    layout = read_layout(directory) if head.task_type == "embedding" and has_layout(directory) else None
    bare = head.task_type == "embedding" and (layout is not None or not _writes_text(source))
    texts = _texts(config, source, tokenizer, layout)
    for line in plan.lines():
        setup.log.info(line)
    plan = with_head(plan, head_of(head, fresh=bool(source.adapters)))
    model = load_model(directory, replace(plan, bare=bare))
    if source.adapters:
        model = load_adapters(model, source.adapters)
    read, note = _reading(config, layout, bare, next(model.parameters()).device)
    pooler = Pooler(model.eval(), tokenizer.pad_token_id or 0, read)
    return Judge(pooler, texts, tasks_of(config), head.label_names, (note,))


def tasks_of(config: EngineConfig) -> frozenset[str]:
    """What is asked of the model by the API. A classifier with one output is a ranker, whoever trained it."""
    head = config.head
    if head.task_type == "embedding":
        return frozenset({"embed"})
    if head.task_type == "reranker":
        return frozenset({"score"})
    one = head.num_labels == 1 and head.problem_type != "regression"
    return frozenset({"classify", "score"} if one else {"classify"})


def _writes_text(source: setup.Source) -> bool:
    from transformers.models.auto import modeling_auto as mappings

    kind = source.files.config.get("model_type")
    masked = any("MaskedLM" in str(name) for name in source.files.config.get("architectures") or ())
    return source.files.is_gguf or (not masked and kind in mappings.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def _reading(config: EngineConfig, layout: Layout | None, bare: bool, device: Any) -> tuple[Callable[..., Any], str]:
    head = config.head
    if head.task_type == "reranker" or "score" in tasks_of(config):
        return classes("multi_label_classification"), "a score is the sigmoid of the model's output"
    if head.task_type == "seq_cls":
        return classes(head.problem_type), "classes by the model's own head"
    if layout is not None:
        dense = [load_dense(folder, device) for folder in layout.dense]
        how = "as sentence-transformers: " + " and ".join(layout.modes) + (", of length 1" if layout.normalize else "")
        return sentence_vectors(layout.modes, dense, layout.normalize), how
    if bare:
        return sentence_vectors(("mean",)), "the mean of the tokens' last hidden states, of length 1"
    return causal_vectors, "the last token's last hidden state, of length 1"


def _texts(config: EngineConfig, source: setup.Source, tokenizer: Any, layout: Layout | None) -> Texts:
    limit = _limit(config, source, tokenizer, layout)
    if layout is not None:
        return PlainTexts(tokenizer, limit, layout.prompt, layout.lower)
    if not _by_template(config, tokenizer):
        return PlainTexts(tokenizer, limit)
    from swift.data.prepare import make_encoder, use_template

    config, template = use_template(config, source.model, tokenizer)
    return ChatTexts(make_encoder(config.chat, tokenizer, template, source.model.directory), tokenizer, limit)


def _by_template(config: EngineConfig, tokenizer: Any) -> bool:
    """Whether texts are read as `swift sft` writes them: for what it trained, where the options say so, and for
    classifiers that have a chat template.
    """
    if config.origins.get("task_type", ("",))[0] == "args.json":
        return True
    if any(config.given(name) for name in ("template", "use_chat_template", "system")):
        return True
    return config.head.task_type != "embedding" and tokenizer.chat_template is not None


def _limit(config: EngineConfig, source: setup.Source, tokenizer: Any, layout: Layout | None) -> int | None:
    """How long a text may be: the least of what the model, its tokenizer and its layout say."""
    known = [config.model.max_model_len or source.files.context, layout.max_length if layout else None]
    if tokenizer.model_max_length < MOST_LENGTH and not config.model.max_model_len:
        known.append(int(tokenizer.model_max_length))
    return min((length for length in known if length is not None), default=None)
