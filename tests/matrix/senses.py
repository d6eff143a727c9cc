"""A tiny processor for any architecture of transformers that sees or hears, and the tokens that its config names.

The processor's parts are those that transformers lists for the model type, with every size made small; its special
tokens are those that its source reads or writes. What can't be found so (how many tokens a picture takes, how a
placeholder is wrapped) stands in tests.matrix.recipes.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

from tests import tiny
from tests.matrix.recipes import EDGE, RECIPES, Recipe

TEMPLATE = (
    "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}{% if p.type == 'image' %}IMAGE{% elif p.type == 'video' %}VIDEO"
    "{% elif p.type == 'audio' %}AUDIO{% else %}{{ p.text }}{% endif %}{% endfor %}"
    "{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_NAMED = re.compile(r"tokenizer(?:\.|, *\")(\w+_token)(?:_id)?\b")
_WRITTEN = re.compile(r"(?:self\.|\b)(\w+_token|[A-Z_]+_TOKEN) = \"([^\"\s{}]+)\"\n")
_LITERAL = re.compile(r"\"(<[^<>\"\s{}]{1,40}>|\[[A-Z_]{2,20}\]|\|[A-Z]+\|)\"")
_ORDINARY = {f"{name}_token" for name in ("add_bos", "add_eos", "bos", "eos", "pad", "unk", "cls", "sep", "mask")}
PARTS = {
    "image": ("image_processor",),
    "video": ("video_processor",),
    "audio": ("feature_extractor", "audio_processor"),
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

    name = recipe_of(model_type).kind or PROCESSOR_MAPPING_NAMES.get(model_type)
    return getattr(transformers, name) if name else None


def _source(kind: type) -> str:
    modules = dict.fromkeys(inspect.getmodule(one) for one in kind.__mro__ if ".models." in one.__module__)
    return "\n".join(inspect.getsource(module) for module in modules)


def tokenizer_for(kind: type, recipe: Recipe):
    """The tiny tokenizer with the special tokens that the processor's source reads (by name) and writes."""
    from transformers import PreTrainedTokenizerFast

    source = _source(kind)
    named = {name: f"<{name.removesuffix('_token')}>" for name in _NAMED.findall(source) if name not in _ORDINARY}
    named |= {name.lower(): token for name, token in _WRITTEN.findall(source) if name.lower() not in _ORDINARY}
    named = {name: token for name, token in (named | recipe.tokens).items() if token}
    plain = tiny.tokenizer(None)
    literal = [found for found in _LITERAL.findall(source) if found != "<s>"]
    plain.add_tokens([*dict.fromkeys([*named.values(), *literal, *recipe.added, "<|unused|>"])], special_tokens=True)
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
        if part == "qformer_tokenizer":
            found[part] = tiny.tokenizer(None)
        if part not in tables:
            continue
        if part == "video_processor" and not is_torchvision_available():
            found[part] = NoVideo()
            continue
        table, over = tables[part]
        name = table.get(model_type) or _of_sibling(model_type, table)
        if isinstance(name, dict):
            name = name.get("torchvision" if is_torchvision_available() else "pil")
        if name is None:
            name = _named_in(model_type, "".join(word.capitalize() for word in part.split("_")))
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

    own = processor_class(model_type).__name__
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
            if not match or not isinstance(value, int | None) or isinstance(value, bool):
                continue
            stem = match[1]
            if value is None and stem not in PARTS:
                continue
            if f"{stem}_token" in _ORDINARY or stem in ("decoder_start", "forced_bos", "forced_eos"):
                continue
            token = token_of(name, stem)
            if isinstance(token, str) or value is not None:
                found[name] = tokenizer.convert_tokens_to_ids(token) if isinstance(token, str) else unused
        return found

    return named
