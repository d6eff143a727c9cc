"""From the options of `swift sft`, a model and a machine to the plain values that the estimate takes."""

from __future__ import annotations

from swift.advise.machines import Machine, uses_glibc
from swift.advise.memory import ITEM, Training, weight_bytes
from swift.advise.model_facts import ModelFacts
from swift.advise.rows import RowFacts
from swift.advise.spread import Spread
from swift.config.commands import SftConfig
from swift.config.model import DEQUANTIZED, ON_LOAD
from swift.errors import UsageError
from swift.train.deepspeed_options import read_deepspeed, stage
from swift.train.fsdp_options import read_fsdp


def dtype_of(config: SftConfig, facts: ModelFacts, machine: Machine) -> tuple[str, str]:
    """(dtype, why) of the computation."""
    if config.model.torch_dtype:
        return config.model.torch_dtype, "--torch_dtype"
    if machine.dtype == "float32" and weight_bytes(facts.shape, "float32") > 0.9 * machine.memory:
        return "bfloat16", "float32 would not fit"
    return machine.dtype, f"at home on {machine.name}"


def training_of(config: SftConfig, facts: ModelFacts, machine: Machine, data: RowFacts) -> Training:
    """What `estimate` takes. `config` is decided (see `decide_sft`); UsageError for what can't be planned."""
    tuner, training, quant = config.tuner, config.training, config.quantization
    dtype, _ = dtype_of(config, facts, machine)
    bits = weight_bits(config)
    full = tuner.tuner_type == "full"
    if full and bits:
        raise UsageError("quantized weights can't be trained", where="--tuner_type full", fix="--tuner_type lora")
    length = config.chat.max_length or 2048
    if data.exact:
        length = min(length, data.longest)
    all_known = data.exact and not data.assumed and len(data.lengths) == data.rows
    mixed = training.bf16 or training.fp16
    return Training(
        dtype=dtype,
        batch=training.per_device_train_batch_size,
        length=length,
        accumulation=training.gradient_accumulation_steps or 1,
        full=full,
        rank=tuner.lora_rank,
        targets=tuner.target_modules,
        modules_to_save=tuner.modules_to_save,
        dropout=tuner.lora_dropout,
        dora=tuner.use_dora,
        adapter_dtype=tuner.lora_dtype or "float32",
        trainable_share=1.0 - tuner.freeze_parameters_ratio,
        mixed=ITEM[dtype] < 4 if mixed is None else mixed,
        checkpointing=bool(training.gradient_checkpointing),
        fused=bool(training.fused_layers),
        light=training.recompute == "light",
        optimizer=training.optim,
        weight_bits=bits,
        double_quant=quant.bnb_4bit_use_double_quant,
        attention=config.model.attn_impl or "sdpa",
        lean_head=bool(training.lean_head),
        label_share=data.answer_share,
        longest=data.lengths[: -training.per_device_train_batch_size - 1 : -1]
        if training.padding_free and all_known
        else (),
        # rows that stand one behind the other need no mask
        rows_differ=not training.padding_free and (data.assumed or len(set(data.lengths)) > 1),
        spread=spread_of(config, machine),
        device=machine.kind,
        glibc=machine.kind == "cpu" and uses_glibc(),
    )


def spread_of(config: SftConfig, machine: Machine) -> Spread:
    """What --deepspeed and --fsdp share between the processes, and what leaves the device for main memory."""
    zero, fsdp = read_deepspeed(config), read_fsdp(config)
    apart = machine.kind not in ("cpu", "mps")  # there main memory is the device's
    if fsdp is not None:
        offload = apart and str(fsdp.settings.get("cpu_offload")).lower() == "true"
        return Spread(machine.count, "fsdp", 3, offload, offload)
    if zero is None:
        return Spread(machine.count)
    cut = zero.get("zero_optimization") or {}
    places = [(cut.get(name) or {}).get("device", "none") for name in ("offload_optimizer", "offload_param")]
    return Spread(machine.count, "deepspeed", stage(zero), *(apart and place in ("cpu", "nvme") for place in places))


def weight_bits(config: SftConfig) -> int:
    """8 or 4 when the model is quantized while it is loaded, else 0."""
    method, bits = config.quantization.quant_method, config.quantization.quant_bits
    return (bits or ON_LOAD[method][0]) if method in ON_LOAD else 0


def stored_bytes(facts: ModelFacts, training: bool, machine: Machine) -> int | None:
    """Bytes of weights that stay quantized as the checkpoint has them; None when they become plain ones."""
    if facts.quantization is None:
        return None
    dense = facts.quantization in DEQUANTIZED and (training or machine.kind != "cuda")
    return None if dense else facts.stored_bytes
