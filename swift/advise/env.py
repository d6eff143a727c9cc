"""`swift env create|list|remove`: isolated environments for tools whose pins can't live with ours (environments.toml).

Promises: an environment is found only when it is complete: the tool has been imported in it and its record written
last; a creation that fails or is killed leaves a log and a directory that the next `create` or `remove` clears away.
Two creations of one name don't meet. Uses uv where it is on the PATH, else venv and pip; their settings (mirrors,
certificates) are the user's own.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swift import __version__
from swift.children import Child
from swift.config.commands import EnvConfig
from swift.config.record import explain
from swift.environments import RECORD, Environment, find, home
from swift.errors import ResourceError, UsageError
from swift.hub.resources import check_disk, human_bytes
from swift.runs import ensure_writable_dir, write_json
from swift.say import speak

log = logging.getLogger("swift")
USAGE = "swift env create NAME, swift env list, swift env remove NAME"


def main(config: EnvConfig) -> int:
    speak()
    words = config.env.action
    action, names = (words[0], words[1:]) if words else ("list", ())
    if action not in ("create", "list", "remove"):
        raise UsageError(f"unknown action {action!r}", fix=USAGE)
    if config.common.dry_run:
        print(explain(config))
    if action == "list":
        if names:
            raise UsageError(f"unexpected argument {names[0]!r}", fix=USAGE)
        return show(config)
    if len(names) != 1:
        raise UsageError(f"{action} takes one name", fix=f"swift env {action} NAME; NAME: {', '.join(recipes())}")
    return create(names[0], config) if action == "create" else remove(names[0], config)


@dataclass(frozen=True)
class Recipe:
    """One tool on one device; see environments.toml."""

    name: str
    device: str
    module: str
    pythons: tuple[str, ...]
    gigabytes: float
    install: tuple[tuple[str, ...], ...]
    tested: str | None


def recipes() -> dict[str, Any]:
    """The file, as it is."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads(Path(__file__).with_name("environments.toml").read_text(encoding="utf-8"))


def recipe(name: str, device: str) -> Recipe:
    """UsageError for an unknown name and for a tool that doesn't exist for the device."""
    known = recipes()
    if name not in known:
        raise UsageError(f"no environment {name!r} is known", fix=f"one of {', '.join(known)}")
    entry = known[name]
    made = entry.get(device) or entry["cpu"]  # a tool that only asks a server is the same everywhere
    if "absent" in made:
        fix = f"--device cuda builds it for a machine with a GPU; {name} on another machine: --infer_backend http"
        raise UsageError(made["absent"], where=f"swift env create {name}", fix=fix)
    install = tuple(tuple(step) for step in made["install"])
    return Recipe(name, device, entry["module"], tuple(made["pythons"]), made["gigabytes"], install, made.get("tested"))


def device_here() -> str:
    """cuda where NVIDIA's driver is."""
    return "cuda" if Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") else "cpu"


# ---- create ----


def create(name: str, config: EnvConfig) -> int:
    options = config.env
    plan = recipe(name, options.device or device_here())
    python = choose_python(plan, options.python)
    place = home(options.env_dir)
    path = place / name
    if config.common.dry_run:
        print("\n".join(f"install {' '.join(words)}" for words in plan.install))
        return 0
    ensure_writable_dir(place)
    with exclusively(place, name):
        existing = find(name, options.env_dir)
        if existing is not None and not options.force:
            log.info("%s is there already: %s (--force true builds it anew)", name, existing.path)
            return 0
        clear(path)
        check_disk(place, int(plan.gigabytes * 1e9), f"the {name} environment")
        if plan.tested is None:
            log.info("note: these pins are the versions that swift talks to; they weren't run by us on %s", plan.device)
        log.info("%s for %s: about %s in %s", name, plan.device, human_bytes(plan.gigabytes * 1e9), path)
        build(plan, python, path)
        link_from_home(path)
    log.info("%s is ready and will be found by itself", name)
    return 0


@contextmanager
def exclusively(place: Path, name: str) -> Iterator[None]:
    """One process at a time on the environment `name`."""
    with open(place / f".{name}.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ResourceError(
                f"another process is working on {name}", where=str(place), fix="wait for it, or end it"
            ) from None
        yield


def choose_python(plan: Recipe, given: str | None) -> str:
    """`given`, else this one; a version (3.11) is found by uv or on the PATH. UsageError when the pins don't fit it."""
    if given is None:
        python = sys.executable
        fix = f"--python PATH_OR_VERSION of a Python from {plan.pythons[0]} to {plan.pythons[1]}"
    else:
        found = shutil.which(given) or shutil.which(f"python{given}")
        uv = shutil.which("uv")
        if found is None and uv is not None and re.fullmatch(r"3\.\d+", given):
            return given  # uv fetches it
        if found is None:
            raise UsageError("no such Python", where=f"--python {given}", fix="a path, or a version that is installed")
        python, fix = found, f"one from {plan.pythons[0]} to {plan.pythons[1]}"
    version = python_version(python)
    low, high = (tuple(map(int, bound.split("."))) for bound in plan.pythons)
    if not low <= version <= high:
        shown = ".".join(map(str, version))
        raise UsageError(f"{plan.name} has no release for Python {shown}", where=f"--python {python}", fix=fix)
    return python


def python_version(python: str) -> tuple[int, int]:
    script = "import sys; print(*sys.version_info[:2])"
    done = subprocess.run([python, "-I", "-S", "-c", script], capture_output=True, text=True)
    words = done.stdout.split()
    if done.returncode or len(words) != 2:
        raise UsageError("is not a Python that runs", where=f"--python {python}", fix=done.stderr.strip()[-200:])
    return int(words[0]), int(words[1])


def build(plan: Recipe, python: str, path: Path) -> None:
    """Make the environment step by step, its log beside it; ResourceError with the log's end when a step fails."""
    logfile = path.with_name(f"{path.name}.log")
    logfile.unlink(missing_ok=True)
    uv = shutil.which("uv")
    inside = str(path / "bin" / "python")
    began = time.monotonic()
    bare = [uv, "venv", "--python", python] if uv else [python, "-m", "venv", "--without-pip"]
    step([*bare, str(path)], logfile, "creating")
    for number, wanted in enumerate(plan.install, 1):
        installer = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", inside, "install"]
        if uv:
            installer = [uv, "pip", "install", "--python", inside, *as_uv_options(pip_settings())]
        shown = next(w for w in wanted if not w.startswith("-")) + (f" and {n} more" if (n := len(wanted) - 1) else "")
        step([*installer, *wanted], logfile, f"installing {number}/{len(plan.install)}: {shown}")
    # -I: what lies in the current directory or on PYTHONPATH is not in the environment.
    step([inside, "-I", "-c", f"import {plan.module}"], logfile, f"trying import {plan.module}")
    record = {
        "name": plan.name,
        "device": plan.device,
        "python": ".".join(map(str, python_version(inside))),
        "made_by": f"swift {__version__}",
        "made": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "seconds": round(time.monotonic() - began),
        "packages": versions(inside),
    }
    write_json(path / RECORD, record)


def step(argv: Sequence[str], logfile: Path, what: str) -> None:
    """Run one command into the log, with signs of life: the installer's last line at a terminal."""
    began = time.monotonic()
    log.info("%s", what)
    terminal = sys.stdout.isatty()
    with Child(argv, logfile) as child:
        while True:
            try:
                code = child.wait(0.5 if terminal else 30)
                break
            except subprocess.TimeoutExpired:
                line = _last_line(child.output())
                elapsed = f"{time.monotonic() - began:.0f} s"
                if terminal:
                    print(f"\r\x1b[K  {elapsed}  {line[: shutil.get_terminal_size().columns - 12]}", end="", flush=True)
                else:
                    log.info("  %s  %s", elapsed, line)
        output = child.output()
    if terminal:
        print("\r\x1b[K", end="", flush=True)
    if code:
        lines = [line for line in output.strip().splitlines() if line.strip()][-12:]
        raise ResourceError(
            "\n    ".join([f"{what}: failed with exit code {code}", *lines]), where=str(logfile), fix="see that log"
        )
    log.info("  done in %.0f s", time.monotonic() - began)


def _last_line(output: str) -> str:
    lines = output.strip().splitlines()
    return lines[-1].strip()[:160] if lines else ""


def versions(python: str) -> dict[str, str]:
    """The packages of an environment."""
    script = (
        "import importlib.metadata as m, json;"
        "print(json.dumps({d.metadata['Name']: d.version for d in m.distributions()}, sort_keys=True))"
    )
    done = subprocess.run([python, "-I", "-c", script], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def pip_settings() -> dict[str, str]:
    """The user's settings of pip (mirror, certificate, constraints): uv doesn't read them by itself."""
    pip = [sys.executable, "-m", "pip", "config", "list"]
    done = subprocess.run(pip, capture_output=True, text=True)
    found = {}
    for line in done.stdout.splitlines():
        key, _, value = line.partition("=")
        found[key.rpartition(".")[2]] = value.strip("'\"").replace("\\n", " ")
    return found


def as_uv_options(settings: dict[str, str]) -> list[str]:
    """pip's settings as options of `uv pip install`."""
    options = []
    for key, flag in (
        ("index-url", "--default-index"),
        ("extra-index-url", "--index"),
        ("find-links", "--find-links"),
        ("constraint", "--constraints"),
    ):
        for value in settings.get(key, "").split():
            options += [flag, value]
    return options


def link_from_home(path: Path) -> None:
    """So that an environment made with --env_dir is found without it."""
    default = home()
    if path.parent == default:
        return
    ensure_writable_dir(default)
    link = default / path.name
    if link.is_symlink():
        link.unlink()
    if link.exists():
        log.info("%s stays the one that is found by itself", link)
    else:
        os.symlink(path, link)


# ---- list, remove ----


def show(config: EnvConfig) -> int:
    found = {name: find(name, config.env.env_dir) for name in recipes()}
    if config.env.json:
        made = {name: {"path": str(env.path), **env.record} for name, env in found.items() if env}
        print(json.dumps(made, ensure_ascii=False, indent=2))
        return 0
    place = home(config.env.env_dir)
    for name, env in found.items():
        print(f"{name:<12} {_state(name, env, place)}")
    return 0


def _state(name: str, env: Environment | None, place: Path) -> str:
    if env is None:
        if (place / name).exists():
            return f"unfinished: swift env create {name} starts again, swift env remove {name} clears it away"
        return f"not made: swift env create {name}"
    tool = next(
        (v for k, v in env.record["packages"].items() if k.lower().replace("_", "-") in (name, f"{name}-cpu")), ""
    )
    return f"{tool} for {env.record['device']}, Python {env.record['python']}, {env.path}"


def remove(name: str, config: EnvConfig) -> int:
    place = home(config.env.env_dir)
    path = place / name
    if name not in recipes():
        raise UsageError(f"no environment {name!r} is known", fix=f"one of {', '.join(recipes())}")
    if not path.exists() and not path.is_symlink():
        raise UsageError("there is no such environment", where=str(path), fix="swift env list")
    if config.common.dry_run:
        print(f"remove {path}")
        return 0
    with exclusively(place, name):
        target = path.resolve()
        clear(path)
        if target != path:
            clear(target)
        link = home() / name
        if link.is_symlink() and not link.exists():
            link.unlink()
        path.with_name(f"{name}.log").unlink(missing_ok=True)
    log.info("removed %s", path)
    return 0


def clear(path: Path) -> None:
    """Remove what is there; its record goes first, so that a half-removed environment isn't found. Never something
    that isn't an environment."""
    if path.is_symlink():
        path.unlink()
    if not path.exists():
        return
    if not (path / "pyvenv.cfg").exists() and any(path.iterdir()):
        raise ResourceError("is there and is not a Python environment", where=str(path), fix="choose another --env_dir")
    (path / RECORD).unlink(missing_ok=True)
    shutil.rmtree(path)
