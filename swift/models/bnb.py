"""Loading in 8 or 4 bits with bitsandbytes: what is quantized and what isn't, and layers whose shapes its kernels
don't take.
"""

from __future__ import annotations

import torch

from swift.models.plan import LoadPlan


def bitsandbytes_config(plan: LoadPlan, skeleton: torch.nn.Module):
    """What `quantization_config=` gets. `skeleton`: the model without weights (on the meta device)."""
    from transformers import BitsAndBytesConfig
    from transformers.quantizers.base import get_keys_to_not_convert

    from swift.models.bypass import bypassed

    quant = plan.quant
    kept = [*get_keys_to_not_convert(skeleton), *bypassed(skeleton)]
    if quant.quant_bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        llm_int8_skip_modules=kept,
        bnb_4bit_compute_dtype=getattr(torch, quant.bnb_4bit_compute_dtype or plan.dtype),
        bnb_4bit_quant_type=quant.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=quant.bnb_4bit_use_double_quant,
        bnb_4bit_quant_storage=getattr(torch, quant.bnb_4bit_quant_storage) if quant.bnb_4bit_quant_storage else None,
    )


def any_shape(model: torch.nn.Module) -> None:
    """Let every quantized layer of a loaded model take the inputs that a plain one takes.

    8 bits: bitsandbytes flattens inputs of three dimensions only; the multi-head latent attention of DeepSeek and its
    kin has four. 4 bits: its CPU kernel repacks weights whose rows are a multiple of 32 and whose columns one of the
    block size, and fails on others instead of computing without it.
    """
    import bitsandbytes as bnb

    for layer in model.modules():
        if type(layer) is bnb.nn.Linear8bitLt:
            layer.__class__ = _int8_layer()
        elif isinstance(layer, bnb.nn.Linear4bit):
            block = layer.weight.quant_state.blocksize if layer.weight.quant_state is not None else 64
            if layer.out_features % 32 or layer.in_features % block:
                layer.support_avx512bf16_for_cpu = False


def _int8_layer() -> type:
    global _Int8
    if _Int8 is None:
        import bitsandbytes as bnb

        class Linear8bitLt(bnb.nn.Linear8bitLt):
            """The layer of bitsandbytes for inputs of any number of dimensions."""

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                if x.ndim <= 3:
                    return super().forward(x)
                return super().forward(x.flatten(0, -2)).unflatten(0, x.shape[:-1])

        _Int8 = Linear8bitLt
    return _Int8


_Int8: type | None = None


def quantized_weights(model: torch.nn.Module) -> tuple[int, int]:
    """(weights that bitsandbytes holds in few bits, all other weights of the model)."""
    import bitsandbytes as bnb

    packed = [m for m in model.modules() if isinstance(m, (bnb.nn.Linear8bitLt, bnb.nn.Linear4bit))]
    quantized = sum(m.in_features * m.out_features for m in packed)
    return quantized, sum(p.numel() for p in model.parameters()) - sum(m.weight.numel() for m in packed)


def quantized_share(model: torch.nn.Module) -> str:
    """What bitsandbytes really quantized, as a sentence: it passes over embeddings, the head and fused experts."""
    quantized, kept = quantized_weights(model)
    share = 100 * quantized / (quantized + kept)
    experts = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 3 and ".experts." in name)
    note = (
        f"; the experts ({100 * experts / (quantized + kept):.0f} %) stay in {model.dtype}: bitsandbytes can't"
        if experts
        else ""
    )
    return f"bitsandbytes quantized {share:.0f} % of the weights{note}".replace("torch.", "")
