"""The format that transformers itself makes while it loads, and saves: bitsandbytes (nf4, fp4, int8).

Which matrices: the linear layers outside of embeddings and head. It has no file format for fused experts:
`swift.export.quantize` refuses those.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from swift.export.merge import copy_companions
from swift.export.quantize import QuantJob, check_shares
from swift.models.quiet import quiet

log = logging.getLogger("swift")


def write(job: QuantJob, model: Any, staging: Path) -> float:
    """Write the directory; the share of the weights that were quantized. `model` is the plain one, for its sizes."""
    from swift.models.load import load_model

    total = sum(p.numel() for p in model.parameters())
    plain = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    sizes = {name: module.weight.numel() for name, module in model.named_modules() if name in plain}
    plan = replace(job.plan, quant=job.config.quantization, pack_experts=False, training=False)
    quantized = load_model(job.base, plan)
    done = sum(sizes[n] for n, m in quantized.named_modules() if n in sizes and is_quantized(m))
    staging.mkdir(parents=True)
    copy_companions(job.base, staging)
    with quiet():
        quantized.save_pretrained(staging, max_shard_size=job.config.export.max_shard_size)
    return check_shares(done, total, "the model has no linear layers outside of its head")


def is_quantized(module: nn.Module) -> bool:
    return type(module).__name__ in ("Linear8bitLt", "Linear4bit")
