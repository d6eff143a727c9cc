"""Places in images: each family's writing, in the pixels or shares that it counts in."""

from __future__ import annotations

import pytest

from swift.catalog import grounding
from swift.chat import ChatEncoder
from swift.chat.grounding import Grounding, with_objects
from swift.chat.processing import Processing
from swift.errors import DataError
from tests import tiny_vlm

TALK = [
    {"role": "user", "content": "<image>Where is <ref-object>?"},
    {"role": "assistant", "content": "The <ref-object> is at <bbox> and <bbox>."},
]
OBJECTS = {"ref": ["dog", "dog"], "bbox": [[20, 10, 60, 40], [0, 0]]}


def sizes(number):
    return (200, 100), (100, 50)


@pytest.mark.parametrize(
    ("model_type", "written"),
    [
        ("llava", "The dog is at [(100,100),(300,400)] and (0,0)."),
        (
            "qwen2_vl",
            "The <|object_ref_start|>dog<|object_ref_end|> is at <|box_start|>(100,100),(300,400)<|box_end|> and "
            "<|box_start|>(0,0)<|box_end|>.",
        ),
        ("qwen2_5_vl", "The dog is at [10, 5, 30, 20] and [0, 0]."),
        ("qwen3_vl_moe", "The dog is at [100, 100, 300, 400] and [0, 0]."),
        ("internvl", "The <ref>dog</ref> is at <box>[[100, 100, 300, 400]]</box> and <box>[[0, 0]]</box>."),
    ],
)
def test_each_family_writes_its_own(model_type, written):
    found = with_objects(TALK, OBJECTS, Grounding.of(grounding(), model_type), sizes)
    assert found[1]["content"] == written


def test_the_scale_can_be_chosen_and_shares_are_taken():
    pixels = Grounding.of(grounding(), "llava", "none")
    assert "[(10,5),(30,20)]" in with_objects(TALK, OBJECTS, pixels, sizes)[1]["content"]
    shares = {**OBJECTS, "bbox": [[0.1, 0.1, 0.3, 0.4], [1, 1]], "bbox_type": "norm1"}
    found = with_objects(TALK, shares, Grounding(), sizes)[1]["content"]
    assert "[(100,100),(300,400)]" in found and "(1000,1000)" in found


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"bbox": [[20, 10, 60, 40]]}, "places 2 <bbox> and lists 1"),
        ({"ref": ["dog"]}, "places 2 <ref-object> and lists 1"),
        ({"bbox": [[20, 10, 60, 400], [0, 0]]}, "outside its image of 200 x 100"),
        ({"bbox": [[20, 10, 60], [0, 0]]}, "no .x1, y1, x2, y2."),
        ({"bbox_type": "norm2"}, "norm2"),
        ({"image_id": [0]}, "2 places and 1 images"),
    ],
)
def test_what_doesn_t_fit_is_refused(change, says):
    with pytest.raises(DataError, match=says):
        with_objects(TALK, {**OBJECTS, **change}, Grounding(), sizes)


def test_a_row_learns_the_written_place_of_the_right_image(tmp_path):
    _, _, processor = tiny_vlm.llava()
    pictures = [tiny_vlm.picture(tmp_path / f"{i}.png", i, size) for i, size in enumerate([(100, 100), (50, 200)])]
    talk = [{"role": "user", "content": "<image><image>Where?"}, {"role": "assistant", "content": "<bbox>"}]
    row = {"messages": talk, "images": pictures, "objects": {"bbox": [[10, 20, 40, 100]], "image_id": [1]}}
    encoder = ChatEncoder(processor.tokenizer, processor=Processing.of(processor))
    encoded = encoder.encode(row)
    learned = processor.tokenizer.decode([label for label in encoded.labels if label != -100])
    assert learned == "[(200,100),(800,500)]<|im_end|>"
    outside = encoder.encode_batch([{**row, "objects": {"bbox": [[10, 20, 40, 100]], "image_id": [2]}}])[0]
    assert isinstance(outside, DataError) and "image 2" in outside.what
