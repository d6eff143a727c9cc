"""Two hosts, each with a launcher of its own: as network namespaces joined by a cable, and as two launchers on one."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.train.test_distributed import ROOT, finish, losses, sft, start

CABLE = [
    "netns add {a}",
    "netns add {b}",
    "link add {a} type veth peer name {b}",
    "link set {a} netns {a}",
    "link set {b} netns {b}",
    "-n {a} addr add 10.77.0.1/24 dev {a}",
    "-n {b} addr add 10.77.0.2/24 dev {b}",
    *(f"-n {{{ns}}} link set {device} up" for ns in "ab" for device in ("lo", f"{{{ns}}}")),
]


def ip(words: str) -> bool:
    return subprocess.run(["ip", *words.split()], capture_output=True).returncode == 0


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    names = tuple(f"sw{os.getpid()}{side}" for side in "ab")
    made = shutil.which("ip") is not None and all(ip(line.format(a=names[0], b=names[1])) for line in CABLE)
    try:
        if not made:
            pytest.skip("network namespaces can't be made here")
        yield names
    finally:
        for name in names:
            ip(f"netns del {name}")


def launch(rank: int, address: str, port: int, argv: list[str], inside: list[str], **env: str) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", **env}
    environment |= {"NNODES": "2", "NODE_RANK": str(rank), "MASTER_ADDR": address, "MASTER_PORT": str(port)}
    command = [*inside, sys.executable, "-m", "swift", *argv[1:]]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


OPTIONS = ("--max_steps", "4", "--save_steps", "4", "--gradient_accumulation_steps", "2")


def both_as_one(tmp_path, address: str, port: int, names: tuple[str, ...] = ()) -> None:
    argv = sft(tmp_path, "two", *OPTIONS, "--per_device_train_batch_size", "2")
    finish(start([], sft(tmp_path, "one", *OPTIONS, "--per_device_train_batch_size", "4")))
    started = []
    for rank in (0, 1):
        inside = ["ip", "netns", "exec", names[rank]] if names else []
        env = {"GLOO_SOCKET_IFNAME": names[rank]} if names else {}
        started.append(launch(rank, address, port, argv, inside, **env))
    for process in started:
        finish(process)
    assert losses(tmp_path / "two") == [(s, pytest.approx(v, abs=1e-4)) for s, v in losses(tmp_path / "one")]


@pytest.mark.slow
def test_two_network_namespaces_train_as_one_process(tmp_path, hosts):
    both_as_one(tmp_path, "10.77.0.1", 29600, hosts)


@pytest.mark.slow
def test_two_launchers_on_one_host_train_as_one_process(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    both_as_one(tmp_path, "127.0.0.1", port)
