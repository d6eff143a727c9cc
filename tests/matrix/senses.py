"""A tiny processor for any architecture of transformers that sees or hears, and the tokens that its config names.

The processor's parts are those that transformers lists for the model type, with every size made small; its special
tokens are those that its source reads or writes. What can't be found so (how many tokens a picture takes, how a
placeholder is wrapped) stands in RECIPES.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests import tiny

EDGE, PATCH = 28, 14
TEMPLATE = (
    "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}{% if p.type == 'image' %}IMAGE{% elif p.type == 'video' %}VIDEO"
    "{% elif p.type == 'audio' %}AUDIO{% else %}{{ p.text }}{% endif %}{% endfor %}"
    "{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_NAMED = re.compile(r"tokenizer(?:\.|, *\")(\w+_token)(?:_id)?\b")
_LITERAL = re.compile(r"\"(<[^<>\"\s{}]{1,40}>|\[[A-Z_]{2,20}\]|\|[A-Z]+\|)\"")
_ORDINARY = {f"{name}_token" for name in ("add_bos", "add_eos", "bos", "eos", "pad", "unk", "cls", "sep", "mask")}
PARTS = {
    "image": ("image_processor",),
    "video": ("video_processor",),
    "audio": ("feature_extractor", "audio_processor"),
}


@dataclass(frozen=True)
class Recipe:
    """config: fields over the shrunk ones, "text.NAME" and "vision.NAME" for those of a part; image, video, audio:
    settings of the processors; processor: of the whole; wrap: what the template writes in the place of a medium, {}
    being its placeholder; begins: what it begins with; tokens: special tokens by the name under which the processor
    asks for them; ids: tokens by the field of the config that holds their id. without: media that plain transformers
    itself can't take here; alone: whether rows can't stand in one batch; texts: whether it takes talks without media.
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


_MROPE = {"text.rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}}
_GRID = [[EDGE, EDGE], [EDGE, 2 * EDGE], [2 * EDGE, EDGE]]
_LLAVA = {"patch_size": PATCH, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
_WIDE = {"height": 2 * EDGE, "width": 2 * EDGE}
_TILES = {"size": {"longest_edge": 56}, "max_image_size": {"longest_edge": 56}, "do_image_splitting": False}
_QWEN3 = Recipe(video={"patch_size": PATCH}, wrap=dict.fromkeys(("image", "video"), "<|vision_start|>{}<|vision_end|>"))
_SMALL = {"size": {"shortest_edge": EDGE}, "crop_size": {"height": EDGE, "width": EDGE}}
_MEL = {"vision.num_mel_bins": 80}
_IN_VIDEO = "<|begin_of_video|>{}<|end_of_video|>"
_VIDEO_ENDS = {"video_start_token_id": "<|begin_of_video|>", "video_end_token_id": "<|end_of_video|>"}
_GLM = Recipe(config=_MROPE, wrap={"video": _IN_VIDEO}, ids=_VIDEO_ENDS)
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
}


def recipe_of(model_type: str) -> Recipe:
    return RECIPES.get(model_type, Recipe())


def sees(model_type: str) -> bool:
    """Whether transformers has a processor and a class for the whole model, and a tiny processor is known here."""
    return model_type in RECIPES


def kinds_of(model_type: str) -> list[str]:
    """Which of image, video and audio the processor takes here (videos need torchvision)."""
    from transformers.utils import is_torchvision_available

    kind, without = processor_class(model_type), recipe_of(model_type).without
    without = without if is_torchvision_available() else (*without, "video")
    return [sense for sense, parts in PARTS.items() if sense not in without and {*parts} & {*kind.get_attributes()}]


def processor_class(model_type: str) -> type | None:
    import transformers
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    name = PROCESSOR_MAPPING_NAMES.get(model_type)
    return getattr(transformers, name) if name else None


def _source(kind: type) -> str:
    modules = dict.fromkeys(inspect.getmodule(one) for one in kind.__mro__ if ".models." in one.__module__)
    return "\n".join(inspect.getsource(module) for module in modules)


def tokenizer_for(kind: type, recipe: Recipe):
    """The tiny tokenizer with the special tokens that the processor's source reads (by name) and writes."""
    from transformers import PreTrainedTokenizerFast

    source = _source(kind)
    named = {name: f"<{name.removesuffix('_token')}>" for name in _NAMED.findall(source) if name not in _ORDINARY}
    named |= recipe.tokens
    plain = tiny.tokenizer(None)
    literal = [found for found in _LITERAL.findall(source) if found != "<s>"]
    plain.add_tokens([*dict.fromkeys([*named.values(), *literal, "<|unused|>"])], special_tokens=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=plain.backend_tokenizer,
        eos_token="<|im_end|>",
        bos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        extra_special_tokens=named,
    )


def small_settings(kind: type, over: dict[str, Any]) -> dict[str, Any]:
    """Sizes of an image, video or audio processor made small, after the pattern of its defaults."""
    settings: dict[str, Any] = {}
    for name, size in (("size", EDGE), ("crop_size", EDGE), ("max_image_size", EDGE), ("tile_size", EDGE)):
        default = getattr(kind, name, None)
        keys = set(default) if hasattr(default, "keys") else set()
        if keys == {"shortest_edge", "longest_edge"} and default["shortest_edge"] >= 2000:
            settings[name] = {"shortest_edge": EDGE * EDGE, "longest_edge": 2 * EDGE * 3 * EDGE}
        elif keys:
            settings[name] = dict.fromkeys(keys, size)
        elif isinstance(default, int) and not isinstance(default, bool):
            settings[name] = size
    for name, value in (("min_pixels", EDGE * EDGE), ("max_pixels", 6 * EDGE * EDGE)):
        if getattr(kind, name, None) is not None:
            settings[name] = value
    return settings | over


def parts_for(model_type: str, kind: type, recipe: Recipe) -> dict[str, Any]:
    """The processors that the whole holds, by the name of its argument; LookupError when transformers lists none."""
    import transformers
    from transformers.models.auto.feature_extraction_auto import FEATURE_EXTRACTOR_MAPPING_NAMES
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
    from transformers.models.auto.video_processing_auto import VIDEO_PROCESSOR_MAPPING_NAMES
    from transformers.utils import is_torchvision_available

    from swift.compat.no_torchvision import NoVideo

    tables = {
        "image_processor": (IMAGE_PROCESSOR_MAPPING_NAMES, recipe.image),
        "video_processor": (VIDEO_PROCESSOR_MAPPING_NAMES, recipe.video),
        "feature_extractor": (FEATURE_EXTRACTOR_MAPPING_NAMES, recipe.audio),
        "audio_processor": (FEATURE_EXTRACTOR_MAPPING_NAMES, recipe.audio),
    }
    found: dict[str, Any] = {}
    for part in kind.get_attributes():
        if part not in tables:
            continue
        if part == "video_processor" and not is_torchvision_available():
            found[part] = NoVideo()
            continue
        table, over = tables[part]
        name = table.get(model_type) or _of_sibling(model_type, table)
        if isinstance(name, dict):
            name = name.get("torchvision" if is_torchvision_available() else "pil")
        if name is None and part == "video_processor":
            name = _named_in(model_type, "VideoProcessor")
        if name is None:
            raise LookupError(f"transformers lists no {part} for {model_type}")
        made = getattr(transformers, name)
        found[part] = made(**small_settings(made, over))
        if "image_seq_length" in over:  # an attribute that PaliGemma's processor reads
            found[part].image_seq_length = over["image_seq_length"]
    return found


def _of_sibling(model_type: str, table: dict[str, Any]) -> Any:
    """What transformers lists for another model type that has the same processor."""
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    own = PROCESSOR_MAPPING_NAMES.get(model_type)
    return next(
        (table[name] for name, other in PROCESSOR_MAPPING_NAMES.items() if other == own and name in table), None
    )


def _named_in(model_type: str, ending: str) -> str | None:
    import transformers

    name = transformers.CONFIG_MAPPING[model_type].__name__.removesuffix("Config") + ending
    return name if hasattr(transformers, name) else None


def processor_for(model_type: str):
    """The whole processor, with a chat template that places media."""
    from swift.compat.no_torchvision import images_without_torchvision

    recipe = RECIPES.get(model_type, Recipe())
    kind = processor_class(model_type)
    tokenizer = tokenizer_for(kind, recipe)
    with images_without_torchvision():
        made = kind(**parts_for(model_type, kind, recipe), tokenizer=tokenizer, **recipe.processor)
    text = recipe.begins + TEMPLATE
    for sense in ("image", "video", "audio"):
        token = getattr(made, f"{sense}_token", None) or getattr(tokenizer, f"{sense}_token", None) or f"<{sense}>"
        text = text.replace(sense.upper(), recipe.wrap.get(sense, "{}").replace("{}", str(token)))
    made.chat_template = tokenizer.chat_template = text
    return made


def naming(processor: Any, ids: dict[str, str]) -> Callable[[Any], dict[str, int]]:
    """For a config: its fields that are ids of tokens -> ids in this tokenizer, of the same name or the same sense."""
    tokenizer = processor.tokenizer
    unused = tokenizer.convert_tokens_to_ids("<|unused|>")

    def token_of(name: str, stem: str) -> str | None:
        if name in ids:
            return ids[name]
        token = getattr(processor, f"{stem}_token", None) or getattr(tokenizer, f"{stem}_token", None)
        if isinstance(token, str) or re.search("start|end|begin|bo[iva]|eo[iva]|bos|eos|sep", stem):
            return token
        sense = next((s for s in ("video", "audio", "image") if s in stem), None)
        return getattr(processor, f"{sense}_token", None) if sense else None

    def named(config: Any) -> dict[str, int]:
        found = {}
        for name, value in vars(config).items():
            match = re.fullmatch(r"(\w+?)_token(?:_id|_index)?", name)
            if not match or not isinstance(value, int) or isinstance(value, bool):
                continue
            stem = match[1]
            if f"{stem}_token" in _ORDINARY or stem in ("decoder_start", "forced_bos", "forced_eos"):
                continue
            token = token_of(name, stem)
            found[name] = tokenizer.convert_tokens_to_ids(token) if isinstance(token, str) else unused
        return found

    return named
