"""Rows with images: the processor's own ids, the labels of the same conversation as text."""

from __future__ import annotations

import pytest

from swift.chat import ChatEncoder, RowDropped
from swift.chat.processing import Processed, Processing
from swift.errors import DataError, TemplateError
from tests.chat.templates import fitted

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}{% if p.type == 'image' %}<picture>{% else %}{{ p.text }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TALK = [
    {"role": "user", "content": "<image>What is this, and <image>this?"},
    {"role": "assistant", "content": "A cat. A dog."},
    {"role": "user", "content": "And <image>?"},
    {"role": "assistant", "content": "A cat. A dog."},
]


@pytest.fixture(scope="module")
def processor():
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    images = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    return LlavaProcessor(
        image_processor=images,
        tokenizer=fitted(TEMPLATE),
        patch_size=14,
        vision_feature_select_strategy="default",
        image_token="<picture>",
        num_additional_image_tokens=1,
    )


@pytest.fixture
def pictures(tmp_path):
    from PIL import Image

    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for i, path in enumerate(paths):
        Image.new("RGB", (40, 30), (80 * i, 0, 0)).save(path)
    return [str(path) for path in paths]


def test_ids_are_the_processors_and_labels_the_replies(processor, pictures):
    tok = processor.tokenizer
    encoder = ChatEncoder(tok, processor=processor)
    encoded = encoder.encode({"messages": TALK, "images": pictures})
    blocks = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this, and "},
                                     {"type": "image"}, {"type": "text", "text": "this?"}]},
        TALK[1],
        {"role": "user", "content": [{"type": "text", "text": "And "}, {"type": "image"},
                                     {"type": "text", "text": "?"}]},
        TALK[3],
    ]  # fmt: skip
    text = tok.apply_chat_template(blocks, tokenize=False)
    from PIL import Image

    opened = [Image.open(path) for path in pictures]
    reference = processor(text=[text], images=opened, add_special_tokens=False, return_tensors="pt")
    assert encoded.input_ids == reference["input_ids"][0].tolist()
    made = encoder.processor.run(encoded.media["text"], {"images": encoded.media["images"]})
    assert (made.tensors["pixel_values"] == reference["pixel_values"]).all()
    learned = [label for label in encoded.labels if label != -100]
    assert tok.decode(learned) == "A cat. A dog.<|im_end|>" * 2
    assert encoder.encode_batch([{"messages": TALK, "images": pictures}])[0][0].labels == encoded.labels


def test_media_are_counted_and_never_cut(processor, pictures):
    encoder = ChatEncoder(processor.tokenizer, processor=processor, max_length=20, truncation_strategy="right")
    with pytest.raises(RowDropped):
        encoder.encode({"messages": TALK, "images": pictures})
    with pytest.raises(DataError, match="places 3 images and lists 2"):
        encoder.encode({"messages": TALK, "images": pictures[:2]})
    found = ChatEncoder(processor.tokenizer).encode_batch([{"messages": TALK, "images": pictures}])[0]
    assert isinstance(found, DataError)


class PutsInWords(Processing):
    """What stands for the picture are ids that words have as well, and white space at the end is gone (Kosmos-2)."""

    def run(self, text, media):
        ids = self.processor.tokenizer(text)["input_ids"]
        at = ids.index(self.processor.tokenizer.convert_tokens_to_ids("<picture>"))
        self.put = [*ids[:3], *ids[-6:-2], *ids[:3]]
        return Processed([*ids[:at], *self.put, *ids[at:-1]], {}, None)


def test_ids_of_words_that_stand_for_a_picture_are_not_learned(processor, pictures):
    tok = processor.tokenizer
    talk = [{"role": "user", "content": "<image>What is this?"}, TALK[1]]
    row = {"messages": talk, "images": pictures[:1]}
    processing = PutsInWords.of(processor)
    encoded = ChatEncoder(tok, processor=processing).encode(row)
    assert tok.decode([label for label in encoded.labels if label != -100]) == "A cat. A dog.<|im_end|>"
    learned = [i for i, label in enumerate(encoded.labels) if label != -100]
    assert [encoded.input_ids[i] for i in learned] == [encoded.labels[i] for i in learned]
    assert set(processing.put) & {encoded.labels[i] for i in learned} and len(learned) < learned[0]

    class Changes(PutsInWords):
        def run(self, text, media):
            made = super().run(text, media)
            made.ids[1] += 1
            return made

    with pytest.raises(TemplateError, match="processor"):
        ChatEncoder(tok, processor=Changes.of(processor)).encode(row)
