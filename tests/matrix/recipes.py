"""What a tiny model that sees or hears needs beside shrunk sizes: how many tokens a picture takes, how a placeholder is
wrapped, which sizes must agree.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from tests.matrix.shapes import tower

EDGE, PATCH = 28, 14


@dataclass(frozen=True)
class Recipe:
    """config: fields over the shrunk ones, "text.NAME" and "vision.NAME" for those of a part; image, video, audio:
    settings of the processors; processor: of the whole; wrap: what the template writes in the place of a medium, {}
    being its placeholder; begins: what it begins with; tokens: special tokens by the name under which the processor
    asks for them ("": by none); ids: tokens by the field of the config that holds their id; added: tokens without a
    name; kind: the processor's class where transformers lists none. without: media that plain transformers itself
    can't take here; alone: whether rows can't stand in one batch; texts: whether it takes talks without media. A value
    that is a function gets the tokenizer.
    """

    config: dict[str, Any] = field(default_factory=dict)
    image: dict[str, Any] = field(default_factory=dict)
    video: dict[str, Any] = field(default_factory=dict)
    audio: dict[str, Any] = field(default_factory=dict)
    processor: dict[str, Any] = field(default_factory=dict)
    wrap: dict[str, str] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    alone: bool = False
    begins: str = ""
    texts: bool = True
    ids: dict[str, str] = field(default_factory=dict)
    kind: str = ""
    added: list[str] = field(default_factory=list)


_MROPE = {"text.rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}}
_ROPE4 = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2, 2]}
_GRID = [[EDGE, EDGE], [EDGE, 2 * EDGE], [2 * EDGE, EDGE]]
_LLAVA = {"patch_size": PATCH, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
_WIDE = {"height": 2 * EDGE, "width": 2 * EDGE}
_TILES = {"size": {"longest_edge": 56}, "max_image_size": {"longest_edge": 56}, "do_image_splitting": False}
_QWEN3 = Recipe(video={"patch_size": PATCH}, wrap=dict.fromkeys(("image", "video"), "<|vision_start|>{}<|vision_end|>"))
_SMALL = {"size": {"shortest_edge": EDGE}, "crop_size": {"height": EDGE, "width": EDGE}}
_MEL = {"vision.num_mel_bins": 80}
_IN_VIDEO = "<|begin_of_video|>{}<|end_of_video|>"
_VIDEO_ENDS = {"video_start_token_id": "<|begin_of_video|>", "video_end_token_id": "<|end_of_video|>"}
_GLM = Recipe(config=_MROPE, wrap={"video": _IN_VIDEO}, ids=_VIDEO_ENDS, alone=True)
_OCR = {  # pictures of 64 pixels: 4 x 4 patches, one place after the convolutions
    "vision.sam_config.image_size": 64,
    "vision.sam_config.patch_size": 16,
    "vision.sam_config.downsample_channels": [48, 32],
    "vision.sam_config.global_attn_indexes": [1],
    "text.mlp_layer_types": ["dense", "sparse"],
    "text.num_experts_per_tok": 2,
}
_SQUARE = {"height": 64, "width": 64}
_SLICES = {"scale_resolution": 56, "max_slice_nums": 1}
_MINICPM = Recipe(
    config={"vision.image_size": 448, "vision.insert_layer_id": 0, "insert_layer_id": 0},
    image=_SLICES,
    video={**_SLICES, "max_num_frames": 4},
)
_BLIP = Recipe(
    config={"num_query_tokens": 4},
    processor={"num_query_tokens": 4},
    wrap={"image": ""},
    tokens={"image_token": "", "video_token": ""},
    ids={f"{sense}_token_index": f"<{sense}>" for sense in ("image", "video")},
    texts=False,
)
_CODES = {"vq_config.base_channels": 32, "vq_config.channel_multiplier": [1, 1], "vq_config.num_res_blocks": 1}
_OMNI = {
    **_MROPE,
    "text.max_position_embeddings": 2048,
    **{f"{part}.output_dim": 64 for part in ("audio_config", "vision_config")},
    "vision_config.fullatt_block_indexes": [1],
    "vision_config.deepstack_visual_indexes": [0, 1],
    "vision_config.num_position_embeddings": 64,
    "audio_config.num_mel_bins": 128,
    "vision_start_token_id": lambda tokenizer: tokenizer.convert_tokens_to_ids("<|vision_start|>"),
}
_VISUAL = [f"<|visual token {i:06d}|>" for i in range(32)]


def _codes(count: int) -> list[str]:
    """Chameleon's names of a picture's codes: digits written as letters."""
    return ["IMGIMG" + "".join(chr(ord("A") + int(digit)) for digit in str(i)) + "Z" for i in range(count)]


def _vocabulary(tokenizer: Any, names: list[str]) -> dict[str, int]:
    return dict(zip(names, tokenizer.convert_tokens_to_ids(names), strict=True))


_OMNI_WRAP = {**_QWEN3.wrap, "audio": "<|audio_start|>{}<|audio_end|>"}
RECIPES: dict[str, Recipe] = {
    "aria": Recipe(),
    "aya_vision": Recipe(
        config={"vision.image_size": 56, "downsample_factor": 2},
        image={"size": _WIDE, "crop_to_patches": False},
        processor={"patch_size": PATCH, "img_size": 56, "downsample_factor": 2},
        ids={"image_token_index": "<|IMG_PATCH|>"},
    ),
    "exaone4_5": Recipe(),
    "gemma3": Recipe(
        config={"vision.image_size": 56, "mm_tokens_per_image": 4},
        image={"size": _WIDE},
        processor={"image_seq_length": 4},
        wrap={"image": "<boi>"},
        ids={"image_token_index": "<image>"},
    ),
    "glm46v": _GLM,
    "glm4v": _GLM,
    "glm5_next": Recipe(wrap={"video": _IN_VIDEO}, ids=_VIDEO_ENDS),
    "glmasr": Recipe(config=_MEL),
    "idefics2": Recipe(),
    "idefics3": Recipe(
        config={"vision.image_size": 56, "scale_factor": 2}, image=_TILES, processor={"image_seq_len": 4}
    ),
    "inkling2": Recipe(),
    "internvl": Recipe(
        config={"vision.image_size": [EDGE, EDGE], "vision.patch_size": [PATCH, PATCH], "image_seq_length": 1},
        image={"crop_to_patches": False},
        processor={"image_seq_length": 1},
    ),
    "lfm3_vl": Recipe(video={"patch_size": PATCH}),
    "lighton_ocr": Recipe(),
    "llava": Recipe(processor=_LLAVA),
    "llava_next": Recipe(
        config={"image_grid_pinpoints": _GRID}, image={"image_grid_pinpoints": _GRID}, processor=_LLAVA
    ),
    "llava_next_video": Recipe(
        config={"image_grid_pinpoints": _GRID}, image={"image_grid_pinpoints": _GRID}, processor=_LLAVA
    ),
    "llava_onevision": Recipe(
        config={"image_grid_pinpoints": _GRID},
        image={"image_grid_pinpoints": _GRID},
        processor={"num_image_tokens": 4, "vision_feature_select_strategy": "full"},
    ),
    "mistral3": Recipe(
        config={"spatial_merge_size": 2, "vision.image_size": 56},
        image={"patch_size": PATCH, "size": {"longest_edge": 56}},
        processor={"patch_size": PATCH, "spatial_merge_size": 2},
    ),
    "mllama": Recipe(
        config={
            "text.cross_attention_layers": [1],
            "vision.attention_heads": 2,
            "vision.num_global_layers": 1,
            "vision.vision_output_dim": 64,
            "vision.intermediate_layers_indices": [0],
            "vision.max_num_tiles": 2,
            "vision.supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
        },
        image={"max_image_tiles": 2},
        begins="<|endoftext|>",
        alone=True,
    ),
    "moss_transcribe_diarize": Recipe(),
    "ovis2": Recipe(
        image={"crop_to_patches": False},
        processor={"image_seq_length": 4},
        tokens={f"{name.lower()}_token": f"<IMG_{name}>" for name in ("START", "ATOM", "GRID", "COL", "ROW", "END")},
        ids={"image_token_id": "<IMG_ATOM>"},
    ),
    "paddleocr_vl": Recipe(config=_MROPE),
    "paligemma": Recipe(
        config={"projection_dim": 64, "vision.projection_dim": 64}, image={"image_seq_length": 4}, texts=False
    ),
    "qwen2_5_vl": Recipe(config={**_MROPE, "vision.fullatt_block_indexes": [1]}, wrap=_QWEN3.wrap),
    "qwen2_audio": Recipe(config=_MEL),
    "qwen2_vl": Recipe(config={**_MROPE, "vision.hidden_size": 64}, wrap=_QWEN3.wrap),
    "qwen3_5": _QWEN3,
    "qwen3_5_moe": _QWEN3,
    "qwen3_asr": Recipe(config={"vision.output_dim": 64}),
    "qwen3_vl": _QWEN3,
    "qwen3_vl_moe": _QWEN3,
    "qwen4_exp": _QWEN3,
    "smolvlm": Recipe(
        config={"vision.image_size": 56, "scale_factor": 2},
        image=_TILES,
        video={"size": {"longest_edge": 56}, "max_image_size": {"longest_edge": 56}},
        processor={"image_seq_len": 4},
    ),
    "video_llama_3": Recipe(),
    "video_llava": Recipe(image=_SMALL, video=_SMALL, processor=_LLAVA),
    "vipllava": Recipe(config={"vision_feature_layers": [-1, -2]}, processor=_LLAVA),
    "blip-2": _BLIP,
    "instructblip": _BLIP,
    "instructblipvideo": replace(_BLIP, wrap={"video": ""}),
    "cohere2_vision": Recipe(image={"patch_size": 1, "crop_to_patches": False}),
    "cohere_compass": Recipe(video={"patch_size": PATCH}),
    "deepseek_ocr2": Recipe(
        config={**_OCR, "vision.sam_config.image_size": 768},
        image={"size": dict.fromkeys(_WIDE, 768), "tile_size": 768, "crop_to_patches": False},
    ),
    "deepseek_vl": Recipe(processor={"num_image_tokens": 4}),
    "deepseek_vl_hybrid": Recipe(
        config={"high_res_vision_config.image_size": 56, "high_res_vision_config.global_attn_indexes": [1]},
        image={"high_res_size": _WIDE},
        processor={"num_image_tokens": 4},
    ),
    "ernie4_5_vl_moe": Recipe(
        config={"text.rope_parameters": {"rope_type": "default", "rope_theta": 5e5, "mrope_section": [3, 3, 2]}},
        video={"draw_on_frames": False},
    ),
    "glm4v_moe": replace(
        _GLM, config={"text.rope_parameters": _MROPE["text.rope_parameters"] | {"partial_rotary_factor": 1.0}}
    ),
    "glm_ocr": replace(_GLM, kind="Glm46VProcessor"),
    "glmga": replace(_GLM, kind="Glm46VProcessor"),
    "granite4_vision": Recipe(
        config={
            "image_grid_pinpoints": _GRID,
            "deepstack_layer_map": [[-1, 0]],
            "spatial_target_layers": [0, 0, 1, 1],
            "downsample_rate": "1/2",
            "vision.hidden_size": 64,
        },
        image={"image_grid_pinpoints": _GRID},
        processor=_LLAVA,
    ),
    "granite_docling": Recipe(
        config={"vision.image_size": 56, "vision.deepstack_visual_indexes": [0, 0, 1]},
        image={"size": _WIDE, "crop_to_patches": False},
        processor={"image_seq_len": 1},
    ),
    "hunyuan_vl": Recipe(
        config={"text.head_dim": 16, "text.rope_parameters": _ROPE4},
        image={"patch_size": PATCH},
        wrap={"image": "<image_start>{}<image_end>"},
    ),
    "hyperclovax_vision_v2": Recipe(),
    "kimi_k25": Recipe(config={"projection_hidden_size": 32}, without=("video",)),
    "lfm2_vl": Recipe(
        config={"vision.patch_size": 16, "projector_hidden_size": 64},
        image={"do_image_splitting": False, "min_image_tokens": 4, "max_image_tokens": 16, "max_num_patches": 64},
    ),
    "llama4": Recipe(
        config={
            "vision.intermediate_size": 128,
            **{f"vision.{name}": 64 for name in ("projector_input_dim", "projector_output_dim", "vision_output_dim")},
        },
        ids={"image_token_index": "<|patch|>"},
    ),
    "minimax_m3_vl": Recipe(config={"projector_hidden_size": 64}),
    "mistral_large4": Recipe(
        config={"spatial_merge_size": 2, "vision.image_size": 56},
        image={"patch_size": PATCH, "size": {"longest_edge": 56}},
        processor={"patch_size": PATCH, "spatial_merge_size": 2},
    ),
    "qianfan_ocr": Recipe(
        config={"vision.image_size": [EDGE, EDGE], "vision.patch_size": [PATCH, PATCH], "image_seq_length": 1},
        image={"crop_to_patches": False},
        processor={"image_seq_length": 1},
        ids={"image_token_id": "<context_image>"},
        wrap={"image": "<image>"},
    ),
    "step3p7": Recipe(
        config={
            "vision.image_size": 112,
            "text.share_expert_dim": 32,
            "text.sliding_window": 32,
            "projector_bias": False,
        },
        image={"size": {"height": 112, "width": 112}, "patch_size": 56},
    ),
    "unlimited_ocr": Recipe(
        config={**_OCR, "vision.encoder_config.image_size": 64, "vision.encoder_config.patch_size": 64},
        image={"size": _SQUARE, "tile_size": 64},
    ),
    "chameleon": Recipe(
        config={
            **_CODES,
            "vq_config.num_embeddings": 32,
            "vocabulary_map": lambda tokenizer: _vocabulary(tokenizer, [*_codes(32), "<image>"]),
        },
        processor={"image_seq_length": 196},
        added=_codes(32),
    ),
    "emu3": Recipe(
        config={
            **_CODES,
            "vq_config.channel_multiplier": [1, 1, 1, 1],
            "vq_config.codebook_size": 32,
            "vocabulary_map": lambda tokenizer: _vocabulary(tokenizer, [*_VISUAL, "<image>", "<|extra_200|>"]),
        },
        image={"min_pixels": EDGE * EDGE, "max_pixels": 4096},
        added=[*_VISUAL, "<|extra_200|>"],
    ),
    "idefics": Recipe(wrap={"image": ""}, texts=False),
    "janus": Recipe(
        config={
            **_CODES,
            "vq_config.num_embeddings": 32,
            "vision.num_image_tokens": 4,
            "vision.projection_dim": 64,
            "vq_config.image_token_embed_dim": 32,
        },
        processor={"num_image_tokens": 4},
    ),
    "kosmos-2": Recipe(
        config={"text.layers": 2, "text.attention_heads": 4}, kind="Kosmos2Processor", wrap={"image": ""}, texts=False
    ),
    "kosmos-2.5": Recipe(
        config={"text.layers": 2, "text.attention_heads": 4, "latent_query_num": 4},
        kind="Kosmos2_5Processor",
        texts=False,
    ),
    "qwen2_5_omni_thinker": Recipe(
        config=_OMNI, audio={"feature_size": 128}, kind="Qwen2_5OmniProcessor", wrap=_OMNI_WRAP
    ),
    "qwen3_omni_moe_thinker": Recipe(
        config=_OMNI, audio={"feature_size": 128}, kind="Qwen3OmniMoeProcessor", wrap=_OMNI_WRAP
    ),
    "cosmos3_edge": Recipe(image={"patch_size": PATCH}, video={"patch_size": PATCH}, without=("video",)),
    "gemma4": Recipe(
        config={
            "vision_config": lambda _: tower("gemma4_vision", patch_size=16, position_embedding_size=1024),
            "audio_config": lambda _: tower("gemma4_audio"),
        },
        video={"num_frames": 4},
    ),
    "gemma4_unified": Recipe(
        config={
            "vision_config": lambda _: tower(
                "gemma4_unified_vision", mm_embed_dim=32, output_proj_dims=32, mm_posemb_size=256, patch_size=16
            ),
            "audio_config": lambda _: tower("gemma4_unified_audio"),
        },
        video={"num_frames": 4},
    ),
    "inkling_mm_model": Recipe(config={"vision.n_layers": 2, "vision.hidden_size": 64}),
    "minicpm_ocr": _MINICPM,
    "minicpmv4_6": _MINICPM,
    "minicpmv4_7": _MINICPM,
    "molmo2": Recipe(config={"adapter_config.vision_feature_layer": [-1, -2]}, image={"overlap_margins": [0, 0]}),
    "muse_glimmer": Recipe(config={"out_hidden_size": 128, "projector_hidden_size": 64}, without=("video",)),
    "vibevoice_asr": Recipe(
        config={
            f"{part}_tokenizer_encoder_config.{name}": value
            for part in ("acoustic", "semantic")
            for name, value in (("num_filters", 2), ("depths", [1] * 7), ("vae_std", 0.0))
        }
    ),
    "voxtral": Recipe(config={"vision.num_mel_bins": 80}),
    "granite_speech": Recipe(),
    "perception_lm": Recipe(
        config={
            "vision.architecture": "vit_pe_core_large_patch14_336",
            "vision.do_pooling": False,
            "vision.model_args": {
                "embed_dim": 32,
                "depth": 2,
                "num_heads": 2,
                "img_size": [EDGE, EDGE],
                "global_pool": "",
                "use_post_transformer_norm": False,
                "init_values": 0.1,
                "ref_feat_shape": [2, 2],
            },
        },
        processor={"patch_size": PATCH, "pooling_ratio": 1},
        without=("video",),
    ),
}
