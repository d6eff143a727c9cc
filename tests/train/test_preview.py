"""`swift data` as typed: the figures that one counts by hand, the run's own report, and the thresholds."""

from __future__ import annotations

import json
import math

import pytest

from swift.cli import main
from tests import tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def rows(tmp_path):
    answers = ["yes", "no", "maybe"] * 3 + ["y" * 900]
    lines = [json.dumps({"query": f"q{i}", "response": answer}) for i, answer in enumerate(answers)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([*lines, '{"foo": 1}', "{oops", lines[0]]) + "\n")
    return path


def line(model, rows, *more):
    return [
        *("--model", str(model), "--dataset", str(rows), "--max_length", "64", "--split_dataset_ratio", "0.2", *more),
        *("--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2", "--num_train_epochs", "1"),
    ]


def test_the_report_alone_is_that_of_the_run(model, rows, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SWIFT_CACHE", str(tmp_path / "cache"))
    alone = tmp_path / "report"
    assert main(["data", *line(model, rows), "--json", "true", "--output_dir", str(alone)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert json.loads((alone / "data_report.json").read_text()) == report
    assert report["rows_read"] == 13 and report["duplicates"] + report["val_rows_also_in_train"] == 1
    count = report["datasets"][0]
    assert (count["dropped"], count["train"], count["val"]) == (2, 9, 2)
    used = report["train"]["used"] + report["val"]["used"]
    assert used == 10 and report["train"]["dropped"] + report["val"]["dropped"] == 1
    assert report["schedule"]["total_steps"] == math.ceil(math.ceil(report["train"]["examples"] / 2) / 2)
    assert "<mark>" in (alone / "data_report.html").read_text()
    out = tmp_path / "run"
    assert (
        main(["sft", *line(model, rows), "--output_dir", str(out), "--add_version", "false", "--lora_rank", "2"]) == 0
    )
    saved = json.loads((out / "data_report.json").read_text())
    remarks = saved.pop("remarks")
    assert saved == {k: v for k, v in report.items() if k != "remarks"}
    assert sum("read from the cache" in remark for remark in remarks) == 2
    assert "<mark>" in (out / "data_report.html").read_text()
    again = ["data", "--model", str(model), "--dataset", str(out / "val_dataset.jsonl"), "--json", "true"]
    capsys.readouterr()
    assert main(again) == 0
    val = json.loads(capsys.readouterr().out)["train"]
    assert all(val[name] == report["val"][name] for name in ("tokens", "trained_tokens", "examples"))


def test_the_terminal_shows_what_is_learned(model, rows, capsys):
    assert main(["data", *line(model, rows), "--show_rows", "2", "--lora_rank", "8"]) == 0
    text = capsys.readouterr().out
    assert text.count("<|im_end|>]]") == 2 and text.count("--- ") == 2 and "--lora_rank" in text
    assert main(["data", str(rows), "--show_rows", "0"] + ["--model", str(model)]) == 0
    assert "[[" not in capsys.readouterr().out


def test_without_a_model_rows_are_only_counted(rows, capsys):
    assert main(["data", str(rows)]) == 0
    assert "13 rows read, 2 dropped" in capsys.readouterr().out
    assert main(["data", str(rows), "--show_rows", "1"]) == 2


def test_thresholds_fail_after_the_report(model, rows, capsys):
    for more in (["--strict", "true"], ["--max_drop_ratio", "0.2"]):
        assert main(["data", *line(model, rows, *more)]) == 5
        shown = capsys.readouterr()
        assert "rows read" in shown.out and "unknown columns" in shown.err
    assert main(["data", *line(model, rows, "--max_drop_ratio", "0.25")]) == 0


def test_the_ratio_counts_the_rows_that_were_sampled(model, tmp_path):
    path = tmp_path / "long.jsonl"
    path.write_text(
        "".join(json.dumps({"query": "q", "response": "y " * (400 if i % 2 else 1)}) + "\n" for i in range(40))
    )
    command = ["data", "--model", str(model), "--max_length", "64", "--dataset", f"{path}#4"]
    assert main([*command, "--max_drop_ratio", "0.2", "--dataset_shuffle", "false"]) == 5
