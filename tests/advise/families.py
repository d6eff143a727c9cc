"""Settings of small models with experts and with latent attention."""

MOE = dict(moe_intermediate_size=24, num_experts=4, num_experts_per_tok=2)
LATENT = dict(
    kv_lora_rank=12,
    q_lora_rank=20,
    qk_nope_head_dim=16,
    qk_rope_head_dim=8,
    v_head_dim=14,
    num_key_value_heads=4,
    head_dim=8,
)
