"""Finds the isolated environments that `swift env create` has made: a Python each, for tools that can't live with ours.

An environment is a directory NAME with a file swift-env.json, which is written last: a creation that was cut short is
never found. Places: --env_dir, else SWIFT_ENV_DIR, else ~/.cache/swift/envs. One made with --env_dir elsewhere is
linked from there, so that it is found without the option.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swift.errors import UsageError

RECORD = "swift-env.json"


@dataclass(frozen=True)
class Environment:
    """`record` is the content of swift-env.json: versions, when and how it was made."""

    name: str
    path: Path
    record: Mapping[str, Any]

    @property
    def python(self) -> Path:
        return self.path / "bin" / "python"

    def program(self, name: str) -> Path:
        """A command of the environment, e.g. `opencompass`."""
        return self.path / "bin" / name


def home(env_dir: str | None = None) -> Path:
    """The directory that environments are in."""
    given = env_dir or os.environ.get("SWIFT_ENV_DIR")
    return Path(given).expanduser().absolute() if given else Path.home() / ".cache" / "swift" / "envs"


def find(name: str, env_dir: str | None = None) -> Environment | None:
    """The complete environment of this name, None where there is none."""
    path = home(env_dir) / name
    try:
        record = json.loads((path / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    found = Environment(name, path, record)
    return found if found.python.exists() else None


def python_for(name: str, given: str | None = None, *, option: str = "--engine_python") -> Path:
    """The Python that has the tool `name`: `given` (a Python or an environment's directory), else ours of that name.

    UsageError when there is none; whether the tool is in it shows when it starts.
    """
    if given is None:
        found = find(name)
        if found is not None:
            return found.python
        raise UsageError(
            f"{name} needs an environment of its own, and there is none in {home()}",
            fix=f"swift env create {name}   (or name a Python that has it: {option} PATH)",
        )
    path = Path(given).expanduser()
    if path.is_dir():
        path = path / "bin" / "python"
    program = shutil.which(str(path))
    if program is None:
        raise UsageError("no such Python", where=f"{option} {given}", fix="a Python, or an environment's directory")
    return Path(program).absolute()
