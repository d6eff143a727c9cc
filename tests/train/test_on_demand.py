"""`--streaming true` and `--lazy_tokenize true` as typed: the rows in their order, a run that goes on bit by bit, the
same rows over two processes, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny
from tests.train import support

ROOT = Path(__file__).resolve().parents[2]
COMMON = "--report_to none --use_cpu true --torch_dtype float32 --lora_dropout 0 --learning_rate 1e-2 --max_length 128"
COMMON += " --truncation_strategy delete --add_version false --logging_steps 1"
STEPS = "--max_steps 4 --per_device_train_batch_size 2 --gradient_accumulation_steps 2 --save_steps 2"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.checkpoint(tmp_path_factory.mktemp("models") / "tiny-llama", "llama")


@pytest.fixture
def typed(tmp_path, monkeypatch, type_words, model):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SWIFT_LANG", "en")
    monkeypatch.setenv("SWIFT_CACHE", str(tmp_path / "cache"))
    lines = [json.dumps({"query": f"What is {i}? " * (1 + i % 3), "response": f"It is {i}."}) for i in range(40)]
    lines.insert(3, json.dumps({"query": "long " * 200, "response": "a"}))
    lines.insert(6, "broken")
    Path("rows.jsonl").write_text("\n".join(lines) + "\n")

    def run(line: str, command: str = "sft") -> tuple[int, str]:
        return type_words([command, "--model", str(model), "--dataset", "rows.jsonl", *COMMON.split(), *line.split()])

    return run


def losses(name: str) -> list[float]:
    return [record["loss"] for record in support.records(Path(name)) if "loss" in record]


def test_in_the_order_of_the_file_a_stream_trains_as_rows_encoded_ahead(typed):
    """18 usable rows: four steps of four and the rest; the stream then begins again."""
    order = "--dataset_shuffle false --train_dataloader_shuffle false"
    for name, more in (("ahead", ""), ("stream", "--streaming true"), ("lazy", "--lazy_tokenize true")):
        code, said = typed(f"--output_dir {name} {STEPS} {order} {more}")
        assert code == 0, said
    # rows encoded ahead have the long one left out beforehand, as the stream has; a lazy batch is a row short
    assert losses("stream") == losses("ahead")
    assert losses("lazy")[1:] != losses("ahead")[1:] and len(losses("lazy")) == 4
    report = json.loads(Path("stream/data_report.json").read_text())
    assert report["train"]["examples"] == 16 and report["train"]["rows"] == 17 and report["rows_read"] == 18
    assert [reason for reason in report["datasets"][0]["dropped_by_reason"]] == ["broken JSON"]
    report = json.loads(Path("lazy/data_report.json").read_text())
    assert report["train"]["examples"] == 15 and report["train"]["rows"] == 16 and report["rows_read"] == 42


STREAM, LAZY = "--streaming true --shuffle_buffer_size 5", "--lazy_tokenize true"


@pytest.mark.parametrize("more", [STREAM, f"{STREAM} --packing true", LAZY])
def test_a_killed_run_goes_on_bit_by_bit_with_the_same_counts(typed, more):
    line = f"{STEPS} {more} --output_dir out"
    assert typed(line)[0] == 0
    whole = support.weights(Path("out/checkpoint-4"))
    progress, report = (
        json.loads(Path(f"out/{name}").read_text()) for name in ("checkpoint-4/progress.json", "data_report.json")
    )
    shutil.rmtree("out/checkpoint-4")
    code, said = typed(f"{line} --resume_from_checkpoint out/checkpoint-2")
    assert code == 0, said
    assert all((whole[name] == tensor).all() for name, tensor in support.weights(Path("out/checkpoint-4")).items())
    again = json.loads(Path("out/checkpoint-4/progress.json").read_text())["rows"]
    assert again == progress["rows"]
    assert json.loads(Path("out/data_report.json").read_text()) == report
    with open("rows.jsonl", "a") as file:
        file.write('{"query": "new", "response": "row"}\n')
    code, said = typed(f"{line} --resume_from_checkpoint out/checkpoint-2")
    assert code != 0 and "aren't those of the run" in said


@pytest.mark.slow
@pytest.mark.parametrize("more", [f"{STREAM} --dataloader_num_workers 1", LAZY])
def test_two_processes_see_the_rows_of_one(typed, tmp_path, model, more):
    assert typed(f"{STEPS} {more} --output_dir one")[0] == 0
    words = ["sft", "--model", str(model), "--dataset", "rows.jsonl", *COMMON.split(), *STEPS.split(), *more.split()]
    words[words.index("--gradient_accumulation_steps") + 1] = "1"
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "NPROC_PER_NODE": "2"}
    command = [sys.executable, "-m", "swift", *words, "--output_dir", "two"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    assert losses("two") == pytest.approx(losses("one"), abs=1e-4)
    one, two = (json.loads(Path(f"{name}/data_report.json").read_text()) for name in ("one", "two"))
    assert one["train"] == two["train"] and one["datasets"] == two["datasets"]


def test_steps_are_counted_from_the_rows_where_they_can_be(typed):
    code, said = typed("--streaming true --num_train_epochs 0.2 --per_device_train_batch_size 4 --output_dir out")
    assert code == 0 and "a stream: 1 steps of 16 examples" in said, said
    shutil.copy("rows.jsonl", "rows.json")
    code, said = typed("--streaming true --dataset rows.json --output_dir no")
    assert code != 0 and "add --max_steps N" in said and not Path("no").exists()


def test_swift_data_reads_what_a_stream_would(typed):
    code, said = typed(f"{STEPS} --streaming true --shuffle_buffer_size 5 --output_dir data", command="data")
    assert code == 0, said
    assert typed(f"{STEPS} --streaming true --shuffle_buffer_size 5 --output_dir out")[0] == 0
    one, two = (json.loads(Path(f"{name}/data_report.json").read_text()) for name in ("data", "out"))
    assert one == two and one["train"]["examples"] == 16


def test_dropped_rows_stop_a_strict_run_where_they_come(typed):
    """They come after the sample that is judged beforehand."""
    lines = Path("rows.jsonl").read_text().splitlines()
    good = [line for line in lines if "long" not in line and line != "broken"]
    Path("rows.jsonl").write_text("\n".join(good * 8 + ["broken"] + good) + "\n")
    line = "--streaming true --dataset_shuffle false --strict true --max_steps 5 --per_device_train_batch_size 80"
    code, said = typed(f"{line} --gradient_accumulation_steps 1 --save_steps 2 --output_dir out")
    assert code != 0 and "rows.jsonl:321" in said, said
    assert Path("out/checkpoint-4").is_dir()


@pytest.mark.parametrize(
    "options, words",
    [
        ("--streaming true --split_dataset_ratio 0.1", "--val_dataset in place of"),
        ("--streaming true --save_strategy epoch", "--save_strategy steps"),
        ("--streaming true --group_by_length true", "lengths that it doesn't know"),
        ("--streaming true --probe true", "leave out --probe"),
        ("--streaming true --max_steps -1 --packing true", "rows are packed"),
        ("--streaming true --max_steps -1 --truncation_strategy split", "long rows become several"),
        ("--lazy_tokenize true --packing true", "--streaming true packs"),
        ("--lazy_tokenize true --truncation_strategy split", "--truncation_strategy right"),
        ("--shuffle_buffer_size 5", "only a stream has a buffer"),
    ],
)
def test_what_needs_all_rows_is_refused(typed, options, words):
    code, said = typed(f"--max_steps 1 --output_dir out {options}")
    assert code != 0 and words in said and not Path("out").exists(), said
