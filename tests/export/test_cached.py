"""A cached data set trains like the rows that it was made of; what doesn't fit it is an error that names why."""

from __future__ import annotations

import json

import pytest

from swift.cli import main
from tests import tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SWIFT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    lines = [{"query": f"question {i}", "response": f"answer {i} " * (1 + i % 3)} for i in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*lines, {"query": "q", "response": "y" * 900}]))
    return path


def export(model, rows, out, *more):
    chat = ("--system", "be brief", "--max_length", "100")
    line = ["export", "--to_cached_dataset", "true", "--model", str(model), "--dataset", str(rows), *chat, *more]
    return main([*line, "--output_dir", str(out), "--split_dataset_ratio", "0.2"])


def report(capsys, *words):
    capsys.readouterr()
    assert main(["data", "--json", "true", *map(str, words)]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_same_rows_are_trained_on(model, rows, tmp_path, capsys):
    assert export(model, rows, tmp_path / "ready") == 0
    typed = ["--model", model, "--dataset", rows, "--system", "be brief", "--max_length", 100]
    plain = report(capsys, *typed, "--split_dataset_ratio", 0.2)
    ready = report(capsys, "--model", model, "--cached_dataset", tmp_path / "ready")
    for split in ("train", "val"):
        assert ready[split] == plain[split] and ready[split]["examples"] > 3
    assert ready["schedule"] == plain["schedule"]
    losses = []
    sources = {"plain": [*typed, "--split_dataset_ratio", 0.2], "cached": ["--cached_dataset", tmp_path / "ready"]}
    for name, source in sources.items():
        steps = ["--gradient_accumulation_steps", 4, "--num_train_epochs", 1, "--logging_steps", 1]
        target = ["--output_dir", tmp_path / name, "--add_version", "false", "--learning_rate", "1e-2"]
        assert main(["sft", *map(str, ["--model", model, *source, *steps, *target])]) == 0
        log = (tmp_path / name / "logging.jsonl").read_text().splitlines()
        losses.append([record.get("loss") or record.get("eval_loss") for record in map(json.loads, log)])
    assert losses[0] == losses[1] and len(losses[0]) > 2


def test_cached_rows_join_others(model, rows, tmp_path, capsys):
    assert export(model, rows, tmp_path / "ready") == 0
    other = tmp_path / "other.jsonl"
    other.write_text('{"query": "q", "response": "a"}\n{"foo": 1}\n')
    capsys.readouterr()
    both = ["--model", str(model), "--cached_dataset", str(tmp_path / "ready" / "train"), "--dataset", str(other)]
    facts = report(capsys, *both, "--cached_val_dataset", tmp_path / "ready")
    alone = report(capsys, "--model", model, "--cached_dataset", tmp_path / "ready")
    assert facts["train"]["examples"] == alone["train"]["examples"] + 1 and facts["val"] == alone["val"]
    assert main(["data", *both, "--show_rows", "30"]) == 0
    text = capsys.readouterr().out
    assert f"--- {other}:1: " in text and f"--- {rows}:" in text and "be brief" in text.split(f"--- {other}:1: ")[1]


def test_what_does_not_fit_is_refused(model, rows, tmp_path, capsys):
    ready = tmp_path / "ready"
    assert export(model, rows, ready) == 0
    assert export(model, rows, ready) == 2 and "--exist_ok" in capsys.readouterr().err
    assert export(model, rows, ready, "--exist_ok", "true") == 0
    line = ["data", "--model", str(model), "--cached_dataset", str(ready)]
    for more, word in ((["--max_length", "90"], "max_length: 100, here 90"), (["--system", "x"], "system")):
        assert main([*line, *more]) == 5 and word in capsys.readouterr().err
    other = tiny.checkpoint(tmp_path / "other", chat_template=tiny.CHATML + " ")
    assert main(["data", "--model", str(other), "--cached_dataset", str(ready)]) == 5
    assert "another template" in capsys.readouterr().err
    assert main(["data", "--model", str(model), "--cached_dataset", str(rows.parent)]) == 5
    assert "no cached data set" in capsys.readouterr().err
    with open(ready / "train" / "ids.bin", "r+b") as file:
        file.truncate(8)
    assert main(line) == 5 and "not whole" in capsys.readouterr().err
    assert export(model, tmp_path / "missing.jsonl", tmp_path / "never") == 5 and not (tmp_path / "never").exists()
