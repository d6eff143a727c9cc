"""`--profile`: a trace that can be read, of the steps that were asked for, and a table."""

from __future__ import annotations

import gzip
import json

import pytest

from tests import tiny
from tests.train import support


@pytest.mark.parametrize(("steps", "asked", "recorded"), [(4, 2, 2), (2, 3, 1), (1, 3, 1)])
def test_the_steps_after_the_first_are_recorded(tmp_path, caplog, steps, asked, recorded):
    cfg = support.config(max_steps=steps, profile=True, profile_steps=asked, save_strategy="no")
    trainer = support.trainer(tmp_path, support.lora(tiny.model("llama")), support.encoded_rows(8), cfg=cfg)
    with caplog.at_level("WARNING", logger="swift"):
        trainer.train()
    with gzip.open(tmp_path / "profile/trace-0.json.gz", "rt") as file:
        names = [event.get("name") for event in json.load(file)["traceEvents"]]
    assert names.count("swift.optimizer") == recorded
    assert names.count("swift.forward") == recorded * 2  # two batches a step
    assert any(name == "aten::mm" for name in names)
    table = (tmp_path / "profile/operations-0.txt").read_text()
    assert "aten::mm" in table and "Self CPU" in table
    assert f"trace of {recorded} step" in caplog.text and "aten::mm" in caplog.text


def test_an_unprofiled_run_leaves_nothing(tmp_path):
    cfg = support.config(max_steps=1, save_strategy="no")
    support.trainer(tmp_path, support.lora(tiny.model("llama")), support.encoded_rows(4), cfg=cfg).train()
    assert not (tmp_path / "profile").exists()
