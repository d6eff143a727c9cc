"""`swift deploy`: from the command line's options to a running server.

Promises: options, files, certificates and the port are checked before weights are loaded; --dry_run loads and writes
nothing; the server listens on this machine alone unless told otherwise; SIGTERM and SIGINT let running requests
finish within GRACE_SECONDS and then end them with an error.
"""

from __future__ import annotations

import copy
import logging
import re
import socket
import ssl
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from swift.chat import ChatEncoder
from swift.chat.render import compiled
from swift.config.commands import DeployConfig
from swift.config.record import explain
from swift.engines import setup
from swift.engines.options import check_backend
from swift.engines.protocol import Engine, GenerationRequest, Sampling
from swift.engines.texts import PlainTexts
from swift.errors import ResourceError, UsageError
from swift.serve.formats import learn_forcing, learn_format
from swift.serve.prompts import CodePoints, CodePointTexts, EnginePrompts, TemplatePrompts, TokenizerPrompts
from swift.serve.replies import ReplyFormat
from swift.serve.server import run
from swift.serve.service import Limits, Reading, Service, Settings

# Options of the shared sections that mean nothing to a server, and what does instead.
NOT_HERE = {
    "loss_scale": "it concerns training",
    "padding_side": "it concerns batches of training",
    "max_length": "it concerns rows; --max_model_len bounds prompt and answer",
    "truncation_strategy": "a server never truncates a prompt",
    "use_chat_template": "plain text has its own endpoint, /v1/completions",
    "logprobs": "each request asks for them itself",
    "loss_type": "it concerns training",
    "infonce_temperature": "it concerns training",
    "top_logprobs": "each request asks for them itself; --max_logprobs bounds them",
}
CONVERSATIONS_OWN = {"messages", "tools", "documents", "add_generation_prompt", "raise_exception", "strftime_now"}
RESTART_PATIENCE = 2.0  # seconds that a request waits for a server that is away, before its 503
WIRE_MARKS = (("<think>", "</think>"), ("<tool_call>",))  # see engines/wire.py
NAMED = re.compile(r"[A-Za-z0-9_.:-]+=.+")


def main(config: DeployConfig) -> int:
    """Run `swift deploy` until it is told to stop; returns the exit code."""
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    logging.getLogger("swift").setLevel(config.serving.log_level.upper())
    check(config)
    adapter_names(config)
    check_backend(config)
    source = None
    if config.engine.infer_backend not in ("fake", "http"):
        config, source = find_source(config)
        check_task(config)
    if not config.serving.served_model_name:
        if source is not None:
            config = config.decide("the model's directory", served_model_name=(source.files.path.resolve().name,))
        else:
            name = config.model.model or config.engine.infer_backend
            config = config.decide("the model's name", served_model_name=(name,))
    if config.common.dry_run:
        shown = config.decide("not shown", api_key="***") if config.serving.api_key else config
        print(explain(shown))
        return 0
    with listen(config) as listener:
        service = build(config, source)
        run(service, config.serving, listener)
    return 0


def check(config: DeployConfig) -> None:
    for name, why in NOT_HERE.items():
        if config.given(name):
            raise UsageError(f"has no effect here: {why}", where=f"--{name}", fix="leave it out")
    serving = config.serving
    if (serving.ssl_keyfile is None) != (serving.ssl_certfile is None):
        raise UsageError("TLS needs both --ssl_keyfile and --ssl_certfile", fix="name both, or neither")
    if serving.ssl_certfile is not None:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(serving.ssl_certfile, serving.ssl_keyfile)
        except (OSError, ssl.SSLError) as error:
            raise UsageError(
                f"the certificate can't be used: {error}", where=f"--ssl_certfile {serving.ssl_certfile}"
            ) from None
    if serving.api_key == "":
        raise UsageError("is empty", where="--api_key", fix="give a key, or leave the option out")


def check_task(config: DeployConfig) -> None:
    """What a model that embeds, ranks or classifies can't be deployed with."""
    task = config.head.task_type
    if task == "causal_lm":
        return
    if config.engine.infer_backend != "pt":
        raise UsageError(f"only pt runs --task_type {task}", where="--infer_backend", fix="--infer_backend pt")
    if adapter_names(config) is not None:
        fix = "--adapters PATH, without a name"
        raise UsageError(f"--task_type {task} has one adapter, always on", where="--adapters", fix=fix)
    if config.engine.merge_lora:
        raise UsageError(
            f"is not done for --task_type {task}", where="--merge_lora", fix="swift export --merge_lora true"
        )


def find_source(config: DeployConfig) -> tuple[DeployConfig, setup.Source]:
    """The files that the options mean, and the settings that were saved with them."""
    given = config.model.adapters
    paths = [path.partition("=")[2] if NAMED.fullmatch(path) else path for path in given]
    config, source = setup.find_source(config, paths)
    return setup.decide_generation(config, source.files), source


def adapter_names(config: DeployConfig) -> tuple[str, ...] | None:
    """The names in `--adapters name=path ...`: models beside the base. None when the adapters are always on."""
    given = config.model.adapters
    named = [path.partition("=")[0] for path in given if NAMED.fullmatch(path)]
    if not named:
        return None
    where = f"--adapters {' '.join(given)}"
    if len(named) < len(given):
        raise UsageError("some adapters have names and some have none", where=where, fix="name=PATH for each")
    if len(set(named)) < len(named):
        raise UsageError("two adapters have the same name", where=where)
    if config.engine.merge_lora:
        raise UsageError("a merged adapter can't be chosen by name", where="--merge_lora", fix="--adapters PATH")
    return tuple(named)


def listen(config: DeployConfig) -> socket.socket:
    """The bound socket: a port that is taken is found before the weights are loaded."""
    host, port = config.serving.host, config.serving.port
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ResourceError(
            f"can't listen there: {reason}", where=f"{host}:{port}", fix="choose another --port or --host"
        ) from None
    return listener


def build(config: DeployConfig, source: setup.Source | None) -> Service:
    """The engine with what the server needs beside it. Loads the weights."""
    settings = settings_of(config)
    if config.head.task_type != "causal_lm":
        assert source is not None
        return build_judge(config, source, settings)
    engine, shared = setup.build_engine(config, source, adapter_names(config), RESTART_PATIENCE)
    if config.engine.infer_backend == "fake":
        form = ReplyFormat(lambda text, tools: {"role": "assistant", "content": text})
        return Service(engine, CodePoints(), form, settings, reading=Reading(CodePointTexts()))
    if source is None:
        return Service(engine, EnginePrompts(), ReplyFormat(shared.parse, *WIRE_MARKS), settings)
    encoder = copy.deepcopy(shared)  # the engine's own is used in its threads
    form = learn_format(encoder, encoder.parse)
    opener = form.reasoning[0] if form.reasoning else None
    prompts = TemplatePrompts(
        encoder,
        opener,
        template_variables(encoder),
        lambda variables: with_variables(encoder, variables),
        kinds_of(engine, encoder),
    )
    probe = GenerationRequest(prompt_ids=prompts.encode("a")[:1])
    ends = [encoder.tokenizer.decode([i]) for i in encoder.stop_token_ids]
    reading = Reading(PlainTexts(encoder.tokenizer, engine.capabilities.context_length))
    return Service(engine, prompts, form, settings, probe, learn_forcing(encoder, ends), reading)


def build_judge(config: DeployConfig, source: setup.Source, settings: Settings) -> Service:
    """A model that embeds, ranks or classifies. Loads the weights."""
    from swift.engines.judging import load_judge
    from swift.engines.pooling import PoolingEngine

    judge = load_judge(config, source)
    engine = PoolingEngine(judge.pooler, judge.tasks, judge.texts.limit, judge.notes)
    prompts = TokenizerPrompts(judge.texts.tokenizer)
    form = ReplyFormat(lambda text, tools: {"role": "assistant", "content": text})
    probe = GenerationRequest(prompt_ids=judge.texts.one("a").ids)
    reading = Reading(judge.texts, judge.labels, config.head.problem_type == "regression")
    return Service(engine, prompts, form, settings, probe, reading=reading)


def kinds_of(engine: Engine, encoder: ChatEncoder) -> frozenset[str]:
    """What requests may hold beside text: what the model's processor reads, where the engine takes its tensors."""
    if encoder.processor is None or not engine.capabilities.inputs:
        return frozenset()
    return encoder.processor.kinds


def template_variables(encoder: ChatEncoder) -> frozenset[str]:
    """What a request may set: all that the template reads, without what each conversation brings along."""
    template = compiled(encoder.template or encoder.tokenizer.get_chat_template())
    return template.variables - set(encoder.tokenizer.special_tokens_map) - CONVERSATIONS_OWN


def with_variables(encoder: ChatEncoder, variables: Mapping[str, Any]) -> ChatEncoder:
    """The encoder with further template variables (a request's chat_template_kwargs)."""
    changed = copy.copy(encoder)
    changed.variables = {**encoder.variables, **variables}
    return changed


def settings_of(config: DeployConfig) -> Settings:
    serving = config.serving
    seed = config.generation.seed if config.given("seed") else None
    defaults: Sampling = replace(setup.sampling_of(config), seed=seed, logprobs=False, top_logprobs=0)
    path = (config.model.model,) if config.model.model else ()
    return Settings(
        names=serving.served_model_name,
        also=path,
        owned_by=serving.owned_by,
        api_key=serving.api_key,
        defaults=defaults,
        limits=Limits(
            max_queue=serving.max_queue, request_timeout=serving.request_timeout, max_logprobs=serving.max_logprobs
        ),
        verbose=serving.verbose,
    )
