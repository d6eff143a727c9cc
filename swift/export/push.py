"""`swift export --push_to_hub true`: the result of the export, or a finished directory as it is, goes to a hub.

Promises: name and token are checked before the export begins; a directory that was written is complete here whatever
becomes of the upload; base models without weights of their own in the directory (an adapter, say) are sent as such.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from swift.config.commands import ExportConfig
from swift.config.record import explain
from swift.errors import UsageError
from swift.hub import check_adapter_files, check_model_files
from swift.hub.upload import Target, check_target, files_to_send, upload

log = logging.getLogger("swift")


def run(config: ExportConfig, export: Callable[[ExportConfig], int]) -> int:
    """Export if something is to be exported, then upload; 0 or an error."""
    options = config.export
    target = check_target(
        options.hub_model_id,
        use_hf=config.model.use_hf,
        token=config.model.hub_token,
        private=options.hub_private_repo,
        message=options.commit_message or "Upload by swift export",
    )
    if options.to_cached_dataset:
        raise UsageError("a cached data set isn't a model", where="--push_to_hub", fix="leave one of the two out")
    if not (
        options.merge_lora
        or options.to_ollama
        or options.to_peft_format
        or config.quantization.quant_method
        or config.given("quant_bits")
        or options.output_dir
    ):
        return _as_it_is(config, target)
    if options.output_dir is None:
        raise UsageError("name the directory to write first", where="--push_to_hub", fix="--output_dir DIR")
    code = export(config)
    if code == 0 and not config.common.dry_run:
        _push(Path(options.output_dir).expanduser(), target)
    return code


def _as_it_is(config: ExportConfig, target: Target) -> int:
    """Upload the directory that --adapters or --model names."""
    named = [*config.model.adapters] or ([config.model.model] if config.model.model else [])
    if len(named) != 1:
        fix = "--model DIR or --adapters CHECKPOINT"
        raise UsageError("exactly one directory can be uploaded", where="--push_to_hub", fix=fix)
    directory = Path(named[0]).expanduser()
    if not directory.is_dir():
        raise UsageError("no such directory", where=str(directory), fix="upload a directory of this machine")
    if config.model.adapters:
        from swift.models.adapters import find_checkpoint

        directory = find_checkpoint(str(directory))
        check_adapter_files(directory)
    else:
        check_model_files(directory)
    if config.common.dry_run:
        print(explain(config))
        for name in files_to_send(directory):
            print(name)
        return 0
    _push(directory, target)
    return 0


def _push(directory: Path, target: Target) -> None:
    log.info("uploading %s to %s as %s", directory, target.hub, target.hub_id)
    log.info("uploaded: %s", upload(directory, target))
