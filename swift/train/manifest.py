"""manifest.json of a run: with what, on what and from what it was trained, and how it ended."""

from __future__ import annotations

import json
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swift import __version__, runs
from swift.train.checkpoints import PROGRESS

if TYPE_CHECKING:
    from swift.train.examples import Examples
    from swift.train.sft import Setup

LIBRARIES = ("torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors", "numpy", "bitsandbytes")


def versions() -> dict[str, str]:
    """Versions of Python, swift and the libraries that take part, those that are installed."""
    found = {"python": platform.python_version(), "swift": __version__}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def begin(run_dir: Path, setup: Setup, examples: Examples, job: str | None) -> None:
    """Write the manifest of a new run, or add a sitting to that of a run that goes on; `job`: torchrun's, if any."""
    from swift.models.device import pick_device

    config = setup.config
    sitting = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "from_step": setup.point.step if setup.point else 0,
        "from_checkpoint": str(setup.point.checkpoint) if setup.point else None,
        "versions": versions(),
        "device": str(pick_device(config.training.use_cpu)),
        "platform": platform.platform(),
        "processes": setup.world_size,
        "job": job,
    }
    record = read(run_dir)
    sittings = [*record.get("sittings", []), sitting]
    record = {
        "state": "training",
        "model": {"name": setup.model.name, "path": str(setup.model.path), "source": setup.model.source},
        "data": {
            "fingerprint": examples.fingerprint,
            "rows": len(examples.prepared.train if examples.on_demand is None else examples.train),
            "validation_rows": len(examples.val or ()),
        },
        "seed": config.training.seed,
        "data_seed": config.data.data_seed if config.data.data_seed is not None else config.training.seed,
        "sittings": sittings,
    }
    runs.write_json(run_dir / runs.MANIFEST, record)


def end(run_dir: Path, **facts: Any) -> None:
    """Record how the run ended: its state and the checkpoints that matter."""
    runs.write_json(run_dir / runs.MANIFEST, {**read(run_dir), **facts})


def read(run_dir: Path) -> dict[str, Any]:
    path = run_dir / runs.MANIFEST
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def saved_fingerprint(checkpoint: Path) -> str:
    """The fingerprint of the rows that a checkpoint was trained on."""
    return json.loads((checkpoint / PROGRESS).read_text(encoding="utf-8"))["data"]
