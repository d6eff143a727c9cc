"""Benchmarks over an Engine or a URL. Room kept by the design; `swift eval` says that it is not built yet."""
