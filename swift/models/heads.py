"""Models that end in a head of their own: loading a language model as a classifier or ranker.

Promises: the classes are transformers' own ForSequenceClassification, so that what is saved loads there; a head is new
only where training begins, anywhere else a missing head is an error.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from swift.config.heads import HEADED, HeadOptions
from swift.errors import ModelFileError


@dataclass(frozen=True)
class Head:
    """`labels` outputs; `fresh`: the checkpoint may lack the head, which then begins at random."""

    labels: int
    problem: str | None = None
    names: tuple[str, ...] = ()
    fresh: bool = False


def is_classifier(config: dict[str, Any]) -> bool:
    """Whether a config.json is that of a saved classifier."""
    return any(str(name).endswith("ForSequenceClassification") for name in config.get("architectures") or ())


def classifies(model: Any) -> bool:
    """Whether a loaded model is one of transformers' classifiers."""
    return type(model).__name__.endswith("ForSequenceClassification")


def keep_float32(model: Any) -> None:
    """Give a fresh head, which trains whole beside the adapter, the adapter's float32: a small update of a bfloat16
    weight would be lost."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and ".modules_to_save." in name:
            parameter.data = parameter.data.float()


def head_of(options: HeadOptions, fresh: bool) -> Head | None:
    """The head that the options ask for, None for models that end in the vocabulary."""
    if options.task_type not in HEADED:
        return None
    ranks = options.task_type == "reranker"
    labels = 1 if ranks else options.num_labels or 2
    return Head(labels, None if ranks else options.problem_type, options.label_names, fresh)


def head_class(config: Any, path: Path) -> Any:
    """transformers' Auto class for classifiers; ModelFileError for an architecture that has none."""
    from transformers import AutoModelForSequenceClassification
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as known

    if config.model_type not in known and "AutoModelForSequenceClassification" not in (
        getattr(config, "auto_map", None) or {}
    ):
        raise ModelFileError(
            f"transformers has no classifier of architecture {config.model_type}",
            where=str(path / "config.json"),
            fix="choose a model of another architecture, e.g. llama, qwen3 or gemma3",
        )
    return AutoModelForSequenceClassification


def shape_head(config: Any, head: Head, pad_token_id: int | None) -> None:
    """Write the head into the model's config; transformers finds the last token of a text by the padding token."""
    config.num_labels = head.labels
    if head.problem is not None:
        config.problem_type = head.problem
    if head.names:
        config.id2label = dict(enumerate(head.names))
        config.label2id = {name: number for number, name in enumerate(head.names)}
    for part in {id(c): c for c in (config, config.get_text_config())}.values():
        if getattr(part, "pad_token_id", None) is None:
            part.pad_token_id = pad_token_id


def without_head(info: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Loading info without what a fresh head explains: its own weights missing, the vocabulary's head left over."""
    inside = f"{prefix}."
    return {
        **info,
        "missing_keys": [key for key in info["missing_keys"] if key.startswith(inside)],
        "unexpected_keys": [key for key in info["unexpected_keys"] if key.startswith(inside)],
    }


def bare_class() -> Any:
    """transformers' Auto class for models without any head."""
    from transformers import AutoModel

    return AutoModel


def without_any_head(info: dict[str, Any], model: Any) -> dict[str, Any]:
    """Loading info of a model without its head: what heads left over, and BERT's pooler, which no pooling here uses."""
    inside = tuple(f"{prefix}{name}." for name, _ in model.named_children() for prefix in ("", "model."))
    inside += (f"{model.base_model_prefix}.",) if model.base_model_prefix else ()
    return {
        **info,
        "missing_keys": [key for key in info["missing_keys"] if not key.startswith("pooler.")],
        "unexpected_keys": [key for key in info["unexpected_keys"] if key.startswith(inside)],
    }


def with_head(plan: Any, head: Head | None) -> Any:
    """The loading plan, for a model with this head."""
    return plan if head is None else replace(plan, head=head)
