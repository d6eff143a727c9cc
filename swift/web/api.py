"""What a page can ask of its server: one table of functions from plain values to plain values.

Each takes what a browser has sent (a dict of JSON values, not to be trusted) and answers with JSON values. A
SwiftError becomes its words. Runs and jobs are named by ids that are looked up, never by paths.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from swift.errors import SwiftError, UsageError
from swift.i18n import language, speaking
from swift.i18n.said import error_said
from swift.web import forms, preflight, suggest, tables, views
from swift.web.jobs import Jobs
from swift.web.runlist import RunList

log = logging.getLogger("swift")
LARGEST_FIELD = 1 << 16


Table = Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]]


class Api:
    """A page's way to its server: the functions of `tables`. `call` is what the page's parts are given."""

    def __init__(self, lang: str, *tables: Table):
        self.lang = lang
        self.table = {name: function for table in tables for name, function in table.items()}

    def call(self, request: Any) -> dict[str, Any]:
        """One call of a page: {"what": name, "args": {...}} -> the answer, or {"error": words}."""
        with speaking(self.lang):
            return self._answer(request)

    def _answer(self, request: Any) -> dict[str, Any]:
        try:
            what = request.get("what") if isinstance(request, dict) else None
            if not isinstance(what, str) or what not in self.table:
                raise UsageError(f"the page asks for {what!r}, which this server doesn't know", fix="reload the page")
            args = request.get("args")
            return self.table[what](args if isinstance(args, dict) else {})
        except SwiftError as error:
            return {"error": error_said(error)}
        except Exception as error:  # a page must hear of any failure; the server's log has the whole of it
            log.exception("the page's call failed")
            return {"error": error_said(error)}


class Work:
    """Forms, jobs, runs and tables, in the language of the page that asks."""

    def __init__(self, jobs: Jobs, runlist: RunList):
        self.jobs, self.runlist = jobs, runlist
        self.table: Table = {
            "form": lambda a: forms.schema(_word(a, "command"), language()),
            "preview": self.preview,
            "load_yaml": self.load_yaml,
            "suggest": lambda a: suggest.values(_word(a, "command"), runlist),
            "start": self.start,
            "plan": lambda a: preflight.plan(_word(a, "command"), _fields(a)),
            "resolved": lambda a: preflight.resolved(_word(a, "command"), _fields(a)),
            "data": lambda a: preflight.data(_word(a, "command"), _fields(a)),
            "models": tables.models,
            "datasets": tables.datasets,
            "eval_report": lambda a: views.eval_report(runlist.find(_word(a, "id"))),
            "runs": self.runs,
            "stop": self.stop,
            "kill": self.kill,
            "resume": self.resume,
            "data_report": lambda a: views.data_report(runlist.find(_word(a, "id"))),
            "folder": lambda a: views.folder(runlist.find(_word(a, "id"))),
        }

    # ---- forms ----

    def preview(self, args: Mapping[str, Any]) -> dict[str, Any]:
        command, fields = _word(args, "command"), _fields(args)
        wrong = forms.mistakes(command, fields)
        try:
            line = forms.command_line(command, fields)
        except UsageError:
            line = ""
        return {"line": line, "yaml": "" if wrong else forms.to_yaml(command, fields), "mistakes": wrong}

    def load_yaml(self, args: Mapping[str, Any]) -> dict[str, Any]:
        return {"fields": forms.from_yaml(_word(args, "command"), _word(args, "content", 1 << 20))}

    def start(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Start a command, if neither the command line nor a dry run finds anything wrong with it."""
        command, fields = _word(args, "command"), _fields(args)
        wrong = forms.mistakes(command, fields) or preflight.objections(command, fields)
        if wrong:
            return {"mistakes": wrong}
        return {"job": self.jobs.start(forms.argv(command, fields)).id, "mistakes": {}}

    # ---- runs ----

    def runs(self, args: Mapping[str, Any]) -> dict[str, Any]:
        only, chosen = args.get("only"), args.get("chosen")
        found = self.runlist.list()
        if isinstance(only, list):
            found = [run for run in found if views.command_of(run) in only]
        wanted = [run for run in found if run.id == chosen or any(job.id == chosen for job in run.jobs)]
        shown = wanted[:1] or (found[:1] if chosen is None else [])
        compare = args.get("compare")
        others = [run for run in found if isinstance(compare, list) and run.id in compare and run.path]
        return {
            "runs": [views.line(run) for run in found],
            "detail": views.detail(shown[0]) if shown else None,
            "compared": [views.compared(run) for run in others],
        }

    def stop(self, args: Mapping[str, Any]) -> dict[str, Any]:
        self.jobs.stop(self._job(args))
        return {}

    def kill(self, args: Mapping[str, Any]) -> dict[str, Any]:
        self.jobs.kill(self._job(args))
        return {}

    def _job(self, args: Mapping[str, Any]) -> str:
        run = self.runlist.find(_word(args, "id"))
        if run.job is None or not run.job.alive:
            raise UsageError("this run is not running here any more")
        return run.job.id

    def resume(self, args: Mapping[str, Any]) -> dict[str, Any]:
        run = self.runlist.find(_word(args, "id"))
        if run.path is None or "resume" not in views.actions(run):
            raise UsageError("there is nothing to resume: no complete checkpoint, or the run goes on")
        cwd = run.job.cwd if run.job else Path.cwd()
        command = views.command_of(run)
        job = self.jobs.start([command, "--resume_from_checkpoint", str(run.path)], cwd if cwd.is_dir() else None)
        return {"job": job.id}


def _word(args: Mapping[str, Any], name: str, most: int = LARGEST_FIELD) -> str:
    value = args.get(name)
    if not isinstance(value, str) or len(value) > most:
        raise UsageError(f"the page sent no proper {name!r}", fix="reload the page")
    return value


def _fields(args: Mapping[str, Any]) -> dict[str, Any]:
    fields = args.get("fields")
    if not isinstance(fields, dict) or any(not isinstance(v, str | bool) for v in fields.values()):
        raise UsageError("the page sent no proper fields", fix="reload the page")
    return {str(name): value for name, value in fields.items()}
