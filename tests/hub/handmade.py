"""Tiny model files written by hand, byte by byte, so that they can be broken in every way."""

from __future__ import annotations

import json
import struct
from pathlib import Path

TENSORS = {"model.embed_tokens.weight": (4, 2), "model.norm.weight": (2,)}


def safetensors(tensors: dict[str, tuple[int, ...]] = TENSORS, dtype: str = "F32", width: int = 4) -> bytes:
    header, at = {}, 0
    for name, shape in tensors.items():
        size = width
        for n in shape:
            size *= n
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    raw = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    raw += b" " * (-len(raw) % 8)
    return struct.pack("<Q", len(raw)) + raw + b"\1" * at


def model(directory: Path, weights: bytes | None = None) -> Path:
    """A whole model directory: config, tokenizer, one weight file."""
    directory.mkdir(parents=True, exist_ok=True)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 4}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "tokenizer.json").write_text('{"version": "1.0", "model": {}}')
    (directory / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    (directory / "model.safetensors").write_bytes(safetensors() if weights is None else weights)
    return directory


def sharded(directory: Path, shards: int = 3) -> Path:
    """Like `model`, its weights in `shards` files with an index."""
    model(directory)
    (directory / "model.safetensors").unlink()
    weight_map = {}
    for i in range(1, shards + 1):
        name = f"model-{i:05d}-of-{shards:05d}.safetensors"
        (directory / name).write_bytes(safetensors({f"layer.{i}.weight": (2, 2)}, dtype="BF16", width=2))
        weight_map[f"layer.{i}.weight"] = name
    index = {"metadata": {"total_size": shards * 8}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def adapter(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "org/base"}')
    (directory / "adapter_model.safetensors").write_bytes(safetensors({"lora_A.weight": (2, 4)}))
    return directory


def gguf(tensors: dict[str, tuple[int, ...]] = TENSORS) -> bytes:
    """A GGUF v3 file with float32 tensors, a string array in its metadata and 32-byte alignment."""

    def text(s: str) -> bytes:
        return struct.pack("<Q", len(s.encode())) + s.encode()

    words = ["<s>", "héllo", "世界"]
    pairs = [
        text("general.architecture") + struct.pack("<I", 8) + text("llama"),
        text("llama.block_count") + struct.pack("<II", 4, 2),
        text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, len(words)) + b"".join(map(text, words)),
        text("tokenizer.ggml.scores") + struct.pack("<IIQ", 9, 6, 3) + struct.pack("<3f", 0, 1, 2),
    ]
    infos, at, data = b"", 0, b""
    for name, shape in tensors.items():
        size = 4
        for n in shape:
            size *= n
        infos += text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape)
        infos += struct.pack("<IQ", 0, at)
        data += b"\1" * size + b"\0" * (-size % 32)
        at += size + -size % 32
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs)) + b"".join(pairs) + infos
    return head + b"\0" * (-len(head) % 32) + data
