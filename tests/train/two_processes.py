"""One of several training processes (gloo, CPU) of test_distributed.py: DIRECTORY STOP_AFTER_STEP."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from transformers import TrainerCallback

from swift.train import checkpoints
from tests import tiny
from tests.train import support


class Stop(TrainerCallback):
    """Stands for an interrupt that reached one process only."""

    def __init__(self, trainer_interrupt, step: int):
        self.interrupt, self.step = trainer_interrupt, step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step and args.process_index == 1:
            self.interrupt.signal = 15


def main(directory: Path, stop: int) -> None:
    from swift.train.interrupt import Interrupt

    cfg = support.config(
        per_device_train_batch_size=4 // int(os.environ["WORLD_SIZE"]),
        gradient_accumulation_steps=2,
        num_train_epochs=2.0,
        logging_steps=1,
        save_steps=3,
        val_dataset=("x",),
        eval_steps=3,
        lora_dropout=0.1,
        ddp_backend="gloo",
        use_cpu=True,
    )
    interrupt = Interrupt()
    checkpoint, _ = checkpoints.newest_complete(directory) if directory.is_dir() else (None, [])
    model = support.lora(tiny.model("llama"), dropout=0.1 if stop >= 0 else 0.0)
    trainer = support.trainer(
        directory,
        model,
        support.encoded_rows(21),
        support.encoded_rows(5, seed=3),
        cfg,
        [Stop(interrupt, stop)],
        interrupt=interrupt,
    )
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    trainer.leave_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
