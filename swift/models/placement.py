"""Where the weights go: --device_map and --max_memory as accelerate takes them.

Promises: a device that isn't here and a limit that isn't one are errors before weights are read.
"""

from __future__ import annotations

import json
import os
import re
from typing import Any

from swift.config.model import ModelOptions
from swift.errors import UsageError
from swift.hub.resources import human_bytes
from swift.models.device import CARDS, Device

WAYS = ("auto", "balanced", "balanced_low_0", "sequential")
_PLACE = re.compile(rf"(?:(?P<kind>{'|'.join(CARDS)})(?::(?P<card>\d+))?|(?P<number>\d+)|cpu|disk|mps)")
_SIZE = re.compile(r"\d+(?:\.\d+)?\s*(?:[KMGT]i?B)?", re.IGNORECASE)


def device_map(
    model: ModelOptions, device: Device, needed: int, reasons: dict[str, str]
) -> str | dict[str, Any] | None:
    """What accelerate is told; None for the CPU alone. `needed`: bytes of the weights."""
    if model.device_map is not None:
        return _typed(model.device_map.strip(), device)
    if device.kind == "cpu":
        if model.max_memory:
            raise UsageError(
                "limits devices that weights are spread over, and there is only the CPU",
                where="--max_memory",
                fix="leave it out, or add --device_map auto",
            )
        return None
    free = device.free_memory()
    alone = "WORLD_SIZE" not in os.environ
    if device.count > 1 and alone and (model.max_memory or (free is not None and needed > free * 0.9)):
        reasons["device_map"] = f"spread over {device.count} devices: one alone has {human_bytes(free or 0)} free"
        return "auto"
    return {"": device.torch_name}


def _typed(text: str, device: Device) -> str | dict[str, Any]:
    if text in WAYS:
        return text
    if not text.startswith("{"):
        _check(text, device)
        return {"": int(text) if text.isdigit() else text}
    example = """--device_map '{"": 0}'"""
    try:
        places = json.loads(text)
    except ValueError as error:
        raise UsageError(f"not valid JSON: {error}", where="--device_map", fix=example) from error
    for place in places.values():
        _check(str(place), device)
    return places


def _check(place: str, device: Device) -> None:
    """UsageError for a place that is no device, or none of this machine."""
    found = _PLACE.fullmatch(place)
    where = f"--device_map {place}"
    if found is None:
        fix = f"one of {', '.join(WAYS)}, a device (cpu, cuda:0, ...), or JSON of module names and devices"
        raise UsageError("no such device", where=where, fix=fix)
    number_of = device.kind if device.kind in CARDS else "cuda"
    kind = found["kind"] or (number_of if found["number"] else place)
    index = int(found["card"] or found["number"] or 0)
    if kind in ("cpu", "disk"):
        return
    if kind != device.kind or index >= device.count:
        here = f"{device.kind}:0 to {device.kind}:{device.count - 1}" if device.count > 1 else device.torch_name
        raise UsageError("this device isn't here", where=where, fix=f"--device_map {here}, or auto")


def max_memory(limits: dict | None) -> dict[int | str, Any] | None:
    """Limits by device: JSON's keys are strings, devices are numbers. UsageError for what is no size."""
    if limits is None:
        return None
    for place, size in limits.items():
        if not (str(place).isdigit() or place in ("cpu", "disk", "mps")) or not _SIZE.fullmatch(str(size)):
            raise UsageError(
                f"{place}: {size} is no limit of a device",
                where="--max_memory",
                fix="""--max_memory '{"0": "20GiB", "cpu": "60GiB"}'""",
            )
    return {int(k) if str(k).isdigit() else k: v for k, v in limits.items()}
