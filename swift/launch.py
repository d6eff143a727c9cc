"""Several processes: NPROC_PER_NODE and NNODES turn the command into a torchrun of itself, in place of this process."""

from __future__ import annotations

import os
import sys

# environment variable -> torchrun's flag
TORCHRUN = {
    "NPROC_PER_NODE": "--nproc_per_node",
    "NNODES": "--nnodes",
    "NODE_RANK": "--node_rank",
    "MASTER_ADDR": "--master_addr",
    "MASTER_PORT": "--master_port",
    "MAX_RESTARTS": "--max_restarts",
}


def torchrun_command(argv: list[str], env: dict[str, str]) -> list[str] | None:
    """The command line to start instead, or None when one process is asked for or torchrun has started us already."""
    asked = env.get("NPROC_PER_NODE") or env.get("NNODES")
    if not asked or "LOCAL_RANK" in env:
        return None
    flags = [word for name, flag in TORCHRUN.items() if env.get(name) for word in (flag, env[name])]
    return [sys.executable, "-m", "torch.distributed.run", *flags, "-m", "swift", *argv]


def exec_torchrun_if_asked(argv: list[str]) -> None:
    command = torchrun_command(argv, dict(os.environ))
    if command is not None:
        os.execv(command[0], command)
