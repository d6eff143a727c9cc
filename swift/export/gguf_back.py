"""A GGUF file read back as the model that it was made of, to prove it: by transformers where it knows the architecture,
else its numbers put back under the names of the checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import torch

from swift.export.gguf import ARCHITECTURES, Architecture, rope_of
from swift.export.gguf_tensors import EXPERT, namer
from swift.export.quantize import QuantJob

# architectures that transformers reads otherwise than they were written
OWN = ("MixtralForCausalLM", "Phi3ForCausalLM")


def reload(job: QuantJob, directory: Path) -> Any:
    """The written file as a model in the source's dtype."""
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    path = next(directory.glob("*.gguf"))
    name = json.loads((job.base / "config.json").read_text(encoding="utf-8"))["architectures"][0]
    arch = ARCHITECTURES[name]
    known = _in_transformers(arch) in GGUF_CONFIG_MAPPING and name not in OWN
    model = _by_transformers(job, path, arch) if known else _by_names(job, path, arch)
    return model.to(job.plan.device.torch_name).eval()


def _in_transformers(arch: Architecture) -> str:
    """The architecture's name in transformers' GGUF tables."""
    return arch.name.replace("qwen3moe", "qwen3_moe")


def _by_transformers(job: QuantJob, path: Path, arch: Architecture) -> Any:
    """What its reader doesn't take from the file (Llama 3's scaling, the patterns of Gemma's layers) comes from the
    source's config.json.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    from swift.compat.gguf_reading import fast_gguf_reading
    from swift.models.load import check_loading_info, load_config
    from swift.models.quiet import quiet

    source = load_config(job.base)
    with fast_gguf_reading(), quiet():
        config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
        taken = GGUF_CONFIG_MAPPING[_in_transformers(arch)].values()
        read = {*taken, "model_type", "architectures", "transformers_version"}
        for name, value in source.to_diff_dict().items():
            if name not in read and name != "rope_parameters" and name in config.to_dict():
                setattr(config, name, value)
        if rope_of(source)["rope_type"] != "default" or arch.every:
            config.rope_parameters = source.rope_parameters
        model, info = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, config=config, local_files_only=True, output_loading_info=True,
            quantization_config=GgufConfig(dequantize=True), dtype=getattr(torch, job.plan.dtype),
        )  # fmt: skip
    check_loading_info(path, info)
    return model


def _by_names(job: QuantJob, path: Path, arch: Architecture) -> Any:
    """The source's architecture with the file's numbers."""
    from transformers import AutoModelForCausalLM

    from swift.export.gguf import state_of
    from swift.models.load import check_loading_info, load_config
    from swift.models.quiet import quiet

    config = load_config(job.base)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config)
    names = list(state_of(empty))
    state = dict(_values(path, arch, config, names))
    with quiet():
        model, info = type(empty).from_pretrained(
            None, state_dict=state, config=config, dtype=getattr(torch, job.plan.dtype), output_loading_info=True
        )
    check_loading_info(path, info)
    return model


def _values(path: Path, arch: Architecture, config: Any, names: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """(name in the checkpoint, float32 values) of every tensor of the file."""
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    name_of = namer(arch.name, config.num_hidden_layers)
    heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads}
    for name in names:
        tensor = stored[name_of(name)]
        number = EXPERT.search(name)
        data = tensor.data if number is None else tensor.data[int(number[1])]
        values = torch.from_numpy(gguf.dequantize(data, tensor.tensor_type).astype("float32"))
        leaf = name.rpartition("_proj.")[0].rpartition(".")[2]
        if arch.permuted and leaf in heads:
            values = _halves(values, heads[leaf])
        if arch.shifted and name.endswith("norm.weight"):
            values = values - 1
        yield name, values


def _halves(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """The inverse of `swift.export.gguf.interleave`."""
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)
