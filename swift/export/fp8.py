"""Block-FP8 checkpoints as Qwen and DeepSeek publish them: float8_e4m3fn weights, one float32 scale
(`weight_scale_inv`) for each block of 128 x 128, activations quantized when the engine runs. transformers takes the
block size from the ratio of weights and scales, so blocks are 64 or 32 wide where 128 doesn't divide every matrix;
matrices that none divides stay as they are.

Which matrices: the linear layers of the decoder and every expert's, in the checkpoint's own names; embeddings, head,
norms and routers stay. Needs no rows.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from swift import runs
from swift.export.integers import Shards, stored_dtype
from swift.export.layers import find_layers
from swift.export.layerwise import hub_names
from swift.export.merge import copy_companions
from swift.export.quantize import QuantJob, check_shares
from swift.models.packing import FP8_BLOCK, pack_fp8
from swift.models.targets import survey

BLOCKS = (FP8_BLOCK, 64, 32)


@torch.no_grad()
def write(job: QuantJob, model: Any, staging: Path) -> float:
    """Write the FP8 directory; the share of the weights that became FP8."""
    from transformers.core_model_loading import revert_weight_conversion
    from transformers.modeling_utils import remove_tied_weights_from_state_dict

    staging.mkdir(parents=True)
    copy_companions(job.base, staging)
    dtype, wanted = stored_dtype(job), _wanted(model)
    total = sum(p.numel() for p in model.parameters())
    state = revert_weight_conversion(model, remove_tied_weights_from_state_dict(model.state_dict(), model))
    block = _block([tuple(state[name].shape) for name in wanted])
    shards, done, kept = Shards(staging, job.config.export.max_shard_size), 0, []
    for name in list(state):
        tensor = state.pop(name)
        if name in wanted and _divides(block, tuple(tensor.shape)):
            done += tensor.numel()
            values, scales = pack_fp8(tensor, block)
            shards.add({name: values, f"{name}_scale_inv": scales})
        else:
            plain = tensor.to(dtype) if tensor.is_floating_point() else tensor
            shards.add({name: plain.contiguous()})
            if tensor.ndim == 2 and name.endswith(".weight") and "norm" not in name:
                kept.append(name.removesuffix(".weight"))
    shards.finish()
    _write_config(job, kept, dtype, block, staging)
    return check_shares(done, total, "the model has no linear layers")


def _block(shapes: list[tuple[int, ...]]) -> int:
    """The width of the blocks: the largest that divides all matrices, else the usual one."""
    fitting = (block for block in BLOCKS if all(_divides(block, shape) for shape in shapes))
    return next(fitting, FP8_BLOCK)


def _divides(block: int, shape: tuple[int, ...]) -> bool:
    return all(size <= block or size % block == 0 for size in shape)


def _wanted(model: nn.Module) -> set[str]:
    """Names in the checkpoint of the weights that become FP8."""
    row, layers = find_layers(model), survey(model)
    names = hub_names(model, row)
    plain = {*layers.routers, *layers.unreachable}
    linear = {f"{name}.weight" for name in layers.linear if name not in plain}
    fused = re.compile(r"\.experts\.experts\.\d+\.")  # experts taken apart
    return {hub for name, hub in names.items() if name in linear or fused.search(name)}


def _write_config(job: QuantJob, kept: list[str], dtype: torch.dtype, block: int, staging: Path) -> None:
    config = json.loads((job.base / "config.json").read_text(encoding="utf-8"))
    for part in (config, config.get("text_config") or {}):
        part.pop("quantization_config", None)
    config["quantization_config"] = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [block, block],
        "modules_to_not_convert": sorted({"lm_head", *kept}),
    }
    config.pop("torch_dtype", None)
    config["dtype"] = str(dtype).removeprefix("torch.")
    runs.write_json(staging / "config.json", config)
