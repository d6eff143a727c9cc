"""Training: the trainer, its checkpoints and what it reports. `sft.main` is the command."""
