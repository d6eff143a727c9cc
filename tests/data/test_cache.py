"""The cache gives back what encoding gives, never anything else, whatever happens to its files or beside it."""

import os
import signal
import subprocess
import sys
import time

import pytest

from swift.chat import ChatEncoder
from swift.data import DataReport, Rows, encode_rows
from swift.data.cache import KEEP_DAYS, encode_cached, encoder_key
from tests.data.fakes import CharacterEncoder
from tests.tiny import tokenizer


def talk(question, answer):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


ROWS = [talk("q", "a"), talk("q", "refuse"), talk("q", "scale"), talk("q" * 20, "b" * 20), talk("q", "parts")]


class Counting(CharacterEncoder):
    def __init__(self, max_length=20):
        super().__init__(max_length)
        self.calls = 0

    def encode_batch(self, rows):
        self.calls += 1
        return super().encode_batch(rows)


def entries(root):
    return [path for path in root.iterdir() if path.is_dir()]


def cached(root, rows=ROWS, key="k"):
    encoder, report = Counting(), DataReport()
    return encode_cached(Rows.of(rows), encoder, key, root, report=report), report, encoder.calls


def test_the_second_run_reads_the_same(tmp_path):
    plain_report = DataReport()
    plain = encode_rows(Rows.of(ROWS), Counting(), report=plain_report)
    first, first_report, calls = cached(tmp_path)
    second, second_report, no_calls = cached(tmp_path)
    assert (calls, no_calls) == (1, 0)
    assert plain.fingerprint() == first.fingerprint() == second.fingerprint()
    assert [e["loss_scale"].tolist() for e in second] == [e["loss_scale"].tolist() for e in plain]
    facts = [r.to_json()["train"] for r in (plain_report, first_report, second_report)]
    assert facts[0] == facts[1] == facts[2] and second_report.problems() == []
    assert any("cache" in remark for remark in second_report.remarks)


def test_other_rows_or_another_key_are_another_entry(tmp_path):
    cached(tmp_path)
    assert cached(tmp_path, key="other")[2] == 1
    for rows in (ROWS[::-1], ROWS[:-1], [*ROWS[:-1], talk("q", "c")]):
        assert cached(tmp_path, rows)[2] == 1
    assert cached(tmp_path)[2] == 0


def test_the_key_holds_everything_that_ids_depend_on():
    tok = tokenizer()
    bigger = tokenizer()
    bigger.add_tokens(["<new>"])
    keys = [
        encoder_key(ChatEncoder(t, **options))
        for t, options in [
            (tok, {}),
            (bigger, {}),
            (tok, {"template": tok.chat_template + " "}),
            (tok, {"system": "s"}),
            (tok, {"max_length": 9}),
            (tok, {"loss_scale": "all"}),
            (tok, {"truncation_strategy": "left"}),
            (tok, {"response_prefix": "x"}),
            (tok, {"enable_thinking": False}),
            (tok, {"stop_token_ids": [5]}),
        ]
    ]
    assert len(set(keys)) == len(keys)
    assert encoder_key(ChatEncoder(tokenizer())) == keys[0]


@pytest.mark.parametrize("damage", ["cut", "missing", "no manifest"])
def test_a_damaged_entry_is_made_anew(tmp_path, damage):
    whole = cached(tmp_path)[0].fingerprint()
    (entry,) = entries(tmp_path)
    if damage == "cut":
        (entry / "ids.bin").write_bytes((entry / "ids.bin").read_bytes()[:-4])
    else:
        (entry / ("starts.bin" if damage == "missing" else "manifest.json")).unlink()
    again, _, calls = cached(tmp_path)
    assert (again.fingerprint(), calls) == (whole, 1)
    assert cached(tmp_path)[2] == 0


def test_old_entries_and_remains_of_killed_runs_go(tmp_path):
    cached(tmp_path, key="old")
    (tmp_path / ".writing-dead").mkdir()
    long_ago = time.time() - (KEEP_DAYS + 1) * 86400
    for path in tmp_path.iterdir():
        os.utime(path, (long_ago, long_ago))
    cached(tmp_path, key="new")
    assert len(entries(tmp_path)) == 1


def test_a_cache_that_cannot_be_written_is_only_remarked_on(tmp_path):
    (tmp_path / "file").write_text("")
    encoded, report, _ = cached(tmp_path / "file" / "cache")
    assert len(encoded) == 4 and any("not cached" in remark for remark in report.remarks)


SCRIPT = """
import sys, pathlib
from tests.data.test_cache import cached, talk
rows = [talk(f"q{i}", "a" * 50) for i in range(3000)]
print(cached(pathlib.Path(sys.argv[1]), rows)[0].fingerprint())
"""


def start(root):
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(root)], stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_two_runs_at_once_and_runs_killed_at_any_time(tmp_path):
    processes = [start(tmp_path / "both") for _ in range(2)]
    prints = {process.communicate()[0] for process in processes}
    assert len(prints) == 1 and len(entries(tmp_path / "both")) == 1
    for i in range(8):
        process = start(tmp_path / "killed")
        time.sleep(0.5 + 0.3 * i)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert {start(tmp_path / "killed").communicate()[0]} == prints
