"""Tokens of media from a checkpoint's JSON files, against its processor's own count."""

from __future__ import annotations

import json

import pytest

from swift.advise.rows import row_facts
from swift.advise.sight import MARKS, Sight, sight_of, size_of
from tests import tiny_vlm

SIZES = [(60, 40), (200, 100), (30, 90), (500, 500), (1000, 700), (1000, 600), (45, 333)]
COUNTED = ["llava", "gemma3", "idefics3", "qwen2_5_vl", "qwen3_vl", "llava_next"]


@pytest.mark.parametrize("family", COUNTED)
def test_an_image_takes_as_many_tokens_as_its_processor_makes_of_it(tmp_path, family):
    _, config, processor = (tiny_vlm.FAMILIES | tiny_vlm.MORE)[family]()
    config.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    sight = sight_of(json.loads((tmp_path / "config.json").read_text()), tmp_path)
    for width, height in SIZES:
        real = processor._get_num_multimodal_tokens(image_sizes=[[height, width]]).num_image_tokens[0]
        assert abs(sight.image((width, height)) - MARKS - real) <= 4, (width, height)


def test_tiles_of_internvl_are_those_of_transformers():
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

    config = {"vision_config": {"image_size": 448, "patch_size": 14}, "image_seq_length": 256}
    settings = {"crop_to_patches": True, "max_patches": 12, "size": {"height": 448, "width": 448}}
    for width, height in [(448, 448), (1000, 500), (640, 1300), (3000, 1000), (1920, 1080)]:
        columns, rows = get_optimal_tiled_canvas((height, width), (448, 448), 1, 12)
        tiles = columns * rows + (columns * rows > 1)
        assert Sight(config, settings).image((width, height)) == 256 * tiles + MARKS, (width, height)


def test_pixtral_ends_each_row_of_patches_and_mllama_puts_nothing_in_the_row():
    pixtral = Sight({"vision_config": {"model_type": "pixtral", "image_size": 1024, "patch_size": 16}}, {})
    assert pixtral.image((1024, 512)) == 32 * (64 + 1) + MARKS
    assert Sight({"text_config": {"cross_attention_layers": [3]}, "vision_config": {}}, {}).image((900, 900)) == 1


def test_a_model_of_text_has_no_sight_and_smaller_images_take_less(tmp_path):
    assert sight_of({"model_type": "llama"}, tmp_path) is None
    config = {"vision_config": {"patch_size": 14}}
    settings = {"merge_size": 2, "patch_size": 14, "min_pixels": 3136, "max_pixels": 12845056}
    free, bound = Sight(config, settings), Sight(config, settings, max_pixels=100_000)
    assert bound.image((1400, 1400)) < free.image((1400, 1400)) == 2500 + MARKS
    assert free.image(None) > 500 and size_of("https://example.com/a.png", tmp_path) is None


def test_rows_with_images_are_as_long_as_they_will_be(tmp_path):
    tiny_vlm.picture(tmp_path / "a.png", size=(280, 140))
    row = {
        "messages": [{"role": "user", "content": "<image>what"}, {"role": "assistant", "content": "a cat " * 20}],
        "images": ["a.png"],
    }
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    sight = Sight({"vision_config": {"patch_size": 14}}, {"merge_size": 2, "patch_size": 14})
    how = dict(dataset_dir=None, use_hf=False, columns=None, tokenizer=None)
    text = row_facts([str(tmp_path / "rows.jsonl")], **how)
    seen = row_facts([str(tmp_path / "rows.jsonl")], **how, sight=sight)
    assert seen.longest - text.longest == 10 * 5 + MARKS
    assert seen.answer_share == pytest.approx(text.answer_share * text.longest / seen.longest, abs=1e-3)
