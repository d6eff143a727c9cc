"""`swift sft` and `swift pt`: from a parsed config to a finished run.

Promises: what is wrong with options, files and data is found before weights are loaded, and the run directory is made
last; --dry_run writes nothing. This module decides and checks; `swift.train.run` does the work and imports torch.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from swift.config.commands import SftConfig
from swift.config.decide import decide_sft
from swift.config.model import DEQUANTIZED
from swift.config.record import explain, inherit
from swift.errors import ResourceError, UsageError
from swift.hub import LocalModel, ModelFiles, check_adapter_files, check_model_files, resolve_options
from swift.hub.names import expand
from swift.hub.resources import existing_parent
from swift.runs import disk_error
from swift.say import speak
from swift.train import elastic, resume
from swift.train.checkpoints import require_state
from swift.train.resume import ResumePoint
from swift.train.sharding import decide_sharding

# (decided config, model, tokens of each training row or None in a dry run, share of tokens that are learned) ->
# (config with what is computed twice decided, lines to show of memory and time); ResourceError for what surely can't
# fit.
Advice = Callable[[SftConfig, LocalModel, "Sequence[int] | None", float], tuple[SftConfig, list[str]]]

log = logging.getLogger("swift")


@dataclass(frozen=True)
class Setup:
    """What is known before data and weights are read. `adapter`: a checkpoint whose adapter trains on."""

    config: SftConfig
    model: LocalModel
    files: ModelFiles
    adapter: Path | None
    point: ResumePoint | None
    world_size: int


def main(config: SftConfig, advice: Advice | None = None) -> int:
    """Train; 0, or 128 + the signal's number after Ctrl-C or SIGTERM (a checkpoint was saved then)."""
    speak(config.logging.log_level)
    setup = prepare(config)
    from swift.train.run import plan, train

    setup, loading = plan(setup)
    if setup.config.common.dry_run:
        config, lines = advice(setup.config, setup.model, None, 1.0) if advice else (setup.config, [])
        print("\n".join([explain(config), *lines]))
        return 0
    return train(setup, loading, advice)


def prepare(config: SftConfig) -> Setup:
    """Everything that is decided from options and files alone."""
    config, point = _continue_from(config)
    config, adapter = _from_adapter(config)
    if config.model.model is None:
        raise UsageError("no model", fix="--model DIRECTORY_OR_NAME, see swift list-models")
    if config.supply.cached_dataset or config.supply.cached_val_dataset:
        from swift.data.cached import take_over_cached

        config = take_over_cached(config)
    if not config.data.dataset and not config.supply.cached_dataset:
        raise UsageError("no data", fix="--dataset FILE_OR_NAME ..., see swift list-datasets")
    model = resolve_options(config.model)
    files = check_model_files(model.path)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    config = decide_sft(config, _label(config.model.model), files.context, world_size)
    kept = (files.quantization or {}).get("quant_method")
    kept = None if kept in DEQUANTIZED else kept
    config = decide_sharding(config, world_size, point.checkpoint if point else None, kept)
    for name in ("output_dir", "logging_dir"):
        _check_writable(config.value(name))
    return Setup(config, model, files, adapter, point, world_size)


def _label(model: str) -> str:
    """A directory name for the runs of a model."""
    return Path(model.rstrip("/\\")).name.removesuffix(".gguf") or "model"


def _check_writable(place: str | None) -> None:
    """ResourceError for a directory that can't be made or written to; nothing is created here."""
    if place is None:
        return
    parent = existing_parent(expand(place))
    if not parent.is_dir():
        raise ResourceError("not a directory", where=str(parent), fix="choose another --output_dir")
    if not os.access(parent, os.W_OK | os.X_OK):
        read_only = bool(os.statvfs(parent).f_flag & os.ST_RDONLY)
        raise disk_error(
            OSError(30, "Read-only file system") if read_only else OSError(13, "Permission denied"), parent
        )


def _from_adapter(config: SftConfig) -> tuple[SftConfig, Path | None]:
    """--adapters: the adapter that trains on, with the model and prompts that it was trained with."""
    if not config.model.adapters:
        return config, None
    if len(config.model.adapters) > 1:
        raise UsageError("only one adapter can be trained on", where="--adapters", fix="merge the others first")
    if config.tuner.tuner_type == "full":
        raise UsageError("--adapters continues an adapter, --tuner_type full trains all weights", fix="merge it first")
    typed = [name for name, spec in config.specs().items() if spec.section == "tuner" and config.given(name)]
    typed = [name for name in typed if name not in ("tuner_type", "lorap_lr_ratio")]
    if typed:
        raise UsageError(
            f"--{typed[0]} is fixed by the adapter that trains on", where="--adapters", fix=f"leave out --{typed[0]}"
        )
    from swift.models.adapters import find_checkpoint

    path = find_checkpoint(expand(config.model.adapters[0]))
    files = check_adapter_files(path)
    if config.model.load_args:
        config = inherit(config, path)
    if config.model.model is None and files.base_model is not None:
        config = config.decide(f"the base named in {path}", model=files.base_model)
    return config, path


def _continue_from(config: SftConfig) -> tuple[SftConfig, ResumePoint | None]:
    wanted = config.saving.resume_from_checkpoint
    output_dir = config.saving.output_dir
    if output_dir is None and config.model.model is not None:
        output_dir = f"./output/{_label(config.model.model)}"
    if elastic.restarts() and output_dir is not None:
        point, notes = elastic.find_own(expand(output_dir))
        _say([f"torchrun has started this job again (restart {elastic.restarts()})", *notes])
        if point is not None:
            # Whatever the command said of a checkpoint to begin with was done by the first attempt.
            whole = {"resume_only_model": False, "ignore_data_skip": False}
            return _go_on(config.decide("this job goes on after a restart", **whole), point, [])
    if wanted is None:
        return config, None
    if wanted == "auto" and output_dir is None:
        raise UsageError("--resume_from_checkpoint auto needs to know where to look", fix="add --output_dir or --model")
    point, notes = resume.find(wanted, expand(output_dir) if output_dir else None)
    if point is None:
        if config.saving.resume_only_model:
            config = config.decide("there is no checkpoint", resume_only_model=False)
        _say(notes)
        return config, None
    return _go_on(config, point, notes)


def _go_on(config: SftConfig, point: ResumePoint, notes: list[str]) -> tuple[SftConfig, ResumePoint]:
    if not config.saving.resume_only_model:
        require_state(point.checkpoint)
    config, changes = resume.take_over(config, point, int(os.environ.get("WORLD_SIZE", "1")))
    _say([*notes, *changes, f"continuing {point.run_dir} after step {point.step}"])
    return config, point


def _say(lines: list[str]) -> None:
    for line in lines:
        log.warning(line)
