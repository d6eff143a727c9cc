"""Quantizing while loading, layer by layer as the weights are read: bitsandbytes and torchao through transformers, FP8
by our own packing, the experts of mixtures by our own packing with each of them.

What stays as it is: embeddings, head, norms, routers, and layers whose weights the model reads past their forward.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

from swift.models.bnb import bitsandbytes_config
from swift.models.bypass import bypassed, cast_to, linear_by_another_name, odd_layers
from swift.models.packed import BLOCK, can_pack, fused_experts, pack
from swift.models.plan import LoadPlan
from swift.models.targets import routers

METHOD = "with_experts"  # ends the names that our quantizers are registered under


def on_load_config(plan: LoadPlan, skeleton: nn.Module) -> Any:
    """What `quantization_config=` gets. `skeleton`: the model without weights (on the meta device)."""
    from transformers.quantizers.base import get_keys_to_not_convert

    kept = [*get_keys_to_not_convert(skeleton), *bypassed(skeleton), *cast_to(skeleton)]
    kept += [*odd_layers(skeleton), *routers(skeleton)]
    made = {"bnb": bitsandbytes_config, "torchao": _torchao_config, "fp8": _fp8_config}[plan.quant.quant_method](
        plan, skeleton, kept
    )
    if plan.pack_experts:
        made.true_method, made.experts = made.quant_method, _kind(plan)
        made.quant_method = f"{plan.quant.quant_method}_{plan.quant.quant_bits}bit_{METHOD}"
        _register(made.quant_method, _base(plan))
    return made


def _kind(plan: LoadPlan) -> str:
    """How experts are packed; nearest to what the layers around them get."""
    if plan.quant.quant_method == "fp8":
        return "fp8"
    if plan.quant.quant_bits == 8:
        return "int8"
    return plan.quant.bnb_4bit_quant_type if plan.quant.quant_method == "bnb" else "int4"


def _torchao_config(plan: LoadPlan, skeleton: nn.Module, kept: list[str]) -> Any:
    """int8: a scale for every row. int4: groups of inputs; the layout that the device's kernel reads."""
    from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    if plan.quant.quant_bits == 8:
        return TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=kept)
    linear = [(name, m) for name, m in skeleton.named_modules() if isinstance(m, nn.Linear)]
    odd = [name for name, m in linear if m.in_features % BLOCK or m.out_features % 16]
    if plan.device.kind == "cpu":
        from torchao.prototype.quantization.int4.inference_workflow import PrototypeInt4WeightOnlyConfig

        _teach_dequantizing()
        settings = PrototypeInt4WeightOnlyConfig(group_size=BLOCK, set_inductor_config=False)
    else:
        settings = Int4WeightOnlyConfig(group_size=BLOCK, int4_packing_format="tile_packed_to_4d")
    return TorchAoConfig(settings, modules_to_not_convert=[*kept, *odd])


@functools.cache
def _teach_dequantizing() -> None:
    """torchao 0.18 can't give back the numbers of its int4 for processors (merging and DoRA need them): the layout is
    known to its kernel alone, so that multiplies a unit matrix.
    """
    from torchao.prototype.quantization.int4.int4_opaque_tensor import Int4OpaqueTensor

    def dequantize(function: Any, types: Any, args: Any, kwargs: Any) -> torch.Tensor:
        unit = torch.eye(args[0].shape[-1], dtype=args[0].dtype)
        return nn.functional.linear(unit, args[0]).T.contiguous()

    Int4OpaqueTensor.implements([torch.ops.aten.dequantize.self])(dequantize)


def _fp8_config(plan: LoadPlan, skeleton: nn.Module, kept: list[str]) -> Any:
    from transformers.utils.quantization_config import QuantizationConfigMixin

    made = QuantizationConfigMixin(quant_method="fp8")
    made.modules_to_not_convert = kept
    return made


def _base(plan: LoadPlan) -> type:
    from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
    from transformers.quantizers.quantizer_bnb_8bit import Bnb8BitHfQuantizer
    from transformers.quantizers.quantizer_torchao import TorchAoHfQuantizer

    if plan.quant.quant_method == "bnb":
        return Bnb8BitHfQuantizer if plan.quant.quant_bits == 8 else Bnb4BitHfQuantizer
    return TorchAoHfQuantizer if plan.quant.quant_method == "torchao" else _packing_quantizer()


def _register(name: str, base: type) -> None:
    """Teach transformers a quantizer that packs fused experts too, layer by layer while they are read, and quantizes
    linear layers whose class has another name.
    """
    from transformers.quantizers import auto

    if name not in auto.AUTO_QUANTIZER_MAPPING:
        auto.register_quantizer(name)(_with_experts(base))


def _packing_quantizer() -> type:
    from transformers.quantizers.base import HfQuantizer

    class Packing(HfQuantizer):
        """Linear layers with a PackedWeight."""

        def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
            owner, _, leaf = param_name.rpartition(".")
            kept = owner in self.quantization_config.modules_to_not_convert
            return leaf == "weight" and not kept and type(model.get_submodule(owner)) is nn.Linear

        def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
            pass

        def get_quantize_ops(self) -> None:
            return None  # WithExperts packs them

        def is_serializable(self) -> bool:
            return False

    return Packing


def _with_experts(base: type) -> type:
    class WithExperts(base):
        """The quantizer of transformers, and experts as PackedWeight."""

        @property
        def is_trainable(self) -> bool:
            return True  # adapters train over all of them

        def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
            return param_name in self.experts or super().param_needs_quantization(model, param_name, **kwargs)

        def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
            kind = self.quantization_config.experts
            names = fused_experts(model)
            shapes = {name: model.get_parameter(name) for name in names}
            self.experts = {name: kind for name in names if can_pack(shapes[name], kind)}
            for layer in linear_by_another_name(model):
                layer.__class__ = nn.Linear  # transformers quantizes this very class only
            super()._process_model_before_weight_loading(model, **kwargs)

        def get_quantize_ops(self) -> Any:
            return _quantize_operation(self, super().get_quantize_ops())

        def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
            self.quantization_config.quant_method = self.quantization_config.true_method
            return super()._process_model_after_weight_loading(model, **kwargs)

    return WithExperts


def _quantize_operation(quantizer: Any, of_linear_layers: Any) -> Any:
    """`of_linear_layers`: the library's own operation, None where linear layers are packed as experts are."""
    from transformers.core_model_loading import ConversionOps

    class Quantize(ConversionOps):
        def convert(self, input_dict: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
            result = {}
            for name, value in input_dict.items():
                needed = quantizer.param_needs_quantization(kwargs["model"], name)
                if name in quantizer.experts or (needed and of_linear_layers is None):
                    value = value[0] if isinstance(value, list) else value
                    packed = pack(value, quantizer.quantization_config.experts)
                    result[name] = nn.Parameter(packed, requires_grad=False)
                elif needed:
                    result |= of_linear_layers.convert({name: value}, **kwargs)
                else:
                    result[name] = value
            return result

    return Quantize()


def after_loading(model: nn.Module, plan: LoadPlan) -> None:
    """Let layers of unusual shapes compute, and let no one take a quantized layer for a plain one."""
    from swift.models.bnb import any_shape
    from swift.models.quantized import mark_quantized

    if plan.source_quant == "bitsandbytes" or (plan.quant is not None and plan.quant.quant_method == "bnb"):
        any_shape(model, plan.training)
    elif plan.quant is not None:
        mark_quantized(model)
