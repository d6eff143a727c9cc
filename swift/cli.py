"""The `swift` command: finds the command, answers --help and --version, parses, starts torchrun, shows errors.

Imports nothing heavy before the arguments are known to be right. This is the only place that writes the environment.
"""

from __future__ import annotations

import os
import sys

from swift.config.packages import bnb_switched_off, check_typed
from swift.errors import MissingPackage, NotBuiltYet, SwiftError, UsageError, not_allowed


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 130 after Ctrl-C, the error's code otherwise."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        return _run(argv)
    except SwiftError as error:
        if os.environ.get("SWIFT_DEBUG") == "1":
            raise
        from swift.i18n.said import error_said

        print(f"swift: {error_said(error)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\nswift: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of a pipe went away (`swift list-models | head`): not an error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if os.environ.get("SWIFT_DEBUG") == "1":
            raise
        return _unexpected(error)


def _run(argv: list[str]) -> int:
    from swift.config.help import command_page, main_page
    from swift.config.registry import COMMANDS, load

    if not argv or argv[0] in ("-h", "--help", "help"):
        print(main_page(), end="")
        return 0
    if argv[0] in ("-v", "-V", "--version", "version"):
        from swift import __version__

        print(f"swift {__version__}")
        return 0
    name, rest = _canonical(argv[0]), argv[1:]
    command = COMMANDS.get(name)
    if command is None:
        import difflib

        near = difflib.get_close_matches(name, COMMANDS, n=2)
        fix = f"did you mean {' or '.join(f'swift {n}' for n in near)}?" if near else "see swift --help"
        raise UsageError(f"unknown command {argv[0]!r}", fix=fix)
    if command.config is None or command.main is None:
        raise NotBuiltYet(f"swift {name} is not built yet in this version", fix="see swift --help for what is")
    config_class = load(command.config)
    if "-h" in rest or "--help" in rest:
        print(command_page(name, config_class), end="")
        return 0
    from swift.config.parse import parse

    parsed = parse(config_class, rest, command.positional)
    os.environ.update(parsed.env)
    _switch_off_bnb()
    if name != "plan":  # which may plan for another machine
        check_typed(parsed.config)
    if hasattr(parsed.config, "common"):
        from swift import plugins

        plugins.load(parsed.config.common.external_plugins)
    config = parsed.config.decide(f"swift {name}", **{k: v for k, v in command.forced if not parsed.config.given(k)})
    if command.launch:
        from swift.launch import exec_torchrun_if_asked

        exec_torchrun_if_asked(argv)
    main = load(command.main)
    if command.advice is not None:
        return main(config, load(command.advice)) or 0
    return main(config) or 0


def _switch_off_bnb() -> None:
    """USE_BNB=0: for this process bitsandbytes isn't installed, so that no library imports a broken one."""
    if bnb_switched_off():
        sys.modules["bitsandbytes"] = None  # type: ignore[assignment]


def _canonical(word: str) -> str:
    return word.replace("_", "-").lower()


def _unexpected(error: Exception) -> int:
    """A failure that no check foresaw: say what it was and how to see the whole of it, without a traceback."""
    where = ""
    frame = error.__traceback__
    while frame is not None:
        where = f"{os.path.basename(frame.tb_frame.f_code.co_filename)}:{frame.tb_lineno}"
        frame = frame.tb_next
    message = str(error).strip() or type(error).__name__
    if isinstance(error, PermissionError):
        from swift.i18n.said import error_said

        print(f"swift: {error_said(not_allowed(error))}", file=sys.stderr)
        return not_allowed(error).exit_code
    from swift.advise.checks.imports import finding_of

    finding = finding_of(error)
    if finding is not None:
        from swift.i18n.said import said

        print(f"swift: {finding.name}: {said(finding.what)} ({message.splitlines()[0]}, at {where})", file=sys.stderr)
        print(f"  -> {said(finding.fix)}   (swift doctor looks at the rest)", file=sys.stderr)
        return MissingPackage.exit_code
    print(f"swift: {type(error).__name__}: {message} (at {where})", file=sys.stderr)
    print("  -> SWIFT_DEBUG=1 shows the traceback; please report it with the command line", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
