"""OpenCompass and EvalScope: other people's prompts and scores, in environments of their own (`swift env create`).

The model is served here on a local port (or --eval_url names a server), the tool asks it over HTTP, and its result
files are read. Promises: a number is reported under the tool's name only when the tool made it; without the
environment the error is the command that makes it; nothing is served before that is known.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from swift import __version__
from swift.children import Child
from swift.config.commands import EngineConfig, EvalConfig
from swift.config.record import explain
from swift.engines import setup
from swift.environments import python_for
from swift.errors import HubError, SwiftError, UsageError
from swift.evaluate.benchmarks import find_benchmark
from swift.evaluate.data import Documents, Wish, load_documents
from swift.evaluate.deployed import deployed
from swift.evaluate.endpoint import Client, base_of, find_model
from swift.evaluate.plans import generation_settings
from swift.evaluate.results import BenchmarkResult
from swift.evaluate.run import keep_result, model_name, safe_name
from swift.runs import create_run_dir, ensure_writable_dir, write_json

log = logging.getLogger("swift")


class ToolError(SwiftError):
    """The tool ended with an error, or without the results that it should have written."""

    exit_code = 12


@dataclass(frozen=True)
class Asked:
    """What a tool is to do. `sets` are the names as typed; `documents` those that we found data for, by name."""

    sets: tuple[str, ...]
    documents: Mapping[str, Documents]
    arguments: Mapping[str, Mapping[str, Any]]
    generation: Mapping[str, Any]
    limit: int | None
    parallel: int
    extra: Mapping[str, Any]
    url: str
    model: str
    key: str
    folder: Path


class Tool(Protocol):
    """One tool: what to run and how to read what it leaves."""

    name: str  # as in --eval_backend
    environment: str  # as in swift env create

    def check(self, python: Path, sets: Sequence[str]) -> None:
        """UsageError for a benchmark that the tool doesn't have."""
        ...

    def wish(self, name: str) -> Wish | None:
        """What data of ours the tool can be given for a benchmark; None: it finds its own."""
        ...

    def command(self, python: Path, asked: Asked) -> tuple[list[str], dict[str, str]]:
        """(words, environment variables), after writing what it reads into `asked.folder`."""
        ...

    def read(self, asked: Asked, seconds: float) -> tuple[list[BenchmarkResult], dict[str, list[dict[str, Any]]]]:
        """(results, samples by benchmark)."""
        ...


def tool_of(backend: str) -> Tool:
    if backend == "OpenCompass":
        from swift.evaluate.opencompass import OpenCompass

        return OpenCompass()
    from swift.evaluate.evalscope import EvalScope

    return EvalScope()


Report = Callable[[EvalConfig, Path, Mapping[str, Any], Sequence[BenchmarkResult]], int]


def run_external(config: EvalConfig, report: Report) -> int:
    """Run the tool on the model and hand what it found to `report`."""
    evaluate = config.evaluate
    tool = tool_of(evaluate.eval_backend)
    python = python_for(tool.environment, evaluate.eval_python, option="--eval_python")
    tool.check(python, evaluate.eval_dataset)
    if config.given("use_chat_template") and not config.chat.use_chat_template:
        raise UsageError(f"{tool.name} talks to the chat endpoint", where="--use_chat_template", fix="leave it out")
    source = None
    if evaluate.eval_url is None:
        inner, source = setup.find_source(EngineConfig().take(config))
        config = config.take(inner)
    if config.common.dry_run:
        print(explain(config))
        return 0
    arguments = _arguments(config)
    documents = _documents(config, tool, arguments)
    folder = create_run_dir(Path(evaluate.eval_output_dir) / model_name(config, source)).absolute()
    write_json(folder / "args.json", config.replace({"api_key": None, "hub_token": None}, "not kept").flat())
    name = safe_name(model_name(config, source)) if evaluate.eval_url is None else ""
    given = evaluate.eval_url
    server = nullcontext(base_of(given)) if given else deployed(config, name, folder / "server.log")
    with server as url:
        if evaluate.eval_url:
            name = find_model(Client(url, evaluate.api_key), config.model.model)
        asked = Asked(
            evaluate.eval_dataset,
            documents,
            arguments,
            generation_settings(evaluate.eval_generation_config),
            evaluate.eval_limit,
            evaluate.eval_num_proc,
            evaluate.extra_eval_args or {},
            url,
            name,
            evaluate.api_key or "EMPTY",
            folder,
        )
        seconds = _work(tool, python, asked)
    results, samples = tool.read(asked, seconds)
    for result in results:
        keep_result(folder, result, samples[result.benchmark])
    facts = {"model": f"{name} at {url}" if source is None else str(source.model.path), "swift": __version__}
    return report(config, folder, facts, results)


def _arguments(config: EvalConfig) -> dict[str, Mapping[str, Any]]:
    """--eval_dataset_args by the names of --eval_dataset; UsageError for settings that a tool can't be given."""
    names = {name.lower(): name for name in config.evaluate.eval_dataset}
    found = {}
    for name, values in (config.evaluate.eval_dataset_args or {}).items():
        if name.lower() not in names:
            raise UsageError(f"{name} is not among --eval_dataset", where="--eval_dataset_args", fix="leave it out")
        for setting in values:
            if setting not in ("local_path", "subset_list"):
                fix = "local_path and subset_list can be set; --extra_eval_args hands on the rest"
                raise UsageError(f"unknown setting {setting!r}", where=f"--eval_dataset_args: {name}", fix=fix)
        found[names[name.lower()]] = values
    return found


def _documents(config: EvalConfig, tool: Tool, arguments: Mapping[str, Mapping[str, Any]]) -> dict[str, Documents]:
    """Our data in the tool's benchmarks, where we have it; where even the hub has none the tool looks for its own."""
    found = {}
    for name in config.evaluate.eval_dataset:
        wish = tool.wish(name)
        if wish is None:
            continue
        given = arguments.get(name, {})
        subjects = given.get("subset_list") or ()
        wish = replace(
            wish,
            local_path=given.get("local_path"),
            subjects=(subjects,) if isinstance(subjects, str) else tuple(subjects),
            limit=config.evaluate.eval_limit,
            local_dataset=config.evaluate.local_dataset,
            use_hf=config.model.use_hf,
            hub_token=config.model.hub_token,
        )
        try:
            found[name] = load_documents(find_benchmark(name), wish)
        except HubError as error:
            log.warning("%s: %s; %s looks for its own copy", name, error.what, tool.name)
    return found


def _work(tool: Tool, python: Path, asked: Asked) -> float:
    """Run the tool to its end; the seconds that it took. ToolError with the end of its output when it fails."""
    words, env = tool.command(python, asked)
    output = asked.folder / f"{tool.environment}.log"
    place = ensure_writable_dir(asked.folder / tool.environment)
    started = "import os, sys; os.chdir(sys.argv[1]); os.execv(sys.argv[2], sys.argv[2:])"
    log.info("%s is asking %s (its output: %s)", tool.name, asked.url, output)
    began = time.monotonic()
    with Child([str(python), "-c", started, str(place), *words], output, env) as child:
        code = child.wait()
        if code:
            tail = "\n".join(child.output().strip().splitlines()[-15:])
            raise ToolError(f"{tool.name} ended with exit code {code}:\n{tail}", where=str(output))
    return time.monotonic() - began


def missing_results(tool: Tool, asked: Asked, name: str) -> ToolError:
    output = asked.folder / f"{tool.environment}.log"
    return ToolError(
        f"{tool.name} ended well and left no result of {name}", where=str(output), fix="its output says why"
    )


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
