"""A disk that fills up and a process that is killed: one clear error, nothing half-written, the next run works."""

import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from swift import runs
from swift.cli import main
from tests import tiny
from tests.export.test_merge import adapter_of
from tests.export.test_quantize import SMALL, rows_in

WAYS = {
    "gguf": ["--quant_method", "gguf", "--gguf_type", "F32"],
    "fp8": ["--quant_method", "fp8"],
    "awq": ["--quant_method", "awq"],
    "copy": [],
}


@contextmanager
def files_no_larger_than(size: int):
    """What a full disk does to a write, without a disk of one's own."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("way", WAYS)
def test_a_write_that_fails_leaves_nothing_and_says_why(tmp_path, way, capfd):
    base = tiny.checkpoint(tmp_path / "base", "qwen3", head_dim=128)
    words = ["export", "--model", str(base), *WAYS[way], "--output_dir", str(tmp_path / "out")]
    if way == "awq":
        words += ["--dataset", *map(str, (rows_in(tmp_path), *SMALL))]
    with files_no_larger_than(200_000):
        assert main(words) == 7
    err = capfd.readouterr().err
    assert "can't write: " in err and "Traceback" not in err
    assert not (tmp_path / "out").exists() and not (tmp_path / f"{runs.STAGING_PREFIX}out").exists()


def test_a_merge_that_fails_leaves_nothing(tmp_path, capfd):
    base = tiny.checkpoint(tmp_path / "base")
    adapter = adapter_of(base, tmp_path / "adapter")
    words = ["export", "--adapters", str(adapter), "--merge_lora", "true", "--output_dir", str(tmp_path / "out")]
    with files_no_larger_than(200_000):
        assert main(words) == 7
    assert "can't write: " in capfd.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"base", "adapter"}


@pytest.mark.parametrize("place", ["file/out", "/proc/1/out"])
def test_a_place_that_nothing_can_be_written_to_is_named(tmp_path, place, capfd):
    base = tiny.checkpoint(tmp_path / "base")
    (tmp_path / "file").write_text("x")
    words = ["export", "--model", str(base), "--quant_method", "fp8", "--output_dir", str(tmp_path / place)]
    assert main(words) == 7
    err = capfd.readouterr().err
    assert "can't write: " in err and "--output_dir" in err and "disk space" not in err


@pytest.mark.slow
@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_a_killed_run_leaves_no_result_and_the_next_one_works(tmp_path, method):
    base = tiny.checkpoint(tmp_path / "base", "qwen3", num_hidden_layers=12)
    out = tmp_path / "out"
    words = ["--model", str(base), "--quant_method", method, "--dataset", str(rows_in(tmp_path)), *map(str, SMALL)]
    command = [sys.executable, "-m", "swift", "export", *words, "--output_dir", str(out)]
    work = tmp_path / f"{runs.STAGING_PREFIX}out-work"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while time.monotonic() < until and len(list(work.rglob("*.safetensors"))) < 2:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists() and list(work.rglob("*.safetensors"))
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ})
    assert done.returncode == 0, done.stderr[-2000:]
    assert runs.verify_dir(out) == [] and not work.exists()
