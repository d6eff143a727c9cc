"""One's own models, chat templates, data sets and callbacks: what a plugin calls, and how plugins are found.

A plugin is a Python file (`--external_plugins my.py`) or an installed package with an entry point of the group
`swift.plugins`. It is imported once, after the command line has been read, and calls the functions below; whatever else
it does (registering a class with transformers, say) it does when it is imported. Names that it registers win over
the catalog's.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from swift.catalog import store
from swift.catalog.entries import DatasetEntry
from swift.catalog.registered import REGISTERED, ChangeRow, MakeRows, OwnDataset
from swift.errors import SwiftError, UsageError

GROUP = "swift.plugins"
_callbacks: dict[str, Callable[[], Any]] = {}
_loaded: dict[str, Any] = {}


def register_models(family: str, table: Mapping[str, Any]) -> None:
    """Add models to the catalog. `table`: what a file of swift/catalog/models holds, one table per model type:

    {"title": "My models", "my-chat": {"architectures": ["LlamaForCausalLM"], "config_types": ["llama"],
                                       "template": "my-template", "models": "me/my-chat-1B"}}
    """
    try:
        kinds = [kind for kind, _ in store.read_models(family, table)]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UsageError(f"register_models({family!r}): not a table of the catalog: {error!r}") from error
    if not kinds:
        raise UsageError(f"register_models({family!r}): no model type in it")
    REGISTERED.add("models", family, table)
    store.forget()


def register_template(name: str, jinja: str) -> None:
    """Add a chat template for `--template NAME`, in the Jinja of transformers' chat templates."""
    REGISTERED.add("templates", name, jinja)


def register_dataset(
    name: str,
    rows: MakeRows | str | Path | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    change: ChangeRow | None = None,
    ms_id: str | None = None,
    hf_id: str | None = None,
) -> None:
    """Add a data set for `--dataset NAME`.

    `rows`: a function that yields rows as dicts, or a file or directory; without it the data is `ms_id`'s or
    `hf_id`'s on the hubs. `columns` maps its column names to ours; `change(row)` returns the row to use, or
    None to leave it out.
    """
    if rows is None and ms_id is None and hf_id is None:
        raise UsageError(f"register_dataset({name!r}): give rows, or an id on a hub")
    entry = DatasetEntry(
        name=name, ms_id=ms_id, hf_id=hf_id, topic="plugin", aliases=(name,), subsets=(), tags=(), rows=None,
        license=None, columns=dict(columns or {}),
    )  # fmt: skip
    make = rows if callable(rows) else None
    path = None if rows is None or callable(rows) else str(rows)
    REGISTERED.add("datasets", name, OwnDataset(entry, path, make, change))
    store.forget()


def register_callback(name: str, make: Callable[[], Any]) -> None:
    """Add a transformers TrainerCallback for `swift sft --callbacks NAME`; `make()` gives a new one."""
    if name in _callbacks:
        raise UsageError(f"two plugins register callback {name!r}", fix="rename one of them")
    _callbacks[name] = make


def make_callbacks(names: Iterable[str]) -> list[Any]:
    """The callbacks of these names; UsageError for a name that no plugin has registered."""
    unknown = [name for name in names if name not in _callbacks]
    if unknown:
        fix = f"known: {', '.join(_callbacks) or 'none (name the plugin with --external_plugins)'}"
        raise UsageError(f"no plugin has registered a callback {unknown[0]!r}", where="--callbacks", fix=fix)
    return [_callbacks[name]() for name in names]


def load(paths: Iterable[str]) -> None:
    """Import installed plugins and the files of --external_plugins, each once per process.

    UsageError for a file that isn't there and for one that fails, with the line that failed.
    """
    from importlib.metadata import entry_points

    for point in entry_points(group=GROUP):
        if point.value not in _loaded:
            _loaded[point.value] = _guarded(point.load, f"plugin {point.name} ({point.value})", None)
    for given in paths:
        path = Path(given).expanduser()
        path = path / "__init__.py" if path.is_dir() else path
        key = str(path.resolve())
        if key in _loaded:
            continue
        if not path.is_file():
            fix = "name a Python file, or a directory with an __init__.py"
            raise UsageError("no such file", where=f"--external_plugins {given}", fix=fix)
        _loaded[key] = _guarded(lambda path=path: _import_file(path), f"--external_plugins {given}", path)


def _import_file(path: Path) -> Any:
    """The module of a file; files beside it can be imported by it."""
    folder = path.parent if path.name != "__init__.py" else path.parent.parent
    if str(folder.resolve()) not in sys.path:
        sys.path.append(str(folder.resolve()))
    name = path.stem if path.name != "__init__.py" else path.parent.name
    name = f"swift_plugin_{name}" if name in sys.modules else name
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError("not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _guarded(work: Callable[[], Any], where: str, path: Path | None) -> Any:
    try:
        return work()
    except SwiftError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__) if path else []
        lines = [frame for frame in frames if path and Path(frame.filename).resolve() == path.resolve()]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1].lineno if lines else None
        place = f"{path}:{line}" if path and line else where
        what = f"the plugin can't be imported: {type(error).__name__}: {error}"
        raise UsageError(what, where=place, fix="repair it, or leave it out") from error
