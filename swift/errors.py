"""The errors that a user may see. Each says what is wrong, where, and what to do instead.

SwiftError                      exit code 1
├── UsageError                  2   the command line or a config file
│   └── NotBuiltYet             2   a known option or command that this version does not have
├── ModelFileError              3   a model directory that is missing, incomplete or broken
├── HubError                    4   a hub that can't be reached or says no
├── DataError                   5   data files, rows, columns
├── TemplateError               6   a chat template that can't encode a conversation exactly
├── ResourceError               7   disk, memory, permissions, devices
├── MissingPackage              8   an optional library that is not installed
├── TrainingError               9   a run that can't go on (NaN, no trainable parameter)
├── CheckpointError             10  a checkpoint that is broken or doesn't fit
└── ExportError                 11  a merge or conversion whose proof failed

The command line prints `str(error)` on stderr and exits with `exit_code`; SWIFT_DEBUG=1 shows the traceback.
"""

from __future__ import annotations


class SwiftError(Exception):
    """`what` is wrong, `where` (file:line, flag, tensor), and the `fix`: what to type or do instead."""

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None):
        super().__init__(what, where, fix)
        self.what, self.where, self.fix = what, where, fix

    def __reduce__(self):
        return _rebuild, (type(self), self.what, self.where, self.fix)

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        return f"{head}\n  -> {self.fix}" if self.fix else head


def _rebuild(kind: type[SwiftError], what: str, where: str | None, fix: str | None) -> SwiftError:
    return kind(what, where=where, fix=fix)


class UsageError(SwiftError):
    exit_code = 2


class NotBuiltYet(UsageError):
    pass


class ModelFileError(SwiftError):
    exit_code = 3


class HubError(SwiftError):
    exit_code = 4


class DataError(SwiftError):
    exit_code = 5


class TemplateError(SwiftError):
    exit_code = 6


class ResourceError(SwiftError):
    exit_code = 7


class MissingPackage(SwiftError):
    exit_code = 8


class TrainingError(SwiftError):
    exit_code = 9


class CheckpointError(SwiftError):
    exit_code = 10


class ExportError(SwiftError):
    exit_code = 11


def not_allowed(error: PermissionError) -> ResourceError:
    """What to show for a file or directory that the operating system keeps from us."""
    place = str(error.filename or "a file")
    fix = "ask its owner for the right to read and write it, or use a place of your own; ls -ld shows whose it is"
    return ResourceError("permission denied", where=place, fix=fix)
