"""A GGUF file as an ordinary model directory: converted once, kept in the cache, so that adapters and merges have a
plain base.

Promises: the directory is complete or not there; its weights are the file's, dequantized and rounded to bfloat16;
chat template, special tokens and the tokens that end a reply are those of the file's metadata. What transformers
can't convert is an error.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import time
from pathlib import Path

import torch

from swift import runs
from swift.compat.gguf_reading import fast_gguf_reading
from swift.errors import ModelFileError
from swift.hub.cache import cache_dir
from swift.hub.files import check_model_files
from swift.hub.resources import check_disk, human_bytes
from swift.models.gguf_config import FACTORS, read_config
from swift.models.load import check_loading_info
from swift.models.quiet import quiet

log = logging.getLogger("swift")

FORMAT = 1  # raised when a conversion by an earlier version must not be used any more
EDGE = 1 << 22
CONVERTED_FROM = "converted_from.json"  # in a directory: the file that it was made of
# llama.cpp's names for vocabularies whose digits are split one by one before GPT-2's pattern; transformers lacks them
SPLIT_DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone")
# ids in the metadata that end a reply
END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")


def as_directory(path: Path | str) -> Path:
    """`path` itself when it is a model directory; for a .gguf file the directory it is (or was) converted to."""
    path = Path(path)
    if path.is_dir():
        return path
    files = check_model_files(path)
    directory = converted_directory(path)
    if not runs.verify_dir(directory, hashes=False):
        return directory
    needed = files.parameters * 2
    check_disk(directory, int(needed * 1.05), f"converting {path.name}")
    directory.parent.mkdir(parents=True, exist_ok=True)
    with runs.one_at_a_time(directory):
        if runs.verify_dir(directory, hashes=False):  # another process may have converted it meanwhile
            log.info(
                "converting %s (%s) to plain bfloat16 weights, once ...", path.name, human_bytes(files.total_bytes)
            )
            start = time.monotonic()
            _convert(path, directory)
            took = time.monotonic() - start
            log.info("converted: %s in %.0f s, kept in %s", human_bytes(_size(directory)), took, directory)
    return directory


def converted_directory(path: Path | str) -> Path:
    """Where the directory made from this file lies (or will lie): by the file's content, whatever its path."""
    path = Path(path)
    size = path.stat().st_size
    digest = hashlib.sha256(f"{FORMAT} {size}".encode())
    with open(path, "rb") as file:
        digest.update(file.read(EDGE))
        file.seek(max(0, size - EDGE))
        digest.update(file.read(EDGE))
    return cache_dir("converted", f"{path.stem}-{digest.hexdigest()[:12]}")


def is_converted(path: Path | str) -> bool:
    return not runs.verify_dir(converted_directory(path), hashes=False)


def _size(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.iterdir())


def _convert(path: Path, directory: Path) -> None:
    staging = directory.with_name(f"{runs.STAGING_PREFIX}{directory.name}")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        with fast_gguf_reading(), quiet():
            metadata = _metadata(path)
            tokenizer = _tokenizer(path, metadata)
            model = _model(path, tokenizer, metadata)
            model.save_pretrained(staging)
            tokenizer.save_pretrained(staging)
        runs.write_json(staging / CONVERTED_FROM, {"file": str(path.absolute()), "name": metadata.get("general.name")})
        runs.commit_dir(staging, directory)
    except OSError as error:
        raise runs.disk_error(error, directory) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _factors(path: Path) -> torch.Tensor | None:
    """The divisors of the positions' frequencies, if the file has them."""
    import gguf

    found = next((tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name == FACTORS), None)
    return None if found is None else torch.from_numpy(found.data.copy())


def _metadata(path: Path) -> dict:
    """The scalars and strings of the file's metadata, and its list of tokens."""
    import gguf

    fields = gguf.GGUFReader(path).fields
    wanted = {key: field for key, field in fields.items() if len(field.data) <= 1 or key == "tokenizer.ggml.tokens"}
    return {key: field.contents() for key, field in wanted.items()}


def _tokenizer(path: Path, metadata: dict):
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
    except (ValueError, KeyError, NotImplementedError) as error:
        raise _unsupported(path, metadata, error) from error
    tokens = metadata["tokenizer.ggml.tokens"]
    for role, key in (("eos_token", "eos_token_id"), ("bos_token", "bos_token_id"), ("pad_token", "padding_token_id")):
        token_id = metadata.get(f"tokenizer.ggml.{key}")
        if token_id is not None:
            setattr(tokenizer, role, tokens[token_id])
    if "tokenizer.chat_template" in metadata:
        tokenizer.chat_template = metadata["tokenizer.chat_template"]
    if metadata.get("tokenizer.ggml.pre") in SPLIT_DIGITS:
        _split_digits(tokenizer)
    context = metadata.get(f"{metadata['general.architecture']}.context_length")
    if context:
        tokenizer.model_max_length = int(context)
    return tokenizer


def _split_digits(tokenizer) -> None:
    from tokenizers import pre_tokenizers

    digits, rest = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, rest])


def _model(path: Path, tokenizer, metadata: dict):
    from transformers import AutoModelForCausalLM, GgufConfig

    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            config=read_config(path, metadata, _factors(path)),
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
            local_files_only=True,
            output_loading_info=True,
        )
    except (ValueError, KeyError, NotImplementedError, RuntimeError) as error:
        raise _unsupported(path, metadata, error) from error
    check_loading_info(path, info)
    model._weight_conversions = None  # the loader's, which would be applied backwards when saving
    keys = (metadata.get(f"tokenizer.ggml.{key}") for key in END_KEYS)
    ends = list(dict.fromkeys(int(end) for end in keys if end is not None))
    generation = model.generation_config
    generation.eos_token_id = ends if len(ends) > 1 else ends[0] if ends else None
    generation.pad_token_id = tokenizer.pad_token_id
    model.config.eos_token_id, model.config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    model.config.name_or_path = metadata.get("general.name") or path.stem
    return model


def _unsupported(path: Path, metadata: dict, error: Exception) -> ModelFileError:
    architecture = metadata.get("general.architecture")
    what = (
        f"transformers can't convert GGUF files of architecture {architecture!r}: {' '.join(str(error).split())[:200]}"
    )
    return ModelFileError(
        what, where=str(path), fix="use the model's directory of safetensors instead of the GGUF file"
    )
