"""Are the files of a model or an adapter all there and whole? Answers in milliseconds, before anything heavy is loaded.

Promises: every failure is a ModelFileError that names the file and the cure. Reads headers, never weights: a flipped
bit inside the weights is not seen (the hub's sha256 is checked when downloading).
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from swift.errors import ModelFileError
from swift.hub.gguf_header import GgufHeader, read_gguf
from swift.hub.known import check_architecture
from swift.hub.safetensors_header import AGAIN, read_header

LFS = b"version https://git-lfs"
SAFETENSORS, SAFETENSORS_INDEX = "model.safetensors", "model.safetensors.index.json"
BIN, BIN_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
TOKENIZER_CONFIG = "tokenizer_config.json"
VOCABULARIES = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "vocab.txt",
)
OTHER_JSON = ("generation_config.json", "preprocessor_config.json", "processor_config.json", "special_tokens_map.json")
_SHARD = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})(?P<suffix>\.\w+)$")


CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")


@dataclass(frozen=True)
class ModelFiles:
    """A model directory (or GGUF file) whose files are there and whole.

    `parameters` counts stored values, `dtypes` splits that count by storage type (empty for .bin, which isn't
    opened); for packed 4-bit weights it is the count of packed values. `gguf` is the GGUF header, or None. `notes`
    are things worth saying that are no error.
    """

    path: Path
    config: Mapping[str, Any]
    weight_files: tuple[Path, ...]
    total_bytes: int
    parameters: int
    dtypes: Mapping[str, int]
    quantization: Mapping[str, Any] | None
    gguf: GgufHeader | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def is_gguf(self) -> bool:
        return self.gguf is not None

    @property
    def context(self) -> int | None:
        """The longest input in tokens, as config.json says."""
        config = self.config.get("text_config") or self.config
        return next((int(config[key]) for key in CONTEXT_KEYS if isinstance(config.get(key), int)), None)


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter directory whose files are there and whole; `base_model` is what its config names, if anything."""

    path: Path
    config: Mapping[str, Any]
    weight_file: Path
    total_bytes: int
    base_model: str | None


def check_model_files(path: Path | str, *, need_weights: bool = True, need_tokenizer: bool = True) -> ModelFiles:
    """The files of the model in directory `path` (or of the GGUF file `path`), or ModelFileError."""
    path = Path(path)
    if path.is_file():
        return _check_gguf(path)
    if not path.is_dir():
        raise ModelFileError("no such directory", where=str(path), fix="check --model")
    names = _names(path)
    if "config.json" not in names:
        ggufs = sorted(name for name in names if name.endswith(".gguf"))
        if ggufs:
            return _check_gguf(path / _one_gguf(path, ggufs))
        raise _no_config(path, names)
    config = read_json_object(path / "config.json")
    check_architecture(path, config)
    if need_tokenizer:
        _check_tokenizer(path, names)
    for name in OTHER_JSON:
        if name in names:
            read_json_object(path / name)
    weights = _check_weights(path, names) if need_weights else ([], {}, [])
    files, dtypes, notes = weights
    quantization = config.get("quantization_config") or (config.get("text_config") or {}).get("quantization_config")
    return ModelFiles(
        path=path,
        config=config,
        weight_files=tuple(files),
        total_bytes=sum(file.stat().st_size for file in files),
        parameters=sum(dtypes.values()),
        dtypes=dtypes,
        quantization=quantization,
        notes=tuple(notes),
    )


def check_adapter_files(path: Path | str) -> AdapterFiles:
    """The files of the adapter in directory `path`, or ModelFileError."""
    path = Path(path)
    if not path.is_dir():
        raise ModelFileError("no such directory", where=str(path), fix="check --adapters")
    names = _names(path)
    if ADAPTER_CONFIG not in names:
        raise _no_adapter_config(path, names)
    config = read_json_object(path / ADAPTER_CONFIG)
    found = [name for name in ADAPTER_WEIGHTS if name in names]
    if not found:
        fix = "the save was interrupted: use an earlier checkpoint, or copy the directory again"
        raise ModelFileError(f"the adapter has no weights ({ADAPTER_WEIGHTS[0]} is missing)", where=str(path), fix=fix)
    weights = path / found[0]
    if _check_weight_file(weights) == {}:
        raise ModelFileError("the adapter file holds no tensor", where=str(weights), fix=AGAIN)
    return AdapterFiles(path, config, weights, weights.stat().st_size, config.get("base_model_name_or_path"))


def read_json(path: Path) -> Any:
    """The JSON value in `path`; ModelFileError when it is unreadable, an LFS pointer or cut."""
    raw = _read(path)
    _refuse_lfs(path, raw[:64])
    try:
        return json.loads(raw)
    except ValueError as error:
        what = "empty file" if not raw.strip() else f"not valid JSON ({error})"
        raise ModelFileError(what, where=str(path), fix=AGAIN) from error


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; ModelFileError when it is unreadable, an LFS pointer, cut, or no object."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise ModelFileError("holds no JSON object", where=str(path), fix=AGAIN)
    return value


def _names(directory: Path) -> set[str]:
    try:
        return {entry.name for entry in os.scandir(directory)}
    except PermissionError as error:
        raise _unreadable(directory, error) from error


def _unreadable(path: Path, error: OSError) -> ModelFileError:
    if isinstance(error, FileNotFoundError) and path.is_symlink():
        what, fix = f"a link to {os.readlink(path)}, which is gone", "download the model again, or restore that file"
    elif isinstance(error, IsADirectoryError):
        what, fix = "a directory where a file is expected", AGAIN
    else:
        what, fix = f"can't be read ({error.strerror})", f"give yourself the right to read it: chmod u+r {path}"
    return ModelFileError(what, where=str(path), fix=fix)


def _read(path: Path, size: int = -1) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(size)
    except OSError as error:
        raise _unreadable(path, error) from error


def _refuse_lfs(path: Path, start: bytes) -> None:
    if start.startswith(LFS):
        what = "a Git LFS pointer, not the file itself: the repository was cloned without Git LFS"
        fix = f"run `git lfs install && git lfs pull` in {path.parent}, or download the file from the hub"
        raise ModelFileError(what, where=str(path), fix=fix)


def _one_gguf(path: Path, names: list[str]) -> str:
    """The GGUF file to load from a directory: the only one, or the first part of the only split one."""
    models = {(m["stem"] if (m := _SHARD.match(name)) else name): name for name in reversed(names)}
    models = {stem: name for stem, name in models.items() if not stem.startswith("mmproj")}
    if len(models) != 1:
        fix = "pass one of them: --model " + str(path / names[0])
        raise ModelFileError(f"holds several GGUF models: {_some(names)}", where=str(path), fix=fix)
    return next(iter(models.values()))


def _check_gguf(path: Path) -> ModelFiles:
    if path.suffix != ".gguf":
        fix = "pass the directory that holds config.json and the weights, or a .gguf file"
        raise ModelFileError("is a file, not a model directory", where=str(path), fix=fix)
    _refuse_lfs(path, _read(path, 64))
    match = _SHARD.match(path.name)
    files = [path]
    if match:
        total = int(match["total"])
        files = [path.with_name(f"{match['stem']}-{i:05d}-of-{total:05d}.gguf") for i in range(1, total + 1)]
        _refuse_missing(path.parent, [file.name for file in files if not file.is_file()], len(files))
    headers = [read_gguf(file) for file in files]
    dtypes = Counter[str]()
    for header in headers:
        dtypes.update(header.dtypes)
    return ModelFiles(
        path=path,
        config={},
        weight_files=tuple(files),
        total_bytes=sum(file.stat().st_size for file in files),
        parameters=sum(dtypes.values()),
        dtypes=dict(dtypes),
        quantization={"quant_method": "gguf"},
        gguf=headers[0],
    )


def _some(names: Iterable[str], most: int = 5) -> str:
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _nested(path: Path, marker: str) -> list[Path]:
    """Directories one to three levels below `path` that hold `marker` (the hubs' caches nest that deep)."""
    patterns = [f"*/{marker}", f"*/*/{marker}", f"*/*/*/{marker}"]
    return [found.parent for pattern in patterns for found in sorted(path.glob(pattern))]


def _no_config(path: Path, names: set[str]) -> ModelFileError:
    where = str(path)
    if ADAPTER_CONFIG in names:
        fix = f"use --adapters {path} (its base model is found from it), or --model BASE --adapters {path}"
        return ModelFileError("this is an adapter (adapter_config.json), not a model", where=where, fix=fix)
    nested = _nested(path, "config.json")
    if nested:
        return ModelFileError(
            f"config.json is missing here; models lie below: {_some(str(p) for p in nested)}",
            where=where,
            fix=f"pass the model's own directory: --model {nested[0]}",
        )
    adapters = _nested(path, ADAPTER_CONFIG)
    if adapters:
        fix = f"this looks like a training run: use --adapters {adapters[-1]}"
        return ModelFileError("config.json is missing; adapters lie below", where=where, fix=fix)
    if not names:
        return ModelFileError(
            "the directory is empty", where=where, fix="put the model's files there, or check --model"
        )
    if "params.json" in names:
        fix = "download the version of this model in the transformers format (config.json and model*.safetensors)"
        return ModelFileError("holds the original release's format (params.json)", where=where, fix=fix)
    fix = "copy config.json from the model's page on the hub, or check --model"
    return ModelFileError("config.json is missing, so this is not a model directory", where=where, fix=fix)


def _no_adapter_config(path: Path, names: set[str]) -> ModelFileError:
    where = str(path)
    if "config.json" in names:
        fix = f"this is a whole model: use --model {path}"
        return ModelFileError(f"{ADAPTER_CONFIG} is missing: not an adapter", where=where, fix=fix)
    below = sorted(
        {p.parent for p in path.glob(f"*/{ADAPTER_CONFIG}")} | {p.parent for p in path.glob(f"*/*/{ADAPTER_CONFIG}")}
    )
    if below:
        newest = max(below, key=lambda p: p.stat().st_mtime)
        refuse_own_format(newest)
        what = f"{ADAPTER_CONFIG} is missing here; adapters lie below: {_some(str(p) for p in below)}"
        return ModelFileError(what, where=where, fix=f"pass one of them: --adapters {newest}")
    fix = "pass a checkpoint directory, e.g. output/vN-.../checkpoint-N"
    return ModelFileError(f"{ADAPTER_CONFIG} is missing: not an adapter", where=where, fix=fix)


def refuse_own_format(path: Path) -> None:
    """ModelFileError for an adapter directory in ms-swift's own format (one below its checkpoint for each adapter)."""
    if "swift_type" in read_json_object(path / ADAPTER_CONFIG):
        fix = f"swift export --adapters {path.parent} --to_peft_format true --output_dir DIR, then use that"
        raise ModelFileError("an adapter in ms-swift's own format, not peft's", where=str(path), fix=fix)


def _check_tokenizer(path: Path, names: set[str]) -> None:
    present = [name for name in VOCABULARIES if name in names]
    if "vocab.json" in names and ("merges.txt" in names or not present):
        if "merges.txt" not in names:
            raise ModelFileError(
                "merges.txt is missing (vocab.json alone is not enough)", where=str(path), fix=_copy("merges.txt")
            )
        present += ["vocab.json", "merges.txt"]
    own_code = [name for name in names if name.endswith((".tiktoken", ".model")) or name.startswith("tokenization_")]
    if not present and not own_code:
        what = "the tokenizer is missing (no tokenizer.json, tokenizer.model, or vocab.json with merges.txt)"
        raise ModelFileError(what, where=str(path), fix=_copy("tokenizer.json and tokenizer_config.json"))
    if TOKENIZER_CONFIG in names:
        read_json_object(path / TOKENIZER_CONFIG)
    elif "tekken.json" not in names:
        raise ModelFileError(f"{TOKENIZER_CONFIG} is missing", where=str(path), fix=_copy(TOKENIZER_CONFIG))
    for name in present:
        _check_vocabulary(path / name)


def _copy(name: str) -> str:
    return f"copy {name} from the model's page on the hub (or from the base model's directory)"


def _check_vocabulary(path: Path) -> None:
    """A tokenizer file that isn't empty, nor an LFS pointer, nor JSON cut in the middle. Its content isn't parsed."""
    start = _read(path, 64)
    _refuse_lfs(path, start)
    if not start.strip():
        raise ModelFileError("empty file", where=str(path), fix=AGAIN)
    if path.suffix == ".json":
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - 64))
            tail = file.read()
        if not start.lstrip().startswith(b"{") or not tail.rstrip().endswith(b"}"):
            raise ModelFileError("not a whole JSON file", where=str(path), fix=AGAIN)


def _check_weights(path: Path, names: set[str]) -> tuple[list[Path], dict[str, int], list[str]]:
    """(files, stored values by dtype, notes) of the weights that transformers would load from `path`."""
    for single, index in ((SAFETENSORS, SAFETENSORS_INDEX), (BIN, BIN_INDEX)):
        if single in names:
            notes = [f"{index} is there too, but {single} is what counts"] if index in names else []
            return [path / single], _count(_check_weight_file(path / single)), notes
        if index in names:
            return _check_sharded(path, names, index)
    raise _no_weights(path, names)


def _no_weights(path: Path, names: set[str]) -> ModelFileError:
    where = str(path)
    shards = [m for m in map(_SHARD.match, sorted(names)) if m and m["suffix"] in (".safetensors", ".bin")]
    if shards:
        first = shards[0]
        expected = [
            f"{first['stem']}-{i:05d}-of-{first['total']}{first['suffix']}" for i in range(1, int(first["total"]) + 1)
        ]
        _refuse_missing(path, [name for name in expected if name not in names], len(expected))
        index = f"{first['stem']}{first['suffix']}.index.json"
        return ModelFileError(f"{index} is missing (all shards are there)", where=where, fix=_copy(index))
    if ADAPTER_CONFIG in names:
        return ModelFileError("this is an adapter, not a whole model", where=where, fix=f"use --adapters {path}")
    other = sorted(
        n for n in names if n.endswith((".h5", ".msgpack", ".pth", ".pt", ".onnx")) or n.startswith("consolidated")
    )
    if other:
        fix = f"get the model's {SAFETENSORS}"
        return ModelFileError(f"the weights are in another format ({_some(other)})", where=where, fix=fix)
    unfinished = sorted(n for n in names if n.endswith((".incomplete", ".part", ".tmp", ".aria2", ".crdownload")))
    if unfinished:
        what, fix = f"an unfinished download ({_some(unfinished)})", "finish the download"
    else:
        what, fix = (
            f"no weights: no {SAFETENSORS} and no {SAFETENSORS_INDEX}",
            "download the weights into this directory",
        )
    return ModelFileError(what, where=where, fix=fix)


def _refuse_missing(path: Path, missing: list[str], total: int) -> None:
    if missing:
        what = f"missing shard {_some(missing)} ({total - len(missing)} of {total} are there)"
        raise ModelFileError(what, where=str(path), fix="download what is missing into this directory")


def _check_sharded(path: Path, names: set[str], index: str) -> tuple[list[Path], dict[str, int], list[str]]:
    weight_map = read_json_object(path / index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelFileError("has no weight_map", where=str(path / index), fix=AGAIN)
    promised: dict[str, list[str]] = {}
    for name, shard in weight_map.items():
        promised.setdefault(shard, []).append(name)
    shards = sorted(promised)
    _refuse_missing(path, [name for name in shards if name not in names and not (path / name).is_file()], len(shards))
    dtypes = Counter[str]()
    for shard in shards:
        tensors = _check_weight_file(path / shard)
        if tensors is None:
            continue
        absent = [name for name in promised[shard] if name not in tensors]
        if absent:
            what = f"lacks tensor {_some(absent, 2)}, which {index} says it holds"
            raise ModelFileError(what, where=str(path / shard), fix="shards of different downloads are mixed: " + AGAIN)
        dtypes.update(_count(tensors))
    suffix = Path(shards[0]).suffix
    spare = sorted(n for n in names if (m := _SHARD.match(n)) and m["suffix"] == suffix and n not in shards)
    notes = [f"not in {index}, so not loaded: {_some(spare)}"] if spare else []
    return [path / shard for shard in shards], dict(dtypes), notes


def _count(tensors: Mapping[str, Any] | None) -> dict[str, int]:
    counts = Counter[str]()
    for tensor in (tensors or {}).values():
        counts[tensor.dtype] += tensor.numel
    return dict(counts)


def _check_weight_file(path: Path) -> Mapping[str, Any] | None:
    """The tensors of a whole safetensors file; None for a whole .bin, whose tensors aren't listed."""
    start = _read(path, 64)
    _refuse_lfs(path, start)
    if path.suffix == ".safetensors":
        return read_header(path)
    if not start:
        raise ModelFileError("empty file", where=str(path), fix=AGAIN)
    # torch.save writes a zip archive, whose directory stands at its end; before torch 1.6 it wrote a bare pickle
    if start.startswith(b"PK\x03\x04") and not zipfile.is_zipfile(path):
        raise ModelFileError("cut short: the end of the archive is missing", where=str(path), fix=AGAIN)
    if not start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04")):
        raise ModelFileError("not a PyTorch weight file", where=str(path), fix=AGAIN)
    return None
