"""Options of the guide and of ms-swift that this version knows and does not have. Typing one is an error that says so,
unless it is typed to be off.

Name -> topic; the topic's sentence stands in i18n under [planned]. `swift CMD --help` lists them at its end.
"""

from __future__ import annotations

TOPICS: dict[str, str] = {
    "encoding": "agent_template sequence_parallel_size is_binary_loss_scale disable_ignore_empty_think model_kwargs",
    "data": "download_mode disable_auto_column_mapping packing_num_proc packing_strategy decision_type",
    "heads": "reranker_use_activation mrl_dims metric eval_metric predict_with_generate center_rewards_coefficient",
    "loading": "local_repo_path init_strategy hqq_axis use_ray ray_exp_name device_groups enable_npu_model_patch",
    "tuners": "tuner_backend use_swift_lora "
    "vit_gradient_checkpointing lora_ga_batch_size lora_ga_iters lora_ga_max_length lora_ga_direction lora_ga_scale "
    "lora_ga_stable_gamma fourier_n_frequency fourier_scaling boft_block_size boft_block_num boft_n_butterfly_factor "
    "boft_dropout vera_rank vera_projection_prng_key vera_dropout vera_d_initial adapter_act adapter_length "
    "adalora_target_r adalora_init_r adalora_tinit adalora_tfinal adalora_deltaT adalora_beta1 adalora_beta2 "
    "adalora_orth_reg_weight llamapro_num_new_blocks llamapro_num_groups reft_layers reft_layer_key reft_rank "
    "reft_intervention_type reft_args use_galore galore_target_modules galore_rank galore_update_proj_gap galore_scale "
    "galore_proj_type galore_optim_per_parameter galore_with_embedding galore_quantization galore_proj_quant "
    "galore_proj_bits galore_proj_group_size galore_cos_threshold galore_gamma_proj galore_queue_size "
    "lisa_activated_layers lisa_step_interval",
    "training": "optimizer enable_dft_loss enable_channel_loss router_aux_loss_coef use_logits_to_keep "
    "use_flash_ckpt eval_use_evalscope dataset_batch_size "
    "accelerator_config parallelism_config tf32 log_on_each_node save_on_each_node enable_jit_checkpoint",
    "distributed": "deepspeed_autotp_size zero_hpz_partition_size ddp_bucket_cap_mb ddp_static_graph",
    "tracking": "swanlab_token swanlab_project swanlab_workspace swanlab_exp_name swanlab_mode "
    "swanlab_notification_method swanlab_webhook_url swanlab_secret swanlab_sender_email swanlab_receiver_email "
    "swanlab_smtp_server swanlab_smtp_port swanlab_email_language",
    "hub_push": "hub_strategy hub_always_push",
    "engines": "vllm_reasoning_parser sglang_enable_ep_moe structured_outputs_regex presence_penalty frequency_penalty",
    "quantize": "quant_batch_size to_mcore to_hf mcore_model "
    "mcore_adapter thread_count test_convert_precision test_convert_dtype save_missing_weights",
}

# Options whose other settings don't exist here: the one value is what always happens, so typing it is fine.
FIXED: dict[str, str] = {
    "safe_serialization": "true",
    "save_safetensors": "true",
    "template_backend": "jinja",
    "remove_unused_columns": "true",
    "vllm_use_async_engine": "true",
}

PLANNED: dict[str, str] = {name: topic for topic, names in TOPICS.items() for name in names.split()}
