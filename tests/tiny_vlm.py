"""Tiny random checkpoints that see: a language model, a vision tower, and the processor that real ones of the family
have. Those here need no torchvision; `FAMILIES` differ in how pixels and placeholders are laid out.

llava: one placeholder, one tensor row for each image. gemma3: text around the placeholder, kinds of tokens.
idefics3: images by row and mask of pixels, tiles written as text. mllama: cross attention, nothing expanded.
qwen2_5_vl: patches in one row, tokens placed in space; its video part is there where torchvision is.
"""

from __future__ import annotations

from pathlib import Path

from tests import tiny

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}{% if p.type == 'image' %}IMAGE{% else %}{{ p.text }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = dict(
    vocab_size=640,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=1024,
    pad_token_id=0,
    bos_token_id=None,
    eos_token_id=2,
)
TOWER = dict(
    hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
)


def tokenizer(image: str = "<image>", **named: str):
    """`image` is what the template writes for an image; `named` are special tokens with a name of their own."""
    from transformers import PreTrainedTokenizerFast

    plain = tiny.tokenizer(None)
    tokens = [image, *named.values(), "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
    plain.add_tokens(list(dict.fromkeys(tokens)), special_tokens=True)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=plain.backend_tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=named,
    )
    fast.chat_template = TEMPLATE.replace("IMAGE", image)
    return fast


def llava(text: dict | None = None, tower: dict | None = None):
    import transformers as tf
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    t = tokenizer()
    config = tf.LlavaConfig(
        text_config=dict(TEXT, model_type="llama") | (text or {}),
        vision_config=dict(TOWER, model_type="clip_vision_model", projection_dim=16) | (tower or {}),
        image_token_index=t.convert_tokens_to_ids("<image>"),
    )
    edge = config.vision_config.image_size
    config.image_seq_length = (edge // config.vision_config.patch_size) ** 2
    images = CLIPImageProcessorPil(size={"shortest_edge": edge}, crop_size={"height": edge, "width": edge})
    settings = dict(patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1)
    return tf.LlavaForConditionalGeneration, config, tf.LlavaProcessor(images, t, **settings)


def gemma3():
    import transformers as tf
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    names = dict(boi_token="<start_of_image>", eoi_token="<end_of_image>", image_token="<image_soft_token>")
    t = tokenizer("<start_of_image>", **names)
    layers = ["sliding_attention", "full_attention"]
    config = tf.Gemma3Config(
        text_config=dict(TEXT, head_dim=16, sliding_window=32, query_pre_attn_scalar=16, layer_types=layers),
        vision_config=dict(TOWER, image_size=56),
        mm_tokens_per_image=4,
        boi_token_index=t.convert_tokens_to_ids(t.boi_token),
        eoi_token_index=t.convert_tokens_to_ids(t.eoi_token),
        image_token_index=t.convert_tokens_to_ids(t.image_token),
    )
    images = Gemma3ImageProcessorPil(size={"height": 56, "width": 56})
    return tf.Gemma3ForConditionalGeneration, config, tf.Gemma3Processor(images, t, image_seq_length=4)


def idefics3():
    import transformers as tf
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    t = tokenizer()
    config = tf.Idefics3Config(
        text_config=dict(TEXT, model_type="llama"),
        vision_config=dict(TOWER, image_size=56),
        image_token_id=t.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    size = {"longest_edge": 112}
    images = Idefics3ImageProcessorPil(size=size, max_image_size={"longest_edge": 56}, do_image_splitting=True)
    return tf.Idefics3ForConditionalGeneration, config, tf.Idefics3Processor(images, t, image_seq_len=4)


def mllama():
    import transformers as tf
    from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

    t = tokenizer("<|image|>", image_token="<|image|>")
    t.bos_token, t.chat_template = "<|endoftext|>", "<|endoftext|>" + t.chat_template
    vision = dict(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_global_layers=1,
        attention_heads=2,
        image_size=28,
        patch_size=14,
        vision_output_dim=32,
        intermediate_layers_indices=[0],
        max_num_tiles=2,
        supported_aspect_ratios=[[1, 1], [1, 2], [2, 1]],
    )
    config = tf.MllamaConfig(
        text_config=dict(TEXT, bos_token_id=1, cross_attention_layers=[1]),
        vision_config=vision,
        image_token_index=t.convert_tokens_to_ids("<|image|>"),
    )
    images = MllamaImageProcessorPil(size={"height": 28, "width": 28}, max_image_tiles=2)
    return tf.MllamaForConditionalGeneration, config, tf.MllamaProcessor(images, t)


def qwen2_audio():
    import transformers as tf

    t = tokenizer(
        "<|image|>", audio_token="<|AUDIO|>", audio_bos_token="<|audio_bos|>", audio_eos_token="<|audio_eos|>"
    )
    t.chat_template = TEMPLATE.replace("'image' %}IMAGE", "'audio' %}<|audio_bos|><|AUDIO|><|audio_eos|>")
    tower = dict(d_model=16, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=32, num_mel_bins=80)
    config = tf.Qwen2AudioConfig(
        text_config=dict(TEXT, model_type="qwen2"),
        audio_config=tower,
        audio_token_index=t.convert_tokens_to_ids("<|AUDIO|>"),
    )
    kind = tf.Qwen2AudioForConditionalGeneration
    return kind, config, tf.Qwen2AudioProcessor(tf.WhisperFeatureExtractor(feature_size=80), t)


# `MORE` are checked by slow tests.

MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
QWEN = dict(depth=2, num_heads=2, patch_size=14)


def _qwen_tokenizer():
    marks = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
    t = tokenizer("<|image_pad|>")
    t.add_tokens(marks, special_tokens=True)
    t.chat_template = t.chat_template.replace("<|image_pad|>", "<|vision_start|><|image_pad|><|vision_end|>").replace(
        "{% else %}{{ p.text }}",
        "{% elif p.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ p.text }}",
    )
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    return t, dict(zip(names, t.convert_tokens_to_ids(marks), strict=True))


def _qwen(name: str, vision: dict, patch: int = 14, **text):
    import transformers as tf
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
    from transformers.utils import is_torchvision_available

    from swift.compat.no_torchvision import NoVideo, images_without_torchvision

    t, ids = _qwen_tokenizer()
    t.image_token, t.video_token = "<|image_pad|>", "<|video_pad|>"
    text = dict(TEXT, num_key_value_heads=2, vocab_size=len(t), rope_parameters=MROPE, **text)
    config = getattr(tf, f"{name}Config")(text_config=text, vision_config=vision, **ids)
    images = Qwen2VLImageProcessorPil(patch_size=patch, min_pixels=28 * 28, max_pixels=56 * 84)
    videos = NoVideo()
    if is_torchvision_available():
        older = name in ("Qwen2VL", "Qwen2_5_VL")
        videos = (tf.Qwen2VLVideoProcessor if older else tf.Qwen3VLVideoProcessor)(patch_size=patch)
    with images_without_torchvision():
        processor = getattr(tf, f"{name}Processor")(image_processor=images, tokenizer=t, video_processor=videos)
    return getattr(tf, f"{name}ForConditionalGeneration"), config, processor


def qwen2_vl():
    return _qwen("Qwen2VL", dict(QWEN, embed_dim=32, hidden_size=32, mlp_ratio=2), hidden_size=32)


def qwen2_5_vl():
    vision = dict(QWEN, hidden_size=32, out_hidden_size=32, intermediate_size=64, window_size=56)
    return _qwen("Qwen2_5_VL", dict(vision, fullatt_block_indexes=[1]))


def qwen3_vl():
    vision = dict(depth=2, num_heads=2, patch_size=16, hidden_size=32, out_hidden_size=32, intermediate_size=64)
    vision |= dict(num_position_embeddings=64, deepstack_visual_indexes=[0, 1])
    rope = dict(MROPE, mrope_interleaved=True)
    kind, config, processor = _qwen("Qwen3VL", vision, patch=16, head_dim=16)
    config.text_config.rope_parameters = rope
    return kind, config, processor


def llava_next():
    import transformers as tf

    t = tokenizer()
    grid = [[28, 56], [56, 28]]
    config = tf.LlavaNextConfig(
        text_config=dict(TEXT, model_type="llama"),
        vision_config=dict(TOWER, model_type="clip_vision_model", projection_dim=16),
        image_token_index=t.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=grid,
    )
    size = dict(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    images = tf.LlavaNextImageProcessor(image_grid_pinpoints=grid, **size)
    settings = dict(patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1)
    return tf.LlavaNextForConditionalGeneration, config, tf.LlavaNextProcessor(images, t, **settings)


def pixtral():
    import transformers as tf

    t = tokenizer("[IMG]", image_break_token="[IMG_BREAK]", image_end_token="[IMG_END]")
    vision = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, head_dim=8)
    config = tf.LlavaConfig(
        text_config=dict(TEXT, model_type="llama"),
        vision_config=dict(vision, image_size=56, patch_size=14, model_type="pixtral"),
        image_token_index=t.convert_tokens_to_ids("[IMG]"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    images = tf.PixtralImageProcessor(size={"longest_edge": 56}, patch_size=14)
    return tf.LlavaForConditionalGeneration, config, tf.PixtralProcessor(images, t, patch_size=14)


MORE = {
    "qwen2_vl": qwen2_vl,
    "qwen3_vl": qwen3_vl,
    "llava_next": llava_next,
    "pixtral": pixtral,
}
FAMILIES = {
    "llava": llava,
    "gemma3": gemma3,
    "idefics3": idefics3,
    "mllama": mllama,
    "qwen2_5_vl": qwen2_5_vl,
}


def checkpoint(path: Path, family: str = "llava") -> Path:
    """Save a tiny model and its processor as a plain transformers directory; what it sees shows in its logits."""
    import torch

    kind, config, processor = (FAMILIES | MORE | {"qwen2_audio": qwen2_audio})[family]()
    torch.manual_seed(0)
    model = kind(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # gates and projections that begin at zero would see nothing
            if parameter.abs().sum() == 0 or "gate" in name.rpartition(".")[2]:
                parameter.normal_(std=0.3)
    model.save_pretrained(path)
    processor.chat_template = processor.tokenizer.chat_template
    processor.save_pretrained(path)
    return path


def sound(path: Path, seed: int = 0, seconds: float = 0.5, rate: int = 16000) -> str:
    """A wave file of noise."""
    import wave

    import numpy as np

    samples = np.random.default_rng(seed).integers(-8000, 8000, int(seconds * rate)).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
    return str(path)


def film(
    path: Path, frames: int = 20, rate: int = 10, shade: int = 0, size: tuple[int, int] = (64, 48), grain: int = 0
) -> str:
    """A video whose frames grow brighter from `shade` on, with noise of up to `grain` that depends on the shade."""
    import av
    import numpy as np

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height = size
        noise = np.random.default_rng(shade).integers(0, grain + 1, (size[1], size[0], 3))
        for i in range(frames):
            pixels = (shade + 10 * i + noise).clip(0, 255).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return str(path)


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (60, 40)) -> str:
    """A picture of noise, so that no two are alike."""
    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)
