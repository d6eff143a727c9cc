"""Loading in 8 or 4 bits with bitsandbytes: what is quantized and what isn't, and layers whose shapes its kernels
don't take.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from swift.hub.resources import human_bytes
from swift.models.bypass import bypassed, cast_to, linear_by_another_name, odd_layers
from swift.models.packed import BLOCK, PackedExperts, can_pack, fused_experts, pack
from swift.models.plan import LoadPlan
from swift.models.targets import routers

METHOD = "bitsandbytes_and_experts"  # the name that our quantizers are registered under, with the bits


def bitsandbytes_config(plan: LoadPlan, skeleton: torch.nn.Module):
    """What `quantization_config=` gets. `skeleton`: the model without weights (on the meta device)."""
    from transformers import BitsAndBytesConfig
    from transformers.quantizers.base import get_keys_to_not_convert

    quant = plan.quant
    kept = [*get_keys_to_not_convert(skeleton), *bypassed(skeleton), *cast_to(skeleton)]
    kept += [*odd_layers(skeleton), *routers(skeleton)]
    if quant.quant_bits == 4 and plan.device.kind == "cpu":  # whose kernel reads rows that end within a block wrongly
        kept += [n for n, m in skeleton.named_modules() if isinstance(m, torch.nn.Linear) and m.in_features % BLOCK]
    if quant.quant_bits == 8:
        made = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
    else:
        storage = quant.bnb_4bit_quant_storage
        made = BitsAndBytesConfig(
            load_in_4bit=True,
            llm_int8_skip_modules=kept,
            bnb_4bit_compute_dtype=getattr(torch, quant.bnb_4bit_compute_dtype or plan.dtype),
            bnb_4bit_quant_type=quant.bnb_4bit_quant_type,
            bnb_4bit_use_double_quant=quant.bnb_4bit_use_double_quant,
            bnb_4bit_quant_storage=getattr(torch, storage) if storage else None,
        )
    if plan.pack_experts:
        _register()
        made.quant_method = f"{METHOD}_{quant.quant_bits}bit"
    return made


def _register() -> None:
    """Teach transformers quantizers that pack fused experts too, layer by layer while they are read, and quantize
    linear layers whose class has another name.
    """
    from transformers.quantizers import auto
    from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
    from transformers.quantizers.quantizer_bnb_8bit import Bnb8BitHfQuantizer

    for bits, base in ((8, Bnb8BitHfQuantizer), (4, Bnb4BitHfQuantizer)):
        name = f"{METHOD}_{bits}bit"
        if name not in auto.AUTO_QUANTIZER_MAPPING:
            auto.register_quantizer(name)(_with_experts(base))


def _with_experts(base: type) -> type:
    class WithExperts(base):
        """The quantizer of transformers, and experts as PackedExperts."""

        def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
            return param_name in self.experts or super().param_needs_quantization(model, param_name, **kwargs)

        def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
            config = self.quantization_config
            kind = "int8" if config.load_in_8bit else config.bnb_4bit_quant_type
            names = fused_experts(model)
            shapes = {name: model.get_parameter(name) for name in names}
            self.experts = {name: kind for name in names if can_pack(shapes[name], kind)}
            for layer in linear_by_another_name(model):
                layer.__class__ = torch.nn.Linear  # transformers quantizes this very class only
            super()._process_model_before_weight_loading(model, **kwargs)

        def get_quantize_ops(self) -> Any:
            return _quantize_operation(self, super().get_quantize_ops())

        def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
            self.quantization_config.quant_method = QuantizationMethod.BITS_AND_BYTES
            return super()._process_model_after_weight_loading(model, **kwargs)

    from transformers.utils.quantization_config import QuantizationMethod

    return WithExperts


def _quantize_operation(quantizer: Any, of_linear_layers: Any) -> Any:
    from transformers.core_model_loading import ConversionOps

    class Quantize(ConversionOps):
        def convert(self, input_dict: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
            result = {}
            for name, value in input_dict.items():
                kind = quantizer.experts.get(name)
                if kind is not None:
                    value = value[0] if isinstance(value, list) else value
                    result[name] = torch.nn.Parameter(pack(value, kind), requires_grad=False)
                elif quantizer.param_needs_quantization(kwargs["model"], name):
                    result |= of_linear_layers.convert({name: value}, **kwargs)
                else:
                    result[name] = value
            return result

    return Quantize()


def any_shape(model: torch.nn.Module, training: bool) -> None:
    """Let every quantized layer of a loaded model take the inputs that a plain one takes.

    8 bits: bitsandbytes flattens inputs of three dimensions only; the multi-head latent attention of DeepSeek and its
    kin has four. 4 bits: its CPU kernel repacks weights whose rows are a multiple of 32 and whose columns one of the
    block size, and fails on others instead of computing without it; once it has repacked a layer (in the first
    evaluation of a training, say), no gradient passes through that layer any more. And it reads a transposed input
    as if it weren't (Mamba's layers get such).
    """
    import bitsandbytes as bnb

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

    class Linear4bit(bnb.nn.Linear4bit):
        """The layer of bitsandbytes for inputs in any order in memory."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.contiguous())

    return Linear8bitLt, Linear4bit


def dequantize(model: torch.nn.Module, dtype: str) -> None:
    """Make a model that bitsandbytes quantized a plain one, whose weights are those that its numbers stand for."""
    import bitsandbytes as bnb
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight

    from swift.models.load import forget_quantization

    wanted = getattr(torch, dtype)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt)):
            plain = torch.nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
            weight = dequantize_bnb_weight(layer.weight, getattr(layer, "state", None))
            plain.weight = torch.nn.Parameter(weight.to(wanted), requires_grad=False)
            plain.bias = layer.bias
            model.set_submodule(name, plain)
    packed = [name for name, parameter in model.named_parameters() if isinstance(parameter, PackedExperts)]
    for name in packed:
        owner, _, leaf = name.rpartition(".")
        plain = torch.nn.Parameter(model.get_parameter(name).plain().to(wanted), requires_grad=False)
        setattr(model.get_submodule(owner), leaf, plain)
    forget_quantization(model)


def quantized_weights(model: torch.nn.Module) -> tuple[int, int]:
    """(weights that are held in few bits, all other weights of the model)."""
    import bitsandbytes as bnb

    layers = [m for m in model.modules() if isinstance(m, (bnb.nn.Linear8bitLt, bnb.nn.Linear4bit))]
    packed = {id(m.weight): m.in_features * m.out_features for m in layers}
    packed |= {id(p): p.numel() for p in model.parameters() if isinstance(p, PackedExperts)}
    kept = sum(p.numel() for p in model.parameters() if id(p) not in packed)
    return sum(packed.values()), kept


def weight_bytes(model: torch.nn.Module) -> int:
    """Bytes of all weights as they are held."""
    tensors = [*model.parameters(), *model.buffers()]
    held = sum(t.packed_bytes if isinstance(t, PackedExperts) else t.nbytes for t in tensors)
    states = [getattr(p, "quant_state", None) for p in model.parameters()]
    held += sum(s.absmax.nbytes for s in states if s is not None)
    return held + sum(p.SCB.nbytes for p in model.parameters() if getattr(p, "SCB", None) is not None)


def quantized_share(model: torch.nn.Module) -> str:
    """What was really quantized, and how much memory the weights take, as a sentence."""
    quantized, kept = quantized_weights(model)
    share = 100 * quantized / (quantized + kept)
    left = sum(model.get_parameter(name).numel() for name in fused_experts(model) if not _packed(model, name))
    note = f"; experts ({100 * left / (quantized + kept):.0f} %) stay in {model.dtype}" if left else ""
    held, plain = weight_bytes(model), (quantized + kept) * torch.empty(0, dtype=model.dtype).element_size()
    too = ", experts included" if any(isinstance(p, PackedExperts) for p in model.parameters()) else ""
    said = f"{share:.0f} % of the weights are quantized{too}{note}: {human_bytes(held)} instead of {human_bytes(plain)}"
    return said.replace("torch.", "")


def _packed(model: torch.nn.Module, name: str) -> bool:
    return isinstance(model.get_parameter(name), PackedExperts)
