"""`swift sft --eval_dataset`: benchmarks of checkpoints by `swift eval` in a child process."""

import json

import pytest

from swift.cli import main
from swift.errors import UsageError
from tests import tiny
from tests.evaluate.material import arc, write_jsonl
from tests.train.support import config


def test_steps_of_benchmarks_are_steps_of_checkpoints():
    decided = config(eval_dataset=("ARC_c",), eval_steps=4, save_steps=2)
    assert decided.data.split_dataset_ratio == 0 and decided.evaluation.eval_strategy == "no"
    for values, told in (
        ({"eval_dataset": ("ARC_c",), "eval_steps": 3, "save_steps": 2}, "whole multiple"),
        ({"eval_dataset": ("ARC_c",), "save_strategy": "no"}, "keeps none"),
        ({"eval_limit": 3}, "no benchmark to ask"),
    ):
        with pytest.raises(UsageError, match=told):
            config(**values)


@pytest.mark.slow
def test_benchmarks_between_steps_and_at_the_end(tmp_path, monkeypatch, capfd):
    pytest.importorskip("lm_eval")
    monkeypatch.chdir(tmp_path)
    tiny.checkpoint(tmp_path / "model")
    rows = [
        {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": "two"}]} for i in range(8)
    ]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    write_jsonl(tmp_path / "data" / "arc_challenge.jsonl", arc(4))
    words = ["sft", "--model", "model", "--dataset", "rows.jsonl", "--output_dir", "out", "--report_to", "none"]
    words += ["--max_steps", "4", "--save_steps", "2", "--gradient_accumulation_steps", "1", "--eval_dataset"]
    assert main([*words, "arc_cc"]) == 2 and "did you mean ARC_c" in capfd.readouterr().err
    assert main([*words, "ARC_e", "--local_dataset", "data", "--use_hf", "false"]) == 2  # its questions aren't there
    assert "ARC_e" in capfd.readouterr().err and not (tmp_path / "out").exists()
    assert main([*words, "ARC_c", "--eval_steps", "2", "--eval_limit", "4", "--local_dataset", "data"]) == 0
    log = next((tmp_path / "out").glob("v*/logging.jsonl"))
    scored = {r["step"]: r["eval_ARC_c"] for r in map(json.loads, log.read_text().splitlines()) if "eval_ARC_c" in r}
    assert sorted(scored) == [2, 4]
    results = list(log.parent.glob("benchmarks/*/v*/eval_result.json"))
    assert len(results) == 2 and "ARC_c" in capfd.readouterr().out
