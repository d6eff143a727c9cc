"""`swift sft` before it loads weights: what surely can't fit is refused, with options that fit; --force starts it."""

from __future__ import annotations

import json

import pytest

from swift.advise import fit
from swift.advise.machines import GIB, Machine
from swift.cli import main
from tests import tiny


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    rows = [
        {"messages": [{"role": "user", "content": "hi " * n}, {"role": "assistant", "content": "yes"}]} for n in (3, 9)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 4))
    tiny.checkpoint(tmp_path / "m")

    def go(*more, memory=64 * GIB):
        machine = Machine("a small machine", "cpu", memory, 1e11, 1e11, 2e10, bf16=False)
        monkeypatch.setattr(fit, "cpu_machine", lambda: machine)
        argv = ["sft", "--model", str(tmp_path / "m"), "--dataset", str(tmp_path / "rows.jsonl")]
        argv += ["--max_steps", "1", "--use_cpu", "true", "--output_dir", str(tmp_path / "out"), "--report_to", "none"]
        return main([*argv, *more]), *capsys.readouterr()

    return go


def test_what_cannot_fit_is_refused_before_anything_is_written(run, tmp_path):
    code, _, err = run(memory=300 << 20)
    assert code == 7 and "this training needs about" in err and "--force true starts it anyway" in err
    assert not (tmp_path / "out").exists()


def test_force_starts_it_and_enough_memory_needs_no_word(run):
    code, out, _ = run("--force", "true", memory=300 << 20)
    assert code == 0 and "It may not fit" in out
    code, out, _ = run()
    assert code == 0 and "memory: about" in out and "may not fit" not in out


def test_a_dry_run_shows_the_plan(run):
    code, out, _ = run("--dry_run", "true")
    assert code == 0 and "activations" in out and "fits" in out
    code, out, _ = run("--dry_run", "true", memory=300 << 20)
    assert code == 0 and "DOES NOT FIT" in out
