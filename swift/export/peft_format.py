"""`swift export --adapters A --to_peft_format true`: an adapter as plain peft reads it, and nothing of its training.

Takes adapters in peft's format (a checkpoint of ours, one from a hub, adapter_model.bin) and in ms-swift's own one
(`swift_type`: a directory below for each adapter, names without peft's prefix; swift/tuners/base.py of ms-swift 4.6).

Promises: the tensors are the source's, bit for bit; peft itself finds a place for every one of them in the base (built
without weights), and none is left over; the directory appears whole or not at all.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from swift import runs
from swift.config.commands import ExportConfig
from swift.config.record import explain, inherit
from swift.errors import CheckpointError, ExportError, ModelFileError, UsageError
from swift.export.writing import written_aside
from swift.hub.files import ADAPTER_CONFIG, AdapterFiles, check_adapter_files, read_json_object
from swift.hub.upload import files_to_send
from swift.models.quiet import quiet

log = logging.getLogger("swift")

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
EXTRA_STATES = "extra_states"  # where ms-swift keeps tensors that belong to no adapter
# settings of ms-swift's LoRA that change what it computes, and that peft doesn't have
OTHER_SUMS = ("use_qa_lora", "use_merged_linear")


@dataclass(frozen=True)
class Source:
    """One adapter: `name` is its directory's below the result ("" for the result itself)."""

    name: str
    files: AdapterFiles

    @property
    def is_peft(self) -> bool:
        return "swift_type" not in self.files.config


def run(config: ExportConfig) -> int:
    """Check, write, read back; 0 or an error."""
    from swift.export.export import find_base
    from swift.export.merge import check_output

    if len(config.model.adapters) != 1:
        fix = "--adapters CHECKPOINT, one for each export"
        raise UsageError("exactly one adapter can be converted", where="--to_peft_format", fix=fix)
    if config.export.merge_lora or config.quantization.quant_method:
        what = "a merged model has no adapter left"
        raise UsageError(what, where="--to_peft_format", fix="leave out --merge_lora and --quant_method")
    root, sources = find_sources(Path(config.model.adapters[0]).expanduser())
    if config.model.load_args:
        config = inherit(config, root)
    config, model = find_base(config, [source.files for source in sources])
    if config.export.output_dir is None:
        config = config.decide("the adapter's directory and -peft", output_dir=f"{root}-peft")
    out = Path(str(config.export.output_dir)).expanduser()
    check_output(out, config.export.exist_ok, (root, model.path))
    if config.common.dry_run:
        print(explain(config))
        return 0
    runs.ensure_writable_dir(out.absolute().parent)
    with written_aside(out) as staging:
        staging.mkdir()
        for source in sources:
            tensors = _write(source, staging / source.name)
            try:
                _check(config, model.path, staging / source.name)
            except (CheckpointError, ModelFileError) as error:
                error.where = str(source.files.path)  # not the copy, which is gone
                raise
            where = "" if source.is_peft else ", from ms-swift's own format"
            log.info("%s: %d tensors%s, all with a place in %s", source.files.path, len(tensors), where, model.path)
        facts = {"base": str(model.path), "adapters": [str(source.files.path) for source in sources]}
        runs.commit_dir(staging, out.absolute(), kind="adapter", **facts)
    log.info("adapter in peft's format: %s", out)
    return 0


def find_sources(path: Path) -> tuple[Path, list[Source]]:
    """(the directory, its adapters); UsageError for adapters that peft has no counterpart of."""
    from swift.models.adapters import find_checkpoint

    below = sorted(path.glob(f"*/{ADAPTER_CONFIG}")) if not (path / ADAPTER_CONFIG).is_file() else []
    own = [file.parent for file in below if "swift_type" in read_json_object(file)]
    if not own:
        path = find_checkpoint(path)
        return path, [Source("", check_adapter_files(path))]
    if (path / EXTRA_STATES).exists():
        what = "the adapter has tensors beside its LoRA, which peft's format has no place for"
        raise UsageError(what, where=str(path / EXTRA_STATES), fix="merge it with ms-swift")
    sources = [Source("" if folder.name == "default" else folder.name, check_adapter_files(folder)) for folder in own]
    for source in sources:
        settings = source.files.config
        odd = next((name for name in OTHER_SUMS if settings.get(name)), None)
        if settings["swift_type"] != "LORA" or odd:
            what = f"this adapter ({odd or settings['swift_type']}) has no counterpart in peft"
            where = str(source.files.path / ADAPTER_CONFIG)
            raise UsageError(what, where=where, fix="only LoRA can be converted; merge it with ms-swift")
    return path, sources


def _write(source: Source, directory: Path) -> dict[str, torch.Tensor]:
    """Write config and tensors, and beside them what belongs to an adapter in peft's format; the tensors."""
    from peft.utils import load_peft_weights

    directory.mkdir(exist_ok=True)
    path = source.files.path
    if source.is_peft:
        for name in files_to_send(path):
            if "/" not in name and name not in (source.files.weight_file.name, runs.MANIFEST):
                shutil.copy2(path / name, directory / name)
    tensors = load_peft_weights(str(path), device="cpu")
    if not source.is_peft:
        tensors = renamed(tensors, path.name)
        with quiet():
            peft_config(source.files.config).save_pretrained(directory)
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    written = load_file(directory / WEIGHTS)
    if written.keys() != tensors.keys() or not all(_same(written[name], tensor) for name, tensor in tensors.items()):
        raise ExportError("what was written isn't what was read", where=str(directory / WEIGHTS))
    return tensors


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(torch.nan_to_num(one), torch.nan_to_num(other))


def renamed(tensors: Mapping[str, torch.Tensor], adapter: str) -> dict[str, torch.Tensor]:
    """ms-swift's names as peft's: with peft's prefix, without the adapter's name behind `lora_A` and the like."""
    found = {}
    for name, tensor in tensors.items():
        parts = name.removeprefix(PREFIX).split(".")
        kept = [part for i, part in enumerate(parts) if not (part == adapter and parts[i - 1].startswith("lora_"))]
        found[PREFIX + ".".join(kept)] = tensor
    return found


def peft_config(settings: Mapping[str, Any]) -> Any:
    """peft's LoraConfig of an adapter_config.json of ms-swift's: the settings that peft has."""
    import dataclasses

    from peft import LoraConfig

    known = {field.name for field in dataclasses.fields(LoraConfig)}
    kept = {name: value for name, value in settings.items() if name in known and name != "runtime_config"}
    return LoraConfig(**{**kept, "peft_type": "LORA"})


def _check(config: ExportConfig, base: Path, directory: Path) -> None:
    """ModelFileError or CheckpointError unless peft finds a place for every tensor in a model like the base."""
    from swift.hub import check_model_files
    from swift.models.adapters import load_adapter
    from swift.models.device import pick_device
    from swift.models.gguf import as_directory
    from swift.models.heads import head_of, is_classifier
    from swift.models.load import skeleton
    from swift.models.plan import LoadPlan

    base = as_directory(base)
    files = check_model_files(base)
    options = config.model
    tokens = options.new_special_tokens
    head = head_of(config.head, fresh=not is_classifier(files.config))
    trust = options.trust_remote_code
    plan = LoadPlan(
        pick_device(True), "float32", False, head=head, new_special_tokens=tokens, trust_remote_code=trust
    )  # fmt: skip
    try:
        load_adapter(skeleton(base, plan), directory)
    except (ValueError, RuntimeError, KeyError) as error:
        what = f"peft can't read the result: {' '.join(str(error).split())[:300]}"
        raise ModelFileError(what, where=str(directory), fix=f"is {base} its base? name it with --model") from error
