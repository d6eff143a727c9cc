"""Adapters on disk: which checkpoint a run directory means, whether it fits the model, loading one or several.

Promises: an adapter for another base is an error that names both; every tensor of the file lands in the model and
every tensor of the adapter comes from the file.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from swift import runs
from swift.errors import CheckpointError, ModelFileError, UsageError
from swift.hub.files import ADAPTER_CONFIG, AdapterFiles, check_adapter_files, refuse_own_format
from swift.hub.safetensors_header import read_header
from swift.models.heads import classifies, keep_float32
from swift.models.imports import libraries_only_where_used
from swift.models.quiet import quiet

log = logging.getLogger("swift")

_CHECKPOINT = re.compile(r"checkpoint-(\d+)$")
_LORA_KEY = re.compile(r"^base_model\.model\.(?P<module>.+)\.lora_(?P<part>A|B|embedding_A|embedding_B)(\.weight)?$")


def find_checkpoint(path: Path | str) -> Path:
    """The adapter directory that `path` means: itself, or the newest complete checkpoint of a run directory.

    Says which one was taken, and which were passed over because a write was interrupted.
    """
    path = Path(path)
    if not path.is_dir() or (path / ADAPTER_CONFIG).is_file() or (path / "config.json").is_file():
        _refuse_incomplete(path)
        if (path / ADAPTER_CONFIG).is_file():
            refuse_own_format(path)
        return path
    numbered = sorted(_checkpoints(path), reverse=True)
    if not numbered:
        newest = max(
            (p.parent for p in path.glob("*/checkpoint-*") if p.is_dir()), default=None, key=lambda p: p.stat().st_mtime
        )
        if newest is None:
            check_adapter_files(path)  # says what is missing
            return path
        log.info("%s: the newest run there is %s", path, newest.name)
        return find_checkpoint(newest)
    has_manifest = any((folder / runs.MANIFEST).is_file() for _, folder in numbered)
    for _, folder in numbered:
        problems = runs.verify_dir(folder, hashes=False) if has_manifest else _file_problems(folder)
        if not problems:
            log.info("%s: taking %s%s", path, folder.name, _best_note(folder))
            return folder
        log.warning("%s is not complete (%s): passed over", folder, problems[0])
    raise CheckpointError("no complete checkpoint in this run", where=str(path), fix="train again, or name another run")


def _checkpoints(run: Path) -> list[tuple[int, Path]]:
    return [(int(m[1]), p) for p in run.iterdir() if p.is_dir() and (m := _CHECKPOINT.fullmatch(p.name))]


def _file_problems(folder: Path) -> list[str]:
    try:
        check_adapter_files(folder)
    except ModelFileError as error:
        return [error.what]
    return []


def _refuse_incomplete(path: Path) -> None:
    """A checkpoint of ours whose manifest doesn't verify was cut while it was written or changed afterwards."""
    if (path / runs.MANIFEST).is_file():
        problems = runs.verify_dir(path, hashes=False)
        if problems:
            fix = f"use another checkpoint of {path.parent}"
            raise CheckpointError(f"the checkpoint is not complete: {problems[0]}", where=str(path), fix=fix)


def _best_note(folder: Path) -> str:
    state = folder / "trainer_state.json"
    if not state.is_file():
        return ""
    best = json.loads(state.read_text(encoding="utf-8")).get("best_model_checkpoint")
    if not best or Path(best).name == folder.name:
        return ", the newest and the best so far" if best else ", the newest"
    return f", the newest; {Path(best).name} had the best evaluation"


def load_adapter(model, path: Path | str, *, name: str = "default", trainable: bool = False):
    """`model` with the adapter in directory `path` (a checkpoint or a run); a PeftModel.

    `trainable` continues its training. CheckpointError when it was made for another base.
    """
    from peft import PeftConfig, PeftModel, get_peft_model

    path = find_checkpoint(path)
    files = check_adapter_files(path)
    check_fits(model, files)
    config = PeftConfig.from_pretrained(path, local_files_only=True)
    config.inference_mode = not trainable
    with quiet(), libraries_only_where_used():
        if isinstance(model, PeftModel):
            result = model.load_adapter(path, name, is_trainable=trainable, local_files_only=True)
        else:
            config.base_model_name_or_path = model.config.name_or_path or config.base_model_name_or_path
            model = get_peft_model(model, config, adapter_name=name)
            result = model.load_adapter(path, name, is_trainable=trainable, local_files_only=True)
    wrong = [*result.missing_keys, *result.unexpected_keys]
    if not place_by_name(model, files.weight_file, name) and wrong:
        what = f"the adapter doesn't fit this model: no counterpart for {wrong[0]} ({len(wrong)} in all)"
        raise CheckpointError(what, where=str(path), fix=_base_fix(files))
    if not trainable:
        model.eval()
    elif classifies(model.get_base_model()):
        keep_float32(model)
    return model


@torch.no_grad()
def place_by_name(model, tensors: Path | Mapping[str, torch.Tensor], name: str = "default") -> bool:
    """Put an adapter's tensors where their names say, if they are exactly those of the model's adapter `name`.

    peft renames an adapter's tensors as transformers renames the base's when it reads them from the hub's layout. That
    is wrong for adapters written with the names of the modules, and goes unnoticed where a rename hits one of those.
    """
    from peft import get_peft_model_state_dict
    from peft.utils import load_peft_weights

    given = load_peft_weights(str(tensors.parent), device="cpu") if isinstance(tensors, Path) else tensors
    own = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    if given.keys() != own.keys() or any(given[key].shape != own[key].shape for key in own):
        return False
    for key, tensor in own.items():
        tensor.copy_(given[key])
    return True


def load_adapters(model, paths: Sequence[Path | str], *, trainable: bool = False):
    """The model with all these adapters active at once (their changes add up); a single one is called `default`."""
    if trainable and len(paths) > 1:
        raise UsageError("only one adapter can be trained on", where="--adapters", fix="merge the others first")
    names = ["default"] if len(paths) == 1 else [f"adapter_{i}" for i in range(len(paths))]
    for name, path in zip(names, paths, strict=True):
        model = load_adapter(model, path, name=name, trainable=trainable)
    if len(names) > 1:
        model.base_model.set_adapter(names)
        log.info("%d adapters are active at once; their changes add up", len(names))
    return model


def merge_in_memory(model):
    """The plain model with its active adapters added to its weights (`swift infer --merge_lora`); nothing is
    written.
    """
    if getattr(model.get_base_model(), "is_quantized", False):
        what = "the base is quantized: merging would round the adapter away"
        raise UsageError(what, where="--merge_lora", fix="leave out --merge_lora, or the quantization")
    with quiet():
        return model.merge_and_unload()


def check_fits(model, files: AdapterFiles) -> None:
    """CheckpointError unless the adapter's matrices have the sizes of this model's layers."""
    from peft import PeftModel

    if files.weight_file.suffix != ".safetensors":
        return
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    modules = dict(inner.named_modules())
    for key, tensor in read_header(files.weight_file).items():
        match = _LORA_KEY.match(key)
        if not match or ".experts" in match["module"]:  # experts are converted by peft: it checks them
            continue
        module = modules.get(match["module"])
        if module is None:
            raise _other_base(model, files, f"it has no layer {match['module']}")
        wanted = _expected_size(modules.get(f"{match['module']}.base_layer", module), match["part"])
        given = tensor.shape[0] if match["part"] == "B" else tensor.shape[-1]
        if wanted is not None and given != wanted:
            raise _other_base(model, files, f"{match['module']} has size {wanted}, the adapter's {given}")


def _expected_size(layer: torch.nn.Module, part: str) -> int | None:
    """The size that a LoRA matrix shares with its layer: A's second, B's first dimension."""
    if isinstance(layer, torch.nn.Linear):
        return layer.in_features if part == "A" else layer.out_features if part == "B" else None
    if isinstance(layer, torch.nn.Embedding) and part == "embedding_A":
        return layer.num_embeddings
    return None


def _other_base(model, files: AdapterFiles, detail: str) -> CheckpointError:
    base = files.base_model or "not named"
    what = f"this adapter is for another base ({base}), not for {model.config.name_or_path}: {detail}"
    return CheckpointError(what, where=str(files.path), fix=_base_fix(files))


def _base_fix(files: AdapterFiles) -> str:
    return (
        f"leave out --model, or pass --model {files.base_model}"
        if files.base_model
        else "pass its own base with --model"
    )
