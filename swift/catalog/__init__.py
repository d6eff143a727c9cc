"""The catalog: what is known of models, data sets and chat templates, as data files, without any heavy import."""

from swift.catalog.entries import DatasetEntry, FamilyEntry, ModelEntry
from swift.catalog.store import (
    datasets,
    find_by_architecture,
    find_dataset,
    find_model,
    find_type,
    grounding,
    loss_scale_names,
    loss_scale_rules,
    model_types,
    models,
    packaged_file,
    suggest_datasets,
    suggest_models,
    template_names,
    template_text,
)
from swift.catalog.validate import validate

__all__ = [
    "DatasetEntry",
    "FamilyEntry",
    "ModelEntry",
    "datasets",
    "find_by_architecture",
    "find_dataset",
    "find_model",
    "find_type",
    "grounding",
    "loss_scale_names",
    "loss_scale_rules",
    "model_types",
    "models",
    "packaged_file",
    "suggest_datasets",
    "suggest_models",
    "template_names",
    "template_text",
    "validate",
]
