"""Requests with images: greedy answers are those of transformers' generate, whatever runs beside them."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
import torch

from swift.chat import ChatEncoder
from swift.chat.medium import read_image
from swift.data.media import reference_of
from swift.engines.protocol import GenerationRequest, PromptTooLong, Sampling, generate, generate_all
from swift.engines.pt import PtEngine
from swift.engines.wire import Dialect, ask_messages
from swift.errors import DataError
from swift.models.load import load_processor
from tests import tiny_vlm

GREEDY = Sampling(max_new_tokens=12, temperature=0.0)


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in tiny_vlm.MORE]


@pytest.fixture(scope="module", params=[*tiny_vlm.FAMILIES, *SLOW])
def family(request, tmp_path_factory):
    from transformers import AutoModelForImageTextToText

    if request.param == "pixtral":
        pytest.importorskip("torchvision")
    path = tiny_vlm.checkpoint(tmp_path_factory.mktemp(request.param), request.param)
    model = AutoModelForImageTextToText.from_pretrained(path).eval()
    return load_processor(path), model


@pytest.fixture
def talks(tmp_path):
    pictures = [tiny_vlm.picture(tmp_path / f"{i}.png", i, size) for i, size in enumerate([(60, 40), (30, 70)])]
    a, b = ({"type": "image", "image": picture} for picture in pictures)
    return [
        [{"role": "user", "content": [a, {"type": "text", "text": "What is this?"}]}],
        [{"role": "user", "content": [{"type": "text", "text": "Who are you?"}]}],
        [{"role": "user", "content": [a, {"type": "text", "text": "and"}, b, {"type": "text", "text": "two?"}]}],
    ]


def wanted(processor, model, talk):
    talk = [{**m, "content": [seen(part) for part in m["content"]]} for m in talk]
    inputs = processor.apply_chat_template(
        [talk], tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=12, pad_token_id=0)
    return ids[0, inputs["input_ids"].shape[1] :].tolist()


def seen(part):
    return {"type": "image", "image": read_image(part["image"])} if part["type"] == "image" else part


def test_greedy_answers_are_those_of_generate(family, talks):
    processor, model = family
    engine = PtEngine(model, processor.tokenizer, ChatEncoder(processor.tokenizer, processor=processor))
    try:
        expected = [wanted(processor, model, talk) for talk in talks]
        requests = [GenerationRequest(messages=talk, sampling=GREEDY) for talk in [*talks, *talks]]
        found = [list(result.token_ids) for result in generate_all(engine, requests)]
        assert found == [*expected, *expected]
        assert expected[0] != expected[1]
    finally:
        engine.close()


def test_a_models_own_generate_answers_and_may_take_pixels_first(talks):
    kind, config, processor = tiny_vlm.llava()
    processor.chat_template = processor.tokenizer.chat_template
    torch.manual_seed(0)
    plain = kind(config).eval()
    first = wanted(processor, plain, talks[0])[0]

    class Own(kind):
        def generate(self, pixel_values=None, input_ids=None, attention_mask=None, **kwargs):
            kwargs |= {"pixel_values": pixel_values, "attention_mask": attention_mask, "suppress_tokens": [first]}
            return super().generate(input_ids, **kwargs)

    model = Own(config).eval()
    model.load_state_dict(plain.state_dict())
    expected = wanted(processor, model, talks[0])
    assert first not in expected
    engine = PtEngine(model, processor.tokenizer, ChatEncoder(processor.tokenizer, processor=processor))
    try:
        assert list(generate(engine, GenerationRequest(messages=talks[0], sampling=GREEDY)).token_ids) == expected
    finally:
        engine.close()


def test_what_can_t_be_answered_fails_alone(family, talks, tmp_path):
    processor, model = family
    encoder = ChatEncoder(processor.tokenizer, processor=processor)
    engine = PtEngine(model, processor.tokenizer, encoder, prompt_limit=16, truncation="left")
    try:
        with pytest.raises(PromptTooLong):
            generate(engine, GenerationRequest(messages=talks[2], sampling=GREEDY))
        gone = [{"role": "user", "content": [{"type": "image", "image": str(tmp_path / "gone.png")}]}]
        with pytest.raises(DataError, match="gone.png"):
            generate(engine, GenerationRequest(messages=gone, sampling=GREEDY))
    finally:
        engine.close()


def test_servers_elsewhere_are_sent_media_as_the_api_has_them(tmp_path):
    picture, sound = tiny_vlm.picture(tmp_path / "a.png"), tiny_vlm.sound(tmp_path / "a.wav")
    blocks = [
        {"type": "image", "image": picture},
        {"type": "video", "video": "https://example.com/a.mp4"},
        {"type": "audio", "audio": sound},
        {"type": "text", "text": "What?"},
    ]
    body = ask_messages(Dialect("http"), "m", [{"role": "user", "content": blocks}], None, Sampling())
    image, video, audio, text = body["messages"][0]["content"]
    head, _, data = image["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64" and base64.b64decode(data) == Path(picture).read_bytes()
    assert video == {"type": "video_url", "video_url": {"url": "https://example.com/a.mp4"}}
    assert audio["type"] == "input_audio" and audio["input_audio"]["format"] == "wav"
    assert base64.b64decode(audio["input_audio"]["data"]) == Path(sound).read_bytes()
    assert text == {"type": "text", "text": "What?"}
    assert reference_of(image["image_url"]) == image["image_url"]["url"]
