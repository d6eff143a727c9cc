"""A model or a data set: is it there and whole, what is it, what does it need, do its rows mean anything.

Promises: reads headers and first rows only. A hub id that is not on this machine is looked up for its small files
alone.
"""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

from swift.advise.finding import FAIL, OK, WARN, Finding, of_error
from swift.advise.machines import Machine, this_machine
from swift.advise.memory import Training, estimate, estimate_inference
from swift.advise.model_facts import ModelFacts, model_facts
from swift.advise.remedies import fits
from swift.advise.rows import is_local
from swift.advise.setup import stored_bytes
from swift.catalog import find_dataset
from swift.data.formats import ColumnMap, canonical_row
from swift.data.read import Broken, read_file
from swift.data.rows import RowError
from swift.data.spec import parse_spec
from swift.errors import ModelFileError, SwiftError
from swift.hub import (
    LocalModel,
    check_adapter_files,
    check_model_files,
    human_bytes,
    resolve_dataset,
    resolve_model,
)
from swift.hub.names import HUB_ID, expand, looks_like_path

FIRST_ROWS = 100


def model(name: str, *, model_dir: str | None = None, use_hf: bool = False) -> list[Finding]:
    """The guide's checklist for a model (path, completeness, permissions), what it is and what it needs on this
    machine.
    """
    try:
        found = resolve_model(name, use_hf=use_hf, model_dir=model_dir, want_weights=False)
    except SwiftError as error:
        return [of_error("model", error)]
    findings = [_files(found)]
    try:
        facts = model_facts(found)
    except SwiftError as error:
        # the files' own finding may have said the same
        return findings if findings[0].status == FAIL else [*findings, of_error("model config", error)]
    findings.append(_identity(facts))
    return findings + needs(facts, this_machine())


def _files(found: LocalModel) -> Finding:
    try:
        files = check_model_files(found.path)
    except ModelFileError as error:
        downloaded = found.source in ("modelscope", "huggingface")
        if downloaded and "no weights" in error.what:
            return Finding(
                "model files", WARN, f"{found.name}: the weights are not downloaded yet", "they come with the first use"
            )
        return of_error("model files", error)
    except SwiftError as error:
        return of_error("model files", error)
    notes = f"; {'; '.join(files.notes)}" if files.notes else ""
    count = f"{len(files.weight_files)} weight file{'s' * (len(files.weight_files) > 1)}"
    return Finding(
        "model files", OK, f"{found.path}: {count}, {human_bytes(files.total_bytes)}, all there and whole{notes}"
    )


def _identity(facts: ModelFacts) -> Finding:
    shape = facts.shape
    exact = "" if shape.exact or shape.stored else "about "
    kind = f"quantized with {facts.quantization}" if facts.quantization else facts.dtype
    return Finding(
        "model", OK, f"{facts.family} ({shape.model_type}), {exact}{shape.parameters / 1e9:.3g} B parameters, {kind}"
    )


def needs(facts: ModelFacts, machine: Machine) -> list[Finding]:
    """One finding per way of using the model: the memory it takes here, and whether that is there."""
    dtype = machine.dtype
    shape, kept = facts.shape, stored_bytes(facts, True, machine)
    on_gpu = machine.kind in ("cuda", "npu")
    base = Training(dtype=dtype, mixed=dtype != "float32", device=machine.kind, length=min(2048, shape.context or 2048))
    alone = stored_bytes(facts, False, machine)
    totals = {
        "inference": estimate_inference(
            shape, dtype=dtype, length=base.length, device=machine.kind, stored_bytes=alone
        ).total,
        "LoRA": estimate(shape, base, stored_bytes=kept).total,
    }
    if facts.quantization is None and on_gpu:
        totals["QLoRA (4-bit)"] = estimate(shape, Training(**{**vars(base), "weight_bits": 4})).total
    if kept is None:
        totals["full"] = estimate(shape, Training(**{**vars(base), "full": True})).total
    text = ", ".join(f"{way} {human_bytes(total)}" for way, total in totals.items())
    fitting = [way for way, total in totals.items() if fits(total, machine)]
    what = f"in {dtype}, rows of {base.length} tokens: {text}; {machine.title} has {human_bytes(machine.memory)}"
    if not fitting:
        return [Finding("model needs", WARN, f"{what}: too little for any of them", f"swift plan --model {facts.name}")]
    return [
        Finding(
            "model needs", OK, f"{what}: enough for {', '.join(fitting)}", f"swift plan --model {facts.name} says more"
        )
    ]


def adapter(name: str) -> list[Finding]:
    try:
        files = check_adapter_files(expand(name))
    except SwiftError as error:
        return [of_error("adapter files", error)]
    return [
        Finding(
            "adapter files",
            OK,
            f"{files.path}: {human_bytes(files.total_bytes)}, for {files.base_model or 'an unnamed base'}",
        )
    ]


def dataset(word: str, *, dataset_dir: str | None = None, use_hf: bool = False) -> list[Finding]:
    """Is it found, readable, and what do its first rows look like?"""
    name = f"data set {word}"
    try:
        spec = parse_spec(word)
        use_hf = spec.use_hf if spec.use_hf is not None else use_hf
        known = find_dataset(spec.name) is not None or HUB_ID.match(spec.name) is not None
        if known and not looks_like_path(spec.name) and not is_local(spec, dataset_dir, use_hf):
            return [Finding(name, WARN, "not on this machine: it would be downloaded with the first use")]
        data = resolve_dataset(spec.name, dataset_dir=dataset_dir, use_hf=use_hf, subsets=spec.subsets)
        return [_rows(name, path, data.entry.columns if data.entry else {}) for path in data.files]
    except SwiftError as error:
        return [of_error(name, error)]


def _rows(name: str, path: Path, columns) -> Finding:
    """The first rows of one file: their format, and what is wrong with those that have none."""
    formats, problems, first = Counter[str](), Counter[str](), ""
    try:
        for value, source in itertools.islice(read_file(path), FIRST_ROWS):
            reason = _read_row(value, path, columns, formats)
            if reason:
                problems[reason] += 1
                first = first or str(source)
    except SwiftError as error:
        return of_error(name, error)
    looked_at = sum(formats.values()) + sum(problems.values())
    if not looked_at:
        return Finding(name, FAIL, f"{path} holds no rows", "check --dataset")
    kinds = ", ".join(f"{kind} ({count})" for kind, count in formats.most_common())
    if not problems:
        return Finding(name, OK, f"{path}: the first {looked_at} rows are {kinds}")
    worst = "; ".join(f"{reason} ({count})" for reason, count in problems.most_common(3))
    what = (
        f"{path}: of the first {looked_at} rows {sum(problems.values())} can't be used: {worst}; the first is {first}"
    )
    fix = 'name your columns: --columns \'{"their name": "query", "another": "response"}\', or repair those lines'
    return Finding(name, WARN if formats else FAIL, what, fix)


def _read_row(value, path: Path, columns, formats: Counter[str]) -> str:
    """Count the row's format, or return why it has none."""
    if isinstance(value, Broken):
        return value.reason
    try:
        formats[canonical_row(value, columns=ColumnMap(dict(columns)), folder=path.parent).format] += 1
    except RowError as error:
        return f"{error.reason}: {error.detail}" if error.detail else error.reason
    return ""
