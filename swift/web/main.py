"""`swift web-ui` and `swift app`: checks, the pages of both languages behind one guard, and the server.

Promises: the address rule is checked, and the port taken, before anything is built; torch is never imported here;
jobs go on when the server ends, servers of the chat end with it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swift import runs
from swift.config.commands import AppConfig, WebConfig
from swift.config.record import explain
from swift.config.web import WebOptions
from swift.errors import MissingPackage, ResourceError, UsageError
from swift.i18n import LANGUAGES, language
from swift.web import forms, guard, page
from swift.web.api import Api, Work
from swift.web.chat import OWN as CHATS_OWN
from swift.web.chat import Chat, ChatApi
from swift.web.jobs import Jobs
from swift.web.runlist import RunList

if TYPE_CHECKING:
    from fastapi import FastAPI

log = logging.getLogger("swift")
JOBS = ".jobs"
BACKLOG = 128


def web_ui(config: WebConfig) -> int:
    """Serve the whole page until told to stop."""
    options = config.web
    check(options)
    if config.common.dry_run:
        print(explain(config.decide("not shown", password="***") if options.password else config))
        return 0
    gradio()
    with listen(options) as listener:
        jobs, runlist = places(options)
        chat = Chat(jobs.directory)
        try:
            serve(application(options, jobs, runlist, chat), listener, options)
        finally:
            chat.close()
    return 0


def app(config: AppConfig) -> int:
    """Serve the chat page alone, with one model."""
    options = config.web
    check(options)
    name = config.model.model or " ".join(config.model.adapters) or config.backends.base_url
    if not name:
        raise UsageError("no model", fix="--model DIRECTORY_OR_NAME, or --adapters CHECKPOINT")
    for own in CHATS_OWN:
        if config.given(own):
            raise UsageError("the page's server sets this itself", where=f"--{own}", fix="leave it out")
    if config.common.dry_run:
        print(explain(config.decide("not shown", password="***") if options.password else config))
        return 0
    gradio()
    deploy = forms.specs_of("deploy")
    argv = forms.argv("deploy", {k: v for k, v in forms.fields_of(config).items() if k in deploy})
    with listen(options) as listener, tempfile.TemporaryDirectory(prefix="swift-app-") as folder:
        chat = Chat(Path(folder), fixed=argv)
        try:
            blocks = {lang: page.build_chat(Api(lang, ChatApi(chat).table), lang, name) for lang in LANGUAGES}
            serve(guarded(mounted(blocks, chosen_language(options)), options), listener, options)
        finally:
            chat.close()
    return 0


def check(options: WebOptions) -> None:
    if options.share:
        raise UsageError(
            "a public tunnel is not offered", where="--share", fix="ssh -L 7860:127.0.0.1:7860 HOST reaches the page"
        )
    guard.check(options.server_name, options.username, options.password)


def places(options: WebOptions) -> tuple[Jobs, RunList]:
    """The jobs' directory and the list of runs. ResourceError where nothing can be written."""
    roots = [Path(folder).expanduser().absolute() for folder in options.runs_dir]
    folder = Path(options.jobs_dir).expanduser().absolute() if options.jobs_dir else roots[0] / JOBS
    runs.ensure_writable_dir(folder)
    folder.chmod(0o700)
    jobs = Jobs(folder)
    return jobs, RunList(roots, jobs)


def gradio() -> Any:
    """The library, imported here for the first time. MissingPackage when it isn't installed."""
    try:
        import gradio
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "gradio":
            raise
        raise MissingPackage("the page needs gradio, which isn't installed", fix="pip install -e '.[web]'") from None
    return gradio


def chosen_language(options: WebOptions) -> str:
    """--lang, else SWIFT_UI_LANG, else that of the command line."""
    asked = options.lang or os.environ.get("SWIFT_UI_LANG", "").lower()[:2]
    return asked if asked in LANGUAGES else language()


def application(options: WebOptions, jobs: Jobs, runlist: RunList, chat: Chat) -> Any:
    """The ASGI application: /en/ and /zh/, / leads to the chosen one."""
    work, talk = Work(jobs, runlist).table, ChatApi(chat).table
    blocks = {lang: page.build(Api(lang, work, talk), lang) for lang in LANGUAGES}
    return guarded(mounted(blocks, chosen_language(options)), options)


def mounted(blocks: dict[str, Any], first: str) -> FastAPI:
    from fastapi import FastAPI
    from fastapi.responses import FileResponse, RedirectResponse

    app = FastAPI(title="swift", docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/")
    def start() -> RedirectResponse:
        return RedirectResponse(f"{first}/", status_code=307)

    @app.get("/favicon.ico")
    def icon() -> FileResponse:
        return FileResponse(page.STATIC / "icon.svg", media_type="image/svg+xml")

    for lang, shown in blocks.items():
        app = gradio().mount_gradio_app(
            app,
            shown,
            path=f"/{lang}",
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            show_error=True,
            theme=page.theme(),
            head=page.head(lang),
        )
    return app


def guarded(app: Any, options: WebOptions) -> guard.Guard:
    hosts = None if options.username else (*guard.LOOPBACK, options.server_name.lower())
    return guard.Guard(app, hosts, options.username, options.password)


def listen(options: WebOptions) -> socket.socket:
    """The bound socket. ResourceError when the port is taken."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            options.server_name, options.server_port, type=socket.SOCK_STREAM
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        raise ResourceError(
            f"can't listen there: {error.strerror or error}",
            where=f"{options.server_name}:{options.server_port}",
            fix="choose another --server_port or --server_name",
        ) from None
    return listener


def serve(app: Any, listener: socket.socket, options: WebOptions) -> None:
    """Run until SIGINT or SIGTERM."""
    import uvicorn

    host, port = options.server_name, listener.getsockname()[1]
    shown = f"[{host}]" if ":" in host else host
    print(f"swift: the page is at http://{shown}:{port}  (Ctrl-C ends it; what it has started goes on)", flush=True)
    config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=2, lifespan="on")
    server = uvicorn.Server(config)
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
    print("swift: the page has ended", file=sys.stderr)
