"""Engines generate text. All speak the protocol of `protocol.py`; `infer`, `serve` and `evaluate` know only that."""
