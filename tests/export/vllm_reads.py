"""Run by a Python with vLLM: `vllm_reads.py DIRECTORY PROMPTS DTYPE` prints the ids that vLLM chooses greedily.

vLLM's own code finds the format, names, fuses and converts the weights. Where the processor lacks what its compiled
kernels need (AVX-512 for integers of 4 bits, AMX for FP8), the last step, the product, is taken in PyTorch instead, as
the kernel's description has it.
"""

import json
import os
import sys

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
import torch
from vllm import LLM, SamplingParams
from vllm.model_executor.kernels.linear import _POSSIBLE_FP8_BLOCK_KERNELS
from vllm.model_executor.kernels.linear.mixed_precision.cpu import CPUWNA16LinearKernel
from vllm.model_executor.kernels.linear.scaled_mm.cpu import CPUFp8BlockScaledMMKernel
from vllm.model_executor.layers.quantization.utils.quant_utils import unpack_quantized_values_into_int32
from vllm.platforms import PlatformEnum


def integers(kernel, layer):
    """The weight [inputs, outputs] of a layer as vLLM hands it to the kernel."""
    words, scales, zeros = kernel._get_weight_params(layer)[:3]
    kind = kernel.config.weight_type
    codes = unpack_quantized_values_into_int32(words.data, kind, 0)
    groups = scales.shape[0]
    if kernel.config.zero_points:
        middle = unpack_quantized_values_into_int32(zeros.data, kind, 1)
    else:
        middle = torch.full((groups, 1), kind.bias)
    each = codes.shape[0] // groups
    shifted = (codes.view(groups, each, -1) - middle[:, None]).float()
    return (shifted * scales.data.float()[:, None]).flatten(0, 1)


def without_kernel(kernel, layer, x, bias=None):
    return (x.float() @ integers(kernel, layer)).to(x.dtype) + (0 if bias is None else bias)


class Blocks(CPUFp8BlockScaledMMKernel):
    @classmethod
    def is_supported(cls, compute_capability=None):
        return True, None

    def process_weights_after_loading(self, layer):
        pass

    def apply_weights(self, layer, x, bias=None, **_):
        held = self._get_layer_params(layer)
        scales = held.weight_scale if held.weight_scale_inv is None else held.weight_scale_inv
        rows, columns = held.weight.shape
        tall, wide = self.weight_group_shape
        spread = scales.data.float().repeat_interleave(tall, 0)[:rows].repeat_interleave(wide, 1)[:, :columns]
        weight = held.weight.data.float() * spread
        return (x.float() @ weight.T).to(x.dtype) + (0 if bias is None else bias)


if not hasattr(torch.ops._C, "cpu_gemm_wna16"):
    CPUWNA16LinearKernel._process_gptq_weights_w4a16 = lambda self, layer: None
    CPUWNA16LinearKernel.apply_weights = without_kernel
if not CPUFp8BlockScaledMMKernel.is_supported()[0]:
    _POSSIBLE_FP8_BLOCK_KERNELS[PlatformEnum.CPU] = [Blocks]

folder, prompts, dtype = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
settings = dict(enforce_eager=True, max_model_len=128, max_num_seqs=1, gpu_memory_utilization=0.05)
engine = LLM(model=folder, dtype=dtype, **settings)
how = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
done = engine.generate([{"prompt_token_ids": ids} for ids in prompts], how, use_tqdm=False)
print("RESULT" + json.dumps([list(one.outputs[0].token_ids) for one in done]))
