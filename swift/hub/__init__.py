"""The hub: from the name of a model or data set to files on this machine that are there and whole."""

from swift.hub.datasets import LocalData, resolve_dataset
from swift.hub.files import AdapterFiles, ModelFiles, check_adapter_files, check_model_files
from swift.hub.models import LocalModel, resolve_model, resolve_options
from swift.hub.resources import available_memory, check_disk, check_memory, human_bytes

__all__ = [
    "AdapterFiles",
    "LocalData",
    "LocalModel",
    "ModelFiles",
    "available_memory",
    "check_adapter_files",
    "check_disk",
    "check_memory",
    "check_model_files",
    "human_bytes",
    "resolve_dataset",
    "resolve_model",
    "resolve_options",
]
