"""`swift infer`: a conversation, one question (--prompt), or the rows of a data set.

Promises: arguments and files are checked before torch is imported; --dry_run writes and loads nothing. Generation
itself is the engine's.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path
from typing import Any

from swift.config.commands import InferConfig
from swift.config.record import explain
from swift.data.media import KINDS
from swift.engines import setup
from swift.engines.answers import Question, answer_rows, grounded, remark
from swift.engines.asking import user_message
from swift.engines.interactive import Session, print_answer, turn_sampling
from swift.engines.options import check_backend
from swift.engines.protocol import Engine, GenerationRequest
from swift.engines.replies import Replies
from swift.errors import UsageError
from swift.say import speak

# Options of the shared sections that concern training only.
TRAINING_ONLY = {
    "loss_scale": "loss",
    "add_non_thinking_prefix": "replies",
    "padding_side": "batches",
}
# Options that only mean something for rows; those of the data section come on top.
ROWS_ONLY = ("result_path", "val_dataset_sample", "write_batch_size")


def main(config: InferConfig) -> int:
    """Run `swift infer` and return its exit code: 1 when an answer failed."""
    speak(stream="stderr")  # stdout is for answers
    check_backend(config)
    check_combinations(config)
    if config.engine.infer_backend in ("fake", "http"):
        return run(decide_mode(config), None)
    config, source = setup.find_source(config, load_data_args=config.infer.load_data_args)
    if config.head.task_type != "causal_lm":
        from swift.engines.heads import main as judge

        return judge(config, source)
    config = decide_mode(setup.decide_generation(config, source.files))
    return run(config, source)


def check_combinations(config: InferConfig) -> None:
    for name, what in TRAINING_ONLY.items():
        if config.given(name):
            raise UsageError(
                f"concerns the {what} of training and has no effect here", where=f"--{name}", fix="leave it out"
            )
    if config.infer.prompt is not None and has_rows(config):
        raise UsageError("--prompt asks one question, --dataset and --val_dataset many", fix="leave one of them out")
    if config.chat.truncation_strategy == "split" and config.given("truncation_strategy"):
        raise UsageError(
            "split makes several rows of a long one", where="--truncation_strategy", fix="left, right or delete"
        )
    if config.given("truncation_strategy") and not config.given("max_length"):
        raise UsageError("has no length to cut to", where="--truncation_strategy", fix="add --max_length")
    for kind in KINDS:
        if config.value(f"{kind}s") and config.infer.prompt is None:
            raise UsageError("belongs to --prompt", where=f"--{kind}s", fix='add --prompt "..."')
    if not has_rows(config) and not config.infer.load_data_args:
        data = [name for name, spec in config.specs().items() if spec.section == "data"]
        for name in (*ROWS_ONLY, *data):
            if config.given(name):
                raise UsageError("there are no rows to answer", where=f"--{name}", fix="add --val_dataset FILE")


def has_rows(config: InferConfig) -> bool:
    return bool(config.data.dataset or config.data.val_dataset)


def decide_mode(config: InferConfig) -> InferConfig:
    if config.infer.stream is None:
        rows = has_rows(config)
        why = "answers go to the result file" if rows else "answers are shown as they come"
        config = config.decide(why, stream=not rows)
    if config.data.dataset_shuffle and not config.given("dataset_shuffle") and config.data.split_dataset_ratio == 0:
        config = config.decide("rows are answered in their order", dataset_shuffle=False)
    return config


def run(config: InferConfig, source: setup.Source | None) -> int:
    if has_rows(config):
        config = decide_result_path(config, source)
    if config.common.dry_run:
        print(explain(config))
        return 0
    questions = read_questions(config, source) if has_rows(config) else []
    engine, encoder = build(config, source)
    replies = Replies(encoder)
    try:
        if has_rows(config):
            questions = [grounded(question, encoder) for question in questions]
            return run_rows(config, engine, replies, questions)
        if config.infer.prompt is not None:
            return run_prompt(config, engine, replies)
        takes_media = encoder.processor is not None
        session = Session(engine, setup.sampling_of(config), replies, bool(config.infer.stream), takes_media)
        session.run()
        return 1 if session.failures and not sys.stdin.isatty() else 0
    finally:
        engine.close()


def build(config: InferConfig, source: setup.Source | None) -> tuple[Engine, Any]:
    """The engine and its encoder (`parse` turns an answer's text into a message)."""
    began = time.monotonic()
    engine, encoder = setup.build_engine(config, source)
    if source is not None:
        remark(f"model ready after {time.monotonic() - began:.1f} s")
    return engine, encoder


def run_prompt(config: InferConfig, engine: Engine, replies: Replies) -> int:
    given = {kind: config.value(f"{kind}s") for kind in KINDS}
    request = GenerationRequest(
        messages=[user_message(str(config.infer.prompt), given)], sampling=setup.sampling_of(config)
    )
    print_answer(engine, request, replies, bool(config.infer.stream))
    return 0


def decide_result_path(config: InferConfig, source: setup.Source | None) -> InferConfig:
    if config.infer.result_path is not None:
        return config
    if source is not None and source.home is not None:
        home, why = source.home, "beside the checkpoint"
    else:
        name = config.engine.infer_backend if source is None else source.files.path.resolve().name
        home, why = Path("result") / name, "in ./result, by model"
    return config.decide(why, result_path=str(home / "infer_result" / f"{time.strftime('%Y%m%d-%H%M%S')}.jsonl"))


def settings_of(config: InferConfig, source: setup.Source | None) -> dict[str, Any]:
    """What an answer depends on beside its row: a result file is only continued with the same."""
    names = (
        "system",
        "template",
        "enable_thinking",
        "preserve_thinking",
        "template_kwargs",
        "response_prefix",
        "use_chat_template",
        "torch_dtype",
        "max_model_len",
    )
    names += (
        "max_new_tokens",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "repetition_penalty",
        "num_beams",
        "stop_words",
    )
    names += ("seed", "logprobs", "top_logprobs", "infer_backend")
    settings: dict[str, Any] = {name: config.value(name) for name in names}
    if source is not None:
        settings["model"] = str(source.files.path.resolve())
        settings["adapters"] = [str(path.resolve()) for path in source.adapters]
    return settings


def read_questions(config: InferConfig, source: setup.Source | None) -> list[Question]:
    """The validation rows if there are any, else the rows of --dataset; what became of each row read is printed."""
    from swift.data.load import load_rows

    loaded = load_rows(config.data, use_hf=config.model.use_hf, hub_token=config.model.hub_token, need_response=False)
    rows = list(loaded.val if len(loaded.val) else loaded.train)
    if loaded.report.dropped:
        remark(loaded.report.to_text())
    sample = config.infer.val_dataset_sample
    if sample is not None and sample < len(rows):
        seed = 42 if config.data.data_seed is None else config.data.data_seed
        rows = [rows[i] for i in sorted(random.Random(seed).sample(range(len(rows)), sample))]
    settings = settings_of(config, source)
    return [Question.of(row, str(row.source), settings) for row in rows]


def run_rows(config: InferConfig, engine: Engine, replies: Replies, questions: list[Question]) -> int:
    path = Path(str(config.infer.result_path))
    sampling = setup.sampling_of(config)
    try:
        failed = answer_rows(
            engine,
            questions,
            lambda i: turn_sampling(sampling, i),
            replies,
            path,
            ahead=config.infer.write_batch_size,
            show=bool(config.infer.stream),
        )
    except KeyboardInterrupt:
        remark(f"\nstopped; the same command with --result_path {path} goes on from there")
        raise
    remark(f"answers in {path}" + (f"; {failed} of {len(questions)} rows failed" if failed else ""))
    return 1 if failed else 0
