"""Loading in 8 or 4 bits with bitsandbytes: its settings, and layers whose shapes its kernels don't take."""

from __future__ import annotations

import functools
import logging
from typing import Any

import torch

from swift.models.packed import BLOCK
from swift.models.plan import LoadPlan


def bitsandbytes_config(plan: LoadPlan, skeleton: torch.nn.Module, kept: list[str]) -> Any:
    """What transformers' quantizer gets. `skeleton`: the model without weights (on the meta device). `kept`: names of
    layers that stay as they are.
    """
    from transformers import BitsAndBytesConfig

    quant = plan.quant
    if quant.quant_bits == 4 and plan.device.kind == "cpu":  # whose kernel reads rows that end within a block wrongly
        odd = [n for n, m in skeleton.named_modules() if isinstance(m, torch.nn.Linear) and m.in_features % BLOCK]
        kept = [*kept, *odd]
    if quant.quant_bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
    storage = quant.bnb_4bit_quant_storage
    return BitsAndBytesConfig(
        load_in_4bit=True,
        llm_int8_skip_modules=kept,
        bnb_4bit_compute_dtype=getattr(torch, quant.bnb_4bit_compute_dtype or plan.dtype),
        bnb_4bit_quant_type=quant.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=quant.bnb_4bit_use_double_quant,
        bnb_4bit_quant_storage=getattr(torch, storage) if storage else None,
    )


def any_shape(model: torch.nn.Module, training: bool) -> None:
    """Let every quantized layer of a loaded model take the inputs that a plain one takes.

    8 bits: bitsandbytes flattens inputs of three dimensions only; the multi-head latent attention of DeepSeek and its
    kin has four. 4 bits: its CPU kernel repacks weights whose rows are a multiple of 32 and whose columns one of the
    block size, and fails on others instead of computing without it; once it has repacked a layer (in the first
    evaluation of a training, say), no gradient passes through that layer any more. And it reads a transposed input
    as if it weren't (Mamba's layers get such).
    """
    import bitsandbytes as bnb

    # which says at each product in 8 bits that it is one of float16
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    eight, four = _layer_classes()
    for layer in model.modules():
        if type(layer) is bnb.nn.Linear8bitLt:
            layer.__class__ = eight
        elif type(layer) is bnb.nn.Linear4bit:
            layer.__class__ = four
            block = layer.weight.quant_state.blocksize if layer.weight.quant_state is not None else 64
            if training or layer.out_features % 32 or layer.in_features % block:
                layer.support_avx512bf16_for_cpu = False


@functools.cache
def _layer_classes() -> tuple[type, type]:
    import bitsandbytes as bnb

    class Linear8bitLt(bnb.nn.Linear8bitLt):
        """The layer of bitsandbytes for inputs of any number of dimensions."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.ndim <= 3:
                return super().forward(x)
            return super().forward(x.flatten(0, -2)).unflatten(0, x.shape[:-1])

        def init_8bit_state(self) -> None:
            """peft's DoRA makes the weight anew at every step, without the scales, which the first one left in the
            state: they stay there.
            """
            scales = self.state.SCB
            super().init_8bit_state()
            if self.state.SCB is None:
                self.state.SCB = scales

    class Linear4bit(bnb.nn.Linear4bit):
        """The layer of bitsandbytes for inputs in any order in memory."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.contiguous())

    return Linear8bitLt, Linear4bit
