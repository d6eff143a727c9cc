"""Rows with audio through a real audio processor, and videos decoded and sampled."""

from __future__ import annotations

import base64
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from swift.chat import ChatEncoder
from swift.chat.medium import MediaSettings, read_audio, read_image, smaller
from swift.chat.video import own_decoding, read_video
from swift.data.collate import PadCollator
from swift.data.encode import encode_rows
from swift.data.media_batch import MediaCollator
from swift.data.report import DataReport
from swift.data.rows import Rows
from swift.engines.protocol import GenerationRequest, Sampling, generate
from swift.engines.pt import PtEngine
from swift.errors import DataError
from tests import tiny_vlm


@pytest.fixture(scope="module")
def hearing(tmp_path_factory):
    from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration

    path = tiny_vlm.checkpoint(tmp_path_factory.mktemp("audio"), "qwen2_audio")
    return AutoProcessor.from_pretrained(path), Qwen2AudioForConditionalGeneration.from_pretrained(path).eval()


def test_audio_rows_are_the_processors_and_text_stands_beside_them(hearing, tmp_path):
    processor, model = hearing
    sounds = [tiny_vlm.sound(tmp_path / f"{i}.wav", i, 0.3 + i, rate) for i, rate in enumerate((16000, 8000))]
    reply = {"role": "assistant", "content": "A dog."}
    rows = [
        {"messages": [{"role": "user", "content": "<audio>What is said?"}, reply], "audios": sounds[:1]},
        {"messages": [{"role": "user", "content": "Is <audio> like <audio>?"}, reply], "audios": sounds},
        {"messages": [{"role": "user", "content": "Who are you?"}, reply]},
    ]
    encoder = ChatEncoder(processor.tokenizer, processor=processor)
    examples = encode_rows(Rows.of(rows), encoder, report=DataReport())
    batch = MediaCollator(PadCollator(0), encoder.processor)([examples[i] for i in range(3)])
    mark = "<|audio_bos|><|AUDIO|><|audio_eos|>"
    texts = [
        f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\nA dog.<|im_end|>\n"
        for asked in (f"{mark}What is said?", f"Is {mark} like {mark}?", "Who are you?")
    ]
    waves = [read_audio(sound, 16000) for sound in (sounds[0], *sounds)]
    assert abs(len(waves[2]) - 1.3 * 16000) < 50  # resampled
    wanted = processor(text=texts, audio=waves, sampling_rate=16000, padding=True, return_tensors="pt")
    labels = batch.pop("labels")
    assert batch.keys() == wanted.keys()
    assert all(torch.equal(batch[name], wanted[name]) for name in wanted)
    assert [processor.tokenizer.decode(row[row != -100]) for row in labels] == ["A dog.<|im_end|>"] * 3


def test_the_engine_answers_about_audio_as_generate_does(hearing, tmp_path):
    processor, model = hearing
    sound = tiny_vlm.sound(tmp_path / "a.wav")
    data = "data:audio/wav;base64," + base64.b64encode(Path(sound).read_bytes()).decode()
    engine = PtEngine(model, processor.tokenizer, ChatEncoder(processor.tokenizer, processor=processor))
    try:
        talk = [{"role": "user", "content": [{"type": "audio", "audio": data}, {"type": "text", "text": "What?"}]}]
        found = generate(engine, GenerationRequest(messages=talk, sampling=Sampling(max_new_tokens=8, temperature=0.0)))
        text = "<|im_start|>user\n<|audio_bos|><|AUDIO|><|audio_eos|>What?<|im_end|>\n<|im_start|>assistant\n"
        wave = read_audio(sound, 16000)
        inputs = processor(text=[text], audio=[wave], sampling_rate=16000, return_tensors="pt")
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=8, pad_token_id=0)
        assert list(found.token_ids) == ids[0, inputs["input_ids"].shape[1] :].tolist()
    finally:
        engine.close()


def test_a_video_is_sampled_by_the_processors_rule_and_bounded(tmp_path):
    film = tiny_vlm.film(tmp_path / "film.mp4")
    frames, metadata = read_video(film, None)
    assert frames.shape == (20, 48, 64, 3) and metadata.fps == 10
    brightness = frames.mean(axis=(1, 2, 3))
    assert (np.diff(brightness) > 0).all()
    third, _ = read_video(film, lambda metadata: np.arange(0, metadata.total_num_frames, 3))
    assert np.array_equal(third, frames[::3])
    few, metadata = read_video(film, None, max_frames=5, shrink=lambda frame: smaller(frame, 48 * 16))
    assert few.shape == (5, 24, 32, 3) and list(metadata.frames_indices) == [0, 5, 10, 14, 19]
    (tmp_path / "broken.mp4").write_bytes(b"no film")
    with pytest.raises(DataError, match=r"broken\.mp4"):
        read_video(str(tmp_path / "broken.mp4"), None)
    processor = SimpleNamespace(video_processor=SimpleNamespace())
    with own_decoding(processor, 2, None):
        read, _ = processor.video_processor.fetch_videos([[film]])
        assert len(read[0][0]) == 2
    assert vars(processor.video_processor) == {}


def test_images_are_read_upright_from_anywhere_and_made_smaller(tmp_path):
    from PIL import Image

    path = Path(tiny_vlm.picture(tmp_path / "a.png", size=(60, 40)))
    plain = np.asarray(read_image(str(path)))
    content = path.read_bytes()
    uri = "data:;base64," + base64.b64encode(content).decode()
    for source in (
        path,
        content,
        uri,
        {"bytes": content},
        {"path": str(path)},
        f"file://{path}",
        uri.partition(",")[2],
    ):
        assert np.array_equal(np.asarray(read_image(source)), plain)
    turned = Image.open(path)
    exif = turned.getexif()
    exif[0x0112] = 6  # a camera held sideways
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(str(tmp_path / "turned.jpg")).size == (40, 60)
    Image.new("RGBA", (4, 4)).save(tmp_path / "clear.png")
    assert read_image(str(tmp_path / "clear.png")).mode == "RGB"
    assert smaller(read_image(str(path)), 600).size == (30, 20)
    assert smaller(read_image(str(path)), 2400).size == (60, 40)


def test_max_pixels_reaches_the_processor(tmp_path):
    from swift.chat.processing import Processing

    _, _, processor = tiny_vlm.idefics3()
    processor.chat_template = processor.tokenizer.chat_template
    picture = tiny_vlm.picture(tmp_path / "a.png", size=(120, 80))
    row = {"messages": [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "A cat."}]}
    row["images"] = [picture]
    sizes = []
    for settings in (MediaSettings(), MediaSettings(max_pixels=300)):
        made = Processing(lambda: processor, settings)
        encoded = ChatEncoder(processor.tokenizer, processor=made).encode(row)
        sizes.append(made.run(encoded.media["text"], {"images": [picture]}).tensors["pixel_values"])
    assert not torch.equal(*sizes)
