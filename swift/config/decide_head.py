"""What --task_type decides and forbids, before any data is read."""

from __future__ import annotations

from swift.config.commands import SftConfig
from swift.config.heads import LOSSES
from swift.errors import UsageError

# options of other sections that a run without learned tokens has no use for: name -> the value that is no wish
WITHOUT_USE = {
    "loss_scale": "default",
    "response_prefix": None,
    "padding_side": "right",
    "cached_dataset": (),
    "cached_val_dataset": (),
    "use_liger_kernel": False,
    "acc_strategy": "token",
}


def decide_head(config: SftConfig) -> SftConfig:
    """The loss of the task; UsageError for options that don't go together. Needs no data."""
    head = config.head
    task = head.task_type
    wanted = {"num_labels": ("seq_cls",), "problem_type": ("seq_cls",), "label_names": ("seq_cls",)}
    wanted |= {"loss_type": ("embedding", "reranker"), "infonce_temperature": ("embedding",)}
    for name, tasks in wanted.items():
        if config.given(name) and task not in tasks:
            fix = f"--task_type {' or '.join(tasks)}"
            raise UsageError(f"means nothing with --task_type {task}", where=f"--{name}", fix=fix)
    if task == "causal_lm":
        return config
    for name, default in WITHOUT_USE.items():
        if name in config.specs() and config.given(name) and config.value(name) != default:
            raise UsageError(f"means nothing with --task_type {task}", where=f"--{name}", fix="leave it out")
    if config.chat.truncation_strategy == "split":
        fix = "left, right or delete"
        raise UsageError("a text is read as a whole", where="--truncation_strategy split", fix=fix)
    if task == "seq_cls":
        return config
    if head.loss_type is None:
        return config.decide(f"the usual one of --task_type {task}", loss_type=LOSSES[task][0])
    if head.loss_type not in LOSSES[task]:
        fix = f"one of {', '.join(LOSSES[task])}"
        raise UsageError(f"is no loss of --task_type {task}", where=f"--loss_type {head.loss_type}", fix=fix)
    return config
