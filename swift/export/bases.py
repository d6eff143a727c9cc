"""The two bases of an adapter that was trained on quantized weights: the full-precision one, and the one that the
quantized weights stand for. Merging onto either is exact; what they answer differs, and that is measured.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swift import runs
from swift.config.commands import ExportConfig
from swift.errors import SwiftError, UsageError
from swift.hub import ModelFiles, check_model_files

log = logging.getLogger("swift")

BNB_4BIT = ("bnb_4bit_quant_type", "bnb_4bit_use_double_quant", "bnb_4bit_quant_storage")
FULL = "the full-precision base"


@dataclass(frozen=True)
class Base:
    """Weights to add an adapter to. `loading`: quantization options with which `path` is loaded (None: as it is)."""

    path: Path
    words: str
    loading: Mapping[str, Any] | None = None

    def plan(self, config: ExportConfig, dtype: str) -> Any:
        """How to load it, on the device that there is."""
        from swift.models.device import pick_device
        from swift.models.plan import plan_loading

        options = dataclasses.replace(config.model, torch_dtype=dtype)
        loading = self.loading or {"quant_method": None, "quant_bits": None}
        quantization = dataclasses.replace(config.quantization, **loading)
        return plan_loading(options, quantization, check_model_files(self.path), pick_device(), training=True)


def find_bases(
    config: ExportConfig, base: Path, files: ModelFiles, adapters: tuple[Path, ...]
) -> tuple[Base, Base | None]:
    """(the base to merge onto, the other one to compare with, if there is one and it is known).

    `base` is the directory that --model or the adapter names. UsageError when --merge_quantized_base finds nothing
    that is quantized.
    """
    trained = _trained_with(adapters[0])
    own = (files.quantization or {}).get("quant_method")
    if trained is not None and trained.loading is not None and trained.path.resolve() != base.resolve():
        # the full-precision weights that --model names are those that training quantized, under another path
        trained = dataclasses.replace(trained, path=base) if own is None else None
    itself = trained is not None and trained.loading is None and trained.path.resolve() == base.resolve()
    if trained is None or itself:
        if config.export.merge_quantized_base and own is None and not itself:
            what = "neither the base nor the training was quantized"
            raise UsageError(what, where="--merge_quantized_base", fix="leave it out")
        dequantized = f"the dequantized {own} base" if own else f"{trained.words}, dequantized" if itself else FULL
        return Base(base, dequantized), None
    full = Base(base, FULL)
    if not config.export.merge_quantized_base:
        log.info("the adapter was trained on %s; merging onto %s", trained.words, FULL)
        return full, trained
    log.info("merging onto what the adapter was trained on, dequantized: %s", trained.words)
    return trained, full


def beside(config: ExportConfig, other: Base | None, dtype: str, head: Any) -> tuple[str, Path, Any] | None:
    """What a merge needs to know of the base to compare with; None, and said, where it can't be loaded here."""
    from swift.models.heads import with_head

    if other is None:
        return None
    try:
        return other.words, other.path, with_head(other.plan(config, dtype), head)
    except SwiftError as error:
        log.warning("not compared with the adapter on %s: %s", other.words, error.what)
        return None


def load_plain(path: Path, plan: Any) -> Any:
    """The planned model with plain weights: those that bitsandbytes' numbers stand for, where it quantized."""
    from swift.models.load import load_model

    model = load_model(path, plan)
    if plan.quant is not None or plan.source_quant == "bitsandbytes":
        from swift.models.quantized import dequantize

        dequantize(model, plan.dtype)
    return model


def _trained_with(adapter: Path) -> Base | None:
    """The quantized base of the adapter's training, None where it wasn't quantized or isn't known or here any more."""
    from swift.models.gguf import CONVERTED_FROM, as_directory

    record = runs.read_args(adapter) or {}
    options = record.get("options") or {}
    path = Path(str(record.get("model_path") or options.get("model") or ""))
    if options.get("quant_method"):
        loading = {name: options[name] for name in ("quant_method", "quant_bits", *BNB_4BIT) if name in options}
        nf4 = options["quant_method"] == "bnb" and options.get("quant_bits") == 4
        kind = f" ({options.get('bnb_4bit_quant_type')})" if nf4 else ""
        return Base(path, f"{options['quant_method']}, {options.get('quant_bits')} bits{kind}", loading)
    if not record.get("model_path") or not path.exists():
        return None
    try:
        files = check_model_files(path)
    except SwiftError:
        return None
    if files.is_gguf:
        return Base(as_directory(path), f"the GGUF file {path.name}")
    origin = path / CONVERTED_FROM
    if origin.is_file():
        name = Path(json.loads(origin.read_text(encoding="utf-8"))["file"]).name
        return Base(path, f"the GGUF file {name}")
    method = (files.quantization or {}).get("quant_method")
    return Base(path, f"the {method} weights of {path}") if method else None
