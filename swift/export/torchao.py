"""torchao's int8 weights (one scale a row, activations stay as they are) in its own safetensors layout, which plain
transformers reads where torchao is installed; torch.compile makes it fast.

Which matrices: the linear layers outside of embeddings and head. It has no file format for fused experts:
`swift.export.quantize` refuses those.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from swift.export.merge import copy_companions
from swift.export.quantize import QuantJob, check_shares
from swift.models.quiet import quiet


@torch.no_grad()
def write(job: QuantJob, model: Any, staging: Path) -> float:
    """Write the directory; the share of the weights that were quantized. The model is quantized in place."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_
    from transformers import TorchAoConfig
    from transformers.quantizers.auto import AutoHfQuantizer

    head = model.get_output_embeddings()
    kept = [name for name, module in model.named_modules() if module is head]
    total = sum(p.numel() for p in model.parameters())
    layers = [m for m in model.modules() if isinstance(m, nn.Linear) and m is not head]
    done = sum(layer.weight.numel() for layer in layers)
    share = check_shares(done, total, "the model has no linear layers outside of its head")
    quantize_(model, Int8WeightOnlyConfig(), filter_fn=lambda module, name: module in layers)
    settings = TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=kept)
    model.config.quantization_config = settings
    model.hf_quantizer = AutoHfQuantizer.from_config(settings, pre_quantized=False)
    staging.mkdir(parents=True)
    copy_companions(job.base, staging)
    with quiet():
        model.save_pretrained(staging, max_shard_size=job.config.export.max_shard_size)
    return share
