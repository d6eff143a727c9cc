"""The commands: name -> where their config class and main function stand, as strings: nothing is imported early."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Command:
    """`config` and `main` are "module:name". `positional` names the option that words before the first option are for.

    `forced` are values that make one command a variant of another, and `launch` says that it starts through torchrun
    when NPROC_PER_NODE or NNODES ask for it. `advice` names what `main` takes as its second argument: a look at the
    decided config from a room that `main` may not import. A command without `main` is known but not built.
    """

    config: str | None = None
    main: str | None = None
    positional: str | None = None
    forced: tuple[tuple[str, Any], ...] = ()
    launch: bool = False
    advice: str | None = None


COMMANDS: dict[str, Command] = {
    "list-models": Command(
        "swift.config.commands:ListModelsConfig", "swift.catalog.listing:list_models", positional="query"
    ),
    "list-datasets": Command(
        "swift.config.commands:ListDatasetsConfig", "swift.catalog.listing:list_datasets", positional="query"
    ),
    "sft": Command(
        "swift.config.commands:SftConfig", "swift.train.sft:main", launch=True, advice="swift.advise.fit:before_weights"
    ),
    "pt": Command(
        "swift.config.commands:SftConfig",
        "swift.train.sft:main",
        forced=(("use_chat_template", False), ("loss_scale", "all")),
        launch=True,
        advice="swift.advise.fit:before_weights",
    ),
    "data": Command("swift.config.commands:DataConfig", "swift.train.preview:main", positional="dataset"),
    "infer": Command("swift.config.commands:InferConfig", "swift.engines.infer:main"),
    "export": Command("swift.config.commands:ExportConfig", "swift.export.export:main"),
    "merge-lora": Command(
        "swift.config.commands:ExportConfig", "swift.export.export:main", forced=(("merge_lora", True),)
    ),
    "doctor": Command("swift.config.commands:DoctorConfig", "swift.advise.doctor:main", positional="model"),
    "plan": Command("swift.config.commands:PlanConfig", "swift.advise.plan:main"),
    "env": Command("swift.config.commands:EnvConfig", "swift.advise.env:main", positional="action"),
    "deploy": Command("swift.config.commands:DeployConfig", "swift.serve.deploy:main"),
    "eval": Command("swift.config.commands:EvalConfig", "swift.evaluate.main:main"),
    "web-ui": Command("swift.config.commands:WebConfig", "swift.web.main:web_ui"),
    "app": Command("swift.config.commands:AppConfig", "swift.web.main:app"),
    "rlhf": Command(),
    "sample": Command(),
    "rollout": Command(),
}


def load(reference: str) -> Any:
    """The object that "module:name" names."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


def option_of(command: str, option: str) -> Any:
    """The `Spec` of a command's option of this name, or with this alias."""
    specs = load(COMMANDS[command].config).specs()
    return specs.get(option) or next(spec for spec in specs.values() if option in spec.aliases)


def commands_taking(option: str) -> list[str]:
    """The built commands that have an option of this name."""
    found = []
    for name, command in COMMANDS.items():
        if command.config:
            specs = load(command.config).specs()
            if option in specs or any(option in spec.aliases for spec in specs.values()):
                found.append(name)
    return found
