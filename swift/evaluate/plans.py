"""What the options ask of each benchmark: its data, its mode, its prompts. Everything that can be wrong in
--eval_dataset_args and --eval_generation_config is found here, before a model is loaded.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from swift.config.commands import EvalConfig
from swift.errors import UsageError
from swift.evaluate.answering import Answerer
from swift.evaluate.benchmarks import Benchmark, find_benchmark
from swift.evaluate.data import Wish

LIKELIHOOD, GENERATION = "log-likelihood", "generation"
MODES = {
    "ll": LIKELIHOOD,
    "loglikelihood": LIKELIHOOD,
    LIKELIHOOD: LIKELIHOOD,
    "gen": GENERATION,
    GENERATION: GENERATION,
}
DATASET_KEYS = ("local_path", "subset_list", "few_shot_num", "filters", "limit", "mode")
GENERATION_KEYS = {
    "max_tokens": "max_gen_toks",
    "max_new_tokens": "max_gen_toks",
    "max_gen_toks": "max_gen_toks",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "repetition_penalty": "repetition_penalty",
    "seed": "seed",
    "stop": "until",
    "until": "until",
}


@dataclass(frozen=True)
class Plan:
    """How one benchmark is asked. `generation` overrides the task's settings (lm-eval's names)."""

    mode: str
    chat: bool
    shots: int
    generation: Mapping[str, Any]
    remove_until: str | None = None
    system: str | None = None


@dataclass(frozen=True)
class Wanted:
    """A benchmark with the user's wishes. `mode`, `shots` are None where nothing was said."""

    benchmark: Benchmark
    wish: Wish
    mode: str | None
    shots: int | None
    remove_until: str | None
    chat: bool | None
    generation: Mapping[str, Any]
    system: str | None

    def plan(self, answerer: Answerer) -> Plan:
        """The plan with this answerer; UsageError when it can't answer so."""
        benchmark = self.benchmark
        mode = self.mode or (GENERATION if benchmark.generates or not answerer.scores else LIKELIHOOD)
        if mode == LIKELIHOOD and not answerer.scores:
            raise UsageError(
                f"{answerer.name} gives no log-probabilities of a prompt",
                where=f"{benchmark.name}: mode {mode}",
                fix="leave the mode out: the questions are then asked by generation",
            )
        if mode == GENERATION and benchmark.judge == "truthfulqa_mc2":
            raise UsageError(
                "the share of probability on true answers can't be had by generation",
                where=benchmark.name,
                fix="--eval_dataset TruthfulQA asks for the best answer",
            )
        letters = mode == GENERATION and not benchmark.generates
        chat = self.chat if self.chat is not None else (benchmark.chat or letters) and answerer.chats
        if chat and not answerer.chats:
            raise UsageError("the model has no chat template", where="--use_chat_template", fix="leave it out")
        shots = 0 if letters else int(benchmark.lm_eval.get("num_fewshot") or 0)
        if self.shots is not None:
            shots = self.shots
        if letters and shots:
            raise UsageError(
                "questions asked by letters have no examples",
                where=f"{benchmark.name}: few_shot_num",
                fix="leave it out",
            )
        return Plan(mode, chat, shots, self.generation, self.remove_until, self.system if chat else None)


def wanted(config: EvalConfig) -> list[Wanted]:
    """The benchmarks of --eval_dataset, each once, in the order typed."""
    found = [find_benchmark(name) for name in config.evaluate.eval_dataset]
    benchmarks = list(dict.fromkeys(benchmark.name for benchmark in found))
    chosen = [next(b for b in found if b.name == name) for name in benchmarks]
    arguments = _arguments(config.evaluate.eval_dataset_args, chosen)
    generation = generation_settings(config.evaluate.eval_generation_config)
    chat = config.chat.use_chat_template if config.given("use_chat_template") else None
    return [_wanted(config, b, arguments.get(b.name, {}), generation, chat) for b in chosen]


def _wanted(
    config: EvalConfig, benchmark: Benchmark, given: Mapping[str, Any], generation: Mapping[str, Any], chat: bool | None
) -> Wanted:
    where = f"--eval_dataset_args: {benchmark.name}"
    _known(given, DATASET_KEYS, where)
    shots = _number(given, "few_shot_num", 0, where)
    limit = _number(given, "limit", 1, where) or config.evaluate.eval_limit
    filters = given.get("filters") or {}
    _known(filters, ("remove_until",), f"{where}: filters")
    mode = given.get("mode")
    if mode is not None and str(mode).lower() not in MODES:
        raise UsageError(f"{mode!r} is not possible", where=f"{where}: mode", fix=f"{LIKELIHOOD} or {GENERATION}")
    if mode is not None and benchmark.generates and MODES[str(mode).lower()] == LIKELIHOOD:
        raise UsageError(
            "this benchmark is scored by what the model writes", where=f"{where}: mode", fix="leave it out"
        )
    subsets = given.get("subset_list") or ()
    options = config.evaluate
    default_shots = 0 if benchmark.examples else int(benchmark.lm_eval.get("num_fewshot") or 0)
    wish = Wish(
        local_path=given.get("local_path"),
        subjects=(subsets,) if isinstance(subsets, str) else tuple(map(str, subsets)),
        limit=limit,
        shots=default_shots if shots is None else shots,
        local_dataset=options.local_dataset,
        use_hf=config.model.use_hf,
        hub_token=config.model.hub_token,
    )
    if benchmark.own and wish.local_path is None and wish.local_dataset is None:
        raise UsageError(
            f"{benchmark.name} is your own data: say where it lies",
            where=f"--eval_dataset {benchmark.name}",
            fix=f"""--eval_dataset_args '{{"{benchmark.name}": {{"local_path": "DIRECTORY"}}}}'""",
        )
    return Wanted(
        benchmark,
        wish,
        None if mode is None else MODES[str(mode).lower()],
        shots,
        filters.get("remove_until"),
        chat,
        generation,
        config.chat.system,
    )


def _arguments(given: Mapping[str, Any] | None, chosen: Iterable[Benchmark]) -> dict[str, Mapping[str, Any]]:
    found = {}
    names = {benchmark.name for benchmark in chosen}
    for name, values in (given or {}).items():
        benchmark = find_benchmark(name)
        if benchmark.name not in names:
            raise UsageError(
                f"{name} is not among --eval_dataset {' '.join(sorted(names))}",
                where="--eval_dataset_args",
                fix="leave it out, or add it to --eval_dataset",
            )
        if not isinstance(values, Mapping):
            raise UsageError(f"{name} needs a JSON object", where="--eval_dataset_args", fix=f'{{"{name}": {{}}}}')
        found[benchmark.name] = values
    return found


def generation_settings(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """--eval_generation_config with lm-eval's names; UsageError for what isn't known."""
    values: dict[str, Any] = {}
    for name, value in (given or {}).items():
        if name == "do_sample":
            if not value:
                values["temperature"] = 0.0
            continue
        _known({name: value}, tuple(GENERATION_KEYS), "--eval_generation_config")
        values[GENERATION_KEYS[name]] = value
    limit = values.get("max_gen_toks")
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise UsageError(f"{limit!r} is not a number of tokens", where="--eval_generation_config: max_tokens")
    return values


def _known(given: Mapping[str, Any], names: tuple[str, ...], where: str) -> None:
    for name in given:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            fix = f"did you mean {near[0]}?" if near else f"what can be set here: {', '.join(names)}"
            raise UsageError(f"unknown setting {name!r}", where=where, fix=fix)


def _number(given: Mapping[str, Any], name: str, low: int, where: str) -> int | None:
    value = given.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise UsageError(f"{value!r} is not a whole number from {low}", where=f"{where}: {name}")
    return value
