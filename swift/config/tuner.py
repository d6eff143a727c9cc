"""The section that says which parameters train: LoRA and its variants, full fine-tuning, freezing."""

from __future__ import annotations

from dataclasses import dataclass

from swift.config.options import option


@dataclass(frozen=True)
class TunerOptions:
    tuner_type: str = option("lora", choices=("lora", "full"), aliases=("train_type", "sft_type", "finetuning_type"))
    target_modules: tuple[str, ...] = option(
        ("all-linear",),
        aliases=("lora_target_modules", "lora_target"),
        values={"ALL": "all-linear", "all": "all-linear"},
    )
    target_regex: str | None = option(aliases=("lora_target_regex",))
    target_parameters: tuple[str, ...] = option((), aliases=("lora_target_parameters",))
    modules_to_save: tuple[str, ...] = option((), aliases=("lora_modules_to_save", "additional_target"))
    lora_rank: int = option(8, low=1, aliases=("lora_r", "r"))
    lora_alpha: float = option(32, low=0)
    lora_dropout: float = option(0.05, low=0.0, high=1.0, aliases=("lora_dropout_p",))
    lora_bias: str = option("none", choices=("none", "all", "lora_only"), aliases=("lora_bias_trainable",))
    lora_dtype: str | None = option(
        choices=("float32", "bfloat16", "float16"),
        values={"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "AUTO": None},
    )
    lorap_lr_ratio: float | None = option(low=0, aliases=("lora_lr_ratio", "loraplus_lr_ratio"))
    use_rslora: bool = option(False)
    use_dora: bool = option(False)
    init_weights: str = option("true", aliases=("init_lora_weights",))
    freeze_llm: bool = option(False)
    freeze_vit: bool = option(True, aliases=("freeze_vision_tower",))
    freeze_aligner: bool = option(True, aliases=("freeze_multi_modal_projector",))
    freeze_parameters: tuple[str, ...] = option(())
    freeze_parameters_regex: str | None = option()
    freeze_parameters_ratio: float = option(0.0, low=0.0, high=1.0)
    trainable_parameters: tuple[str, ...] = option((), aliases=("additional_trainable_parameters",))
    trainable_parameters_regex: str | None = option()
