"""`--packing true` as typed: the same losses and weights as without, every row in one bin, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import tiny
from tests.train import support

COMMON = (
    "--report_to none --use_cpu true --torch_dtype float32 --lora_dropout 0 --learning_rate 1e-2 --add_version false"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.checkpoint(tmp_path_factory.mktemp("models") / "tiny-qwen3", "qwen3")


@pytest.fixture
def typed(tmp_path, monkeypatch, type_words, model):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SWIFT_LANG", "en")
    rows = [{"query": f"What is {i} plus one? " * (1 + i % 4), "response": f"It is {i + 1}."} for i in range(18)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(line: str) -> tuple[int, str]:
        return type_words(["sft", "--model", str(model), "--dataset", "rows.jsonl", *COMMON.split(), *line.split()])

    return run


@pytest.mark.parametrize("more", ["", "--padding_free_is_refused"])
def test_packed_rows_train_as_rows_do(typed, monkeypatch, more):
    """With all rows in one step the order can't matter. Also where the model refuses the fast path."""
    if more:
        from swift.train.lean import model as shapes

        monkeypatch.setattr(shapes, "refusal", lambda base: "a test")
    steps = "--per_device_train_batch_size 64 --gradient_accumulation_steps 1 --num_train_epochs 3 --logging_steps 1"
    assert typed(f"--output_dir plain {steps}")[0] == 0
    code, said = typed(f"--output_dir packed {steps} --packing true --packing_length 160")
    assert code == 0 and "18 examples packed into" in said, said
    losses = [[r["loss"] for r in support.records(Path(name)) if "loss" in r] for name in ("plain", "packed")]
    assert len(losses[0]) == 3 and losses[0] == pytest.approx(losses[1], abs=1e-5)
    ours, theirs = (support.weights(Path(name) / "checkpoint-3") for name in ("packed", "plain"))
    assert max((ours[name] - theirs[name]).abs().max().item() for name in theirs) < 1e-4


def test_steps_are_counted_in_bins_and_a_killed_run_goes_on_bit_by_bit(typed):
    line = "--packing true --packing_length 128 --per_device_train_batch_size 1 --gradient_accumulation_steps 2"
    line += " --save_steps 2 --logging_steps 1 --output_dir out --num_train_epochs 1"
    code, said = typed(line)
    assert code == 0, said
    report = json.loads(Path("out/data_report.json").read_text())
    last = max(Path("out").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    assert report["schedule"]["total_steps"] == int(last.name.split("-")[1]) < 9
    whole = support.weights(last)
    import shutil

    shutil.rmtree(last)
    assert typed(f"{line} --resume_from_checkpoint out/checkpoint-2")[0] == 0
    assert all((whole[name] == tensor).all() for name, tensor in support.weights(last).items())


@pytest.mark.parametrize(
    "options, words",
    [
        ("--packing true --padding_free false", "without --padding_free"),
        ("--packing true --attn_impl eager", "keeps rows apart by a mask"),
        ("--packing true --group_by_length true", "packed rows are of one length"),
        ("--packing_length 100", "nothing is packed"),
        ("--packing true --packing_length 20", "doesn't fit into packed rows of 20"),
    ],
)
def test_what_can_t_be_packed_is_refused(typed, options, words):
    code, said = typed(f"{options} --output_dir out --max_steps 1")
    assert code != 0 and words in said and not Path("out").exists()
