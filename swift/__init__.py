"""swift: a language model's whole life on one command line. Importing this package imports nothing heavy."""

__version__ = "0.1.0"
