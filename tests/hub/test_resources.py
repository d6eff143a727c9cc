"""Disk and memory checks: the figures are the system's own, and too little is an error with both figures."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from swift.errors import ResourceError
from swift.hub import available_memory, check_disk, check_memory, human_bytes
from swift.hub.resources import _cgroup_room


def test_disk(tmp_path):
    free = check_disk(tmp_path / "not/yet/there", 1)
    assert abs(free - shutil.disk_usage(tmp_path).free) < 1e9
    with pytest.raises(ResourceError, match="1e\\+03 TB|1000 TB|TB, .* are free"):
        check_disk(tmp_path, 10**15, "the checkpoint")


def test_memory():
    figure = available_memory()
    assert figure is None or figure > 10**7
    assert check_memory(10, available=20) == 20
    with pytest.raises(ResourceError, match="needs about 8 GB, 2 GB are available"):
        check_memory(8 * 10**9, "Qwen3-4B", available=2 * 10**9)


def test_memory_limit_of_a_container(tmp_path):
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 400\ninactive_file 200\n")
    assert _cgroup_room(tmp_path) == 500
    (tmp_path / "memory.max").write_text("max\n")
    assert _cgroup_room(tmp_path) is None
    assert _cgroup_room(tmp_path / "none") is None


@pytest.mark.skipif(sys.platform != "linux", reason="limits are read from /proc")
@pytest.mark.parametrize("limit", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_memory_limit_of_a_process(limit):
    script = (
        "import resource; from swift.hub.resources import available_memory as room; before = room();"
        f"resource.setrlimit(resource.{limit}, (2 << 30, -1)); held = bytearray(256 << 20); print(before, room())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    before, room = map(int, done.stdout.split())
    assert 1 << 30 < room < min(before + 1, (2 << 30) - (256 << 20))


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (8_040_000_000, "8.04 GB")])
def test_human_bytes(count, text):
    assert human_bytes(count) == text
