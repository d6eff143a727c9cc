"""Is an installed library whole, as far as its files say? Spares importing it, which for most means importing PyTorch.

Promises: True only for a package whose recorded files are all there in their sizes, whose requirements are met, and
which imports no part of Triton that the installed Triton lacks; anything else has to be tried.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from pathlib import Path

_TRITON = re.compile(r"^\s*(?:from|import)\s+(triton(?:\.\w+)+)", re.MULTILINE)


def whole(module: str, distribution: str) -> bool:
    """Whether nothing in the files of `module` speaks against an import."""
    spec = importlib.util.find_spec(module)
    try:
        installed = importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    files = installed.files
    if spec is None or spec.origin is None or not files:
        return False
    places = {Path(str(file.locate())): file.size for file in files}
    if Path(spec.origin) not in places or not all(_as_recorded(path, size) for path, size in places.items()):
        return False
    return _requirements_met(installed) and all(map(_triton_has, _wanted_of_triton(Path(spec.origin).parent)))


def _as_recorded(path: Path, size: int | None) -> bool:
    return path.is_file() and size in (None, path.stat().st_size)


def _requirements_met(installed: importlib.metadata.Distribution) -> bool:
    from packaging.requirements import InvalidRequirement, Requirement

    for text in installed.requires or ():
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            return False
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            have = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            return False
        if not requirement.specifier.contains(have, prereleases=True):
            return False
    return True


def _wanted_of_triton(package: Path) -> set[str]:
    """Submodules of Triton that the package's sources import."""
    return {name for file in package.rglob("*.py") for name in _TRITON.findall(file.read_text(errors="replace"))}


def _triton_has(name: str) -> bool:
    """Whether the installed Triton has this module, by its files; True where there is no Triton to ask."""
    spec = importlib.util.find_spec("triton")
    if spec is None or not spec.submodule_search_locations:
        return True
    path = Path(next(iter(spec.submodule_search_locations))).joinpath(*name.split(".")[1:])
    return path.is_dir() or any(path.parent.glob(f"{path.name}.*"))
