"""Batches of rows with images are those of plain transformers: ids, pixels, labels, loss."""

from __future__ import annotations

import base64
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from swift.chat import IGNORED, ChatEncoder
from swift.chat.media import with_blocks
from swift.chat.medium import read_image
from swift.chat.processing import Processed, Processing
from swift.data.collate import PadCollator
from swift.data.encode import encode_rows
from swift.data.media_batch import MediaCollator
from swift.data.report import DataReport
from swift.data.rows import Rows
from swift.errors import DataError, TemplateError
from swift.models.load import load_processor
from tests import tiny_vlm

ANSWERS = ["A cat and a dog.", "Paris.", "One plus one is two, and a short story."]
PICTURED = [{"role": "user", "content": [{"type": "image"}]}]


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in tiny_vlm.MORE]


@pytest.fixture(scope="module", params=[*tiny_vlm.FAMILIES, *SLOW])
def family(request, tmp_path_factory):
    from transformers import AutoModelForImageTextToText

    if request.param == "pixtral":
        pytest.importorskip("torchvision")
    path = tiny_vlm.checkpoint(tmp_path_factory.mktemp(request.param), request.param)
    return load_processor(path), AutoModelForImageTextToText.from_pretrained(path).eval()


@pytest.fixture
def rows(tmp_path):
    """One image, two of different shapes, one in a second round."""
    sizes = [(60, 40), (40, 90), (64, 64), (30, 30)]
    a, b, c, d = (tiny_vlm.picture(tmp_path / f"{i}.png", i, size) for i, size in enumerate(sizes))
    return [
        {"messages": asked("<image>What is this?", ANSWERS[0]), "images": [a]},
        {"messages": asked("Is <image> like <image>?", ANSWERS[1]), "images": [b, c]},
        {"messages": asked("Who are you?", ANSWERS[1]) + asked("<image>And this?", ANSWERS[2]), "images": [d]},
    ]


def asked(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def encoded(processor, rows):
    encoder = ChatEncoder(processor.tokenizer, processor=processor)
    examples = encode_rows(Rows.of(rows), encoder, report=DataReport())
    assert len(examples) == len(rows)
    return examples, MediaCollator(PadCollator(0, with_row_ids=True), encoder.processor)


def reference(processor, rows):
    """What transformers makes of the same conversations."""
    talks = [with_blocks(row["messages"], {"images": [read_image(i) for i in row["images"]]}) for row in rows]
    talks = [[m if isinstance(m["content"], list) else {**m, "content": [{"type": "text", "text": m["content"]}]}
              for m in talk] for talk in talks]  # fmt: skip
    out = processor.apply_chat_template(
        talks,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True, "padding_side": "right"},
    )
    return dict(out)


def test_batches_are_those_of_the_processor(family, rows):
    processor, model = family
    examples, collate = encoded(processor, rows)
    batch = collate([examples[i] for i in range(len(rows))])
    wanted = reference(processor, rows)
    assert batch.keys() - {"labels", "row_ids"} == wanted.keys()
    for name, value in wanted.items():
        assert batch[name].shape == value.shape
        if name == "aspect_ratio_mask":  # of images that aren't there it says otherwise, and nothing attends to them
            continue
        if name == "cross_attention_mask":  # padding looks at images, and nothing looks at padding
            value = value * wanted["attention_mask"][:, :, None, None]
        assert torch.equal(batch[name], value), name
    labels = batch.pop("labels")
    batch.pop("row_ids")
    with torch.no_grad():
        ours = model(**batch, labels=labels).loss
        assert torch.allclose(ours, model(**wanted, labels=labels).loss, atol=1e-6)
    learned = processor.tokenizer.batch_decode([row[row != IGNORED] for row in labels])
    wanted_texts = [ANSWERS[0], ANSWERS[1], ANSWERS[1] + "<|im_end|>" + ANSWERS[2]]
    assert learned == [f"{text}<|im_end|>" for text in wanted_texts]


def test_another_image_is_another_loss(family, rows, tmp_path):
    processor, model = family
    examples, collate = encoded(processor, rows[:1])
    other, collate_other = encoded(processor, [{**rows[0], "images": [tiny_vlm.picture(tmp_path / "new.png", 9)]}])
    assert examples[0]["input_ids"].tolist() == other[0]["input_ids"].tolist()
    losses = []
    for batch in (collate([examples[0]]), collate_other([other[0]])):
        batch.pop("row_ids")
        with torch.no_grad():
            losses.append(float(model(**batch).loss))
    assert abs(losses[0] - losses[1]) > 1e-6


@pytest.mark.parametrize("side", ["right", "left"])
def test_rows_of_text_stand_beside_rows_with_images(family, rows, side):
    """Each row's logits are those that it has alone, but for a model that says it can't."""
    processor, model = family
    crosses = type(processor).__name__ == "MllamaProcessor"
    text = processor.tokenizer.apply_chat_template(PICTURED, tokenize=False)
    mixes = Processing.of(processor).mixes(text, {"images": rows[0]["images"]})
    assert mixes != crosses
    if not mixes:
        return
    mixed = [{"messages": asked("Who are you?", ANSWERS[2])}, *rows[:2], {"messages": asked("And?", ANSWERS[0])}]
    examples, collate = encoded(processor, mixed)
    collate.pad.padding_side = side
    batch = collate([examples[i] for i in range(4)])
    assert batch.pop("row_ids") == [0, 1, 2, 3]
    labels = batch.pop("labels")
    with torch.no_grad():
        together = model(**batch).logits
        for i in range(4):
            alone = collate([examples[i]])
            alone.pop("row_ids")
            alone.pop("labels")
            wanted = model(**alone).logits[0]
            found = together[i][batch["attention_mask"][i] == 1]
            assert torch.allclose(found, wanted, atol=2e-4), i
    assert (labels != IGNORED).any(dim=1).all()


def test_a_batch_of_text_alone_trains(family):
    processor, model = family
    examples, collate = encoded(processor, [{"messages": asked("Who are you?", ANSWERS[2])}])
    batch = collate([examples[0]])
    batch.pop("row_ids")
    model.train()
    assert model(**batch).loss.isfinite()
    model.eval()


def test_what_can_t_be_read_is_a_row_with_a_place(tmp_path):
    path = tiny_vlm.checkpoint(tmp_path / "model")

    good, broken = tiny_vlm.picture(tmp_path / "good.png"), tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    rows = [{"messages": asked("<image>What?", "A cat."), "images": [image]} for image in (good, str(broken), good)]
    processor = load_processor(path)
    report = DataReport()
    examples = encode_rows(Rows.of(rows), ChatEncoder(processor.tokenizer, processor=processor), report=report)
    assert len(examples) == 2 and report.split("train").drops.total == 1
    assert "broken.png" in report.to_text() and "rows:2" in report.to_text()
    without = ChatEncoder(processor.tokenizer).encode_batch(rows[:1])[0]
    assert isinstance(without, DataError) and "no processor" in without.what


def test_a_processor_that_doesn_t_say_what_it_replaced_is_matched_by_tokens(family, rows):
    """Or refused, where its text changes the tokens beside a placeholder."""
    processor, _ = family
    plain = ChatEncoder(processor.tokenizer, processor=processor).encode(rows[1])
    quiet = Processing.of(processor)
    run = quiet.run
    quiet.run = lambda text, media: replace(run(text, media), replacements=None)
    encoder = ChatEncoder(processor.tokenizer, processor=quiet)
    if type(processor).__name__ == "Gemma3Processor":
        with pytest.raises(TemplateError):
            encoder.encode(rows[1])
    else:
        found = encoder.encode(rows[1])
        assert (found.input_ids, found.labels) == (plain.input_ids, plain.labels)


def test_bytes_and_base64_become_files_once(tmp_path, monkeypatch):
    from swift.data import media_files
    from swift.data.formats import canonical_row

    monkeypatch.setenv("SWIFT_CACHE", str(tmp_path / "cache"))
    media_files._folder.cache_clear()
    content = Path(tiny_vlm.picture(tmp_path / "a.png")).read_bytes()
    uri = "data:image/png;base64," + base64.b64encode(content).decode()
    blocks = [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": "?"}]
    talk = [{"role": "user", "content": blocks}, {"role": "assistant", "content": "A cat."}]
    rows = [{"messages": talk}, {"messages": asked("<image>?", "A cat."), "images": [{"bytes": content, "path": None}]}]
    found = [canonical_row(row, folder=tmp_path).data for row in rows]
    paths = {Path(row["images"][0]) for row in found}
    assert {path.read_bytes() for path in paths} == {content}
    assert {row["messages"][0]["content"] for row in found} == {"<image>?"}
    assert all(tmp_path / "cache" in path.parents for path in paths)
    media_files._folder.cache_clear()


class Told(Processing):
    """Makes of each kind of media a tensor of its own, with the place that `places` has for it; one medium a row."""

    places = {"images": 7, "videos": 8}

    def run(self, text, media):
        if any(len(items) > 1 for items in media.values()):
            raise DataError("one medium a row")
        tensors = {f"{kind}_values": torch.zeros(1, 9) for kind in media}
        return Processed([1, *(self.places[kind] for kind in media), 2], tensors, None, frozenset({7, 8}))


def test_images_beside_videos_are_refused_where_both_have_one_place():
    rows = [{"text": "a", "images": ["1"]}, {"text": "b", "videos": ["2"]}]
    told = Told.of(None)
    assert told.tells_apart(rows)
    told.places = {"images": 7, "videos": 7}
    assert not told.tells_apart(rows)
    assert told.tells_apart(rows[:1] * 2)


def test_a_processor_of_one_medium_a_row_has_no_place_for_rows_without():
    assert Told.of(None).by_row("a", {"images": ["1"]}) == frozenset()
