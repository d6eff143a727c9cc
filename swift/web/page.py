"""The page of one language: Gradio's tabs around parts of our own, which ask the server through one function each.

The parts are gr.HTML components: an empty element, the script of static/ that fills it, and `call`, the server's
table. Strings come from i18n; scripts and styles are put into the page's head, so that nothing is fetched from
elsewhere.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swift.config.registry import COMMANDS
from swift.i18n import strings, text
from swift.web.api import Api
from swift.web.views import TRAINING

if TYPE_CHECKING:
    import gradio as gr

STATIC = Path(__file__).parent / "static"
SCRIPTS = ("core.js", "chart.js", "checks.js", "form.js", "runs.js", "tables.js", "markdown.js", "chat.js")
FONTS = ("ui-sans-serif", "system-ui", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
# tab -> the command of its form, and the others whose jobs it lists
JOBS = (("eval", ("eval",)), ("export", ("export", "merge-lora")), ("deploy", ("deploy",)))
LANGUAGE_NAMES = {"en": "English", "zh": "中文"}


def head(lang: str) -> str:
    """Words, scripts and styles, inline."""
    words = json.dumps(strings(lang)["web"], ensure_ascii=False).replace("<", "\\u003c")
    scripts = "\n".join((STATIC / name).read_text(encoding="utf-8") for name in SCRIPTS)
    style = (STATIC / "style.css").read_text(encoding="utf-8")
    return (
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<script>document.documentElement.lang = "{lang}"; window.SWIFT_WORDS = {words};\n{scripts}</script>'
        f"<style>{style}</style>"
    )


def theme() -> Any:
    import gradio as gr

    return gr.themes.Default(primary_hue="blue", neutral_hue="slate", font=FONTS, font_mono=MONO, radius_size="md")


def part(api: Api, script: str, element: str) -> gr.HTML:
    """A part of our own: `script` is run with `element` and `server`."""
    import gradio as gr

    def call(request):
        return api.call(request)

    return gr.HTML(
        html_template="<div class='sw-part'></div>",
        js_on_load=f"const root = element.querySelector('.sw-part'); if (!root.dataset.ready) "
        f"{{ root.dataset.ready = '1'; {script} }}",
        server_functions=[call],
        apply_default_css=False,
        elem_id=element,
    )


def form(api: Api, commands: list[str], tab: str) -> gr.HTML:
    return part(api, f"window.swiftUI.form(root, server, {json.dumps(commands)}, '{tab}');", f"form-{tab}")


def run_list(api: Api, only: list[str] | None, name: str) -> gr.HTML:
    return part(api, f"window.swiftUI.runs(root, server, {json.dumps(only)}, '{name}');", f"list-{name}")


def switch(lang: str) -> str:
    """Links to the page in the other languages."""
    links = [
        f"<b aria-current='true'>{name}</b>" if code == lang else f"<a href='../{code}/' lang='{code}'>{name}</a>"
        for code, name in LANGUAGE_NAMES.items()
    ]
    return f"<nav class='sw-lang' aria-label='{text('web.language', lang)}'>{' '.join(links)}</nav>"


def banner(lang: str) -> Any:
    import gradio as gr

    return gr.HTML(
        f"<header class='sw-top'><h1>swift</h1><span>{text('web.tagline', lang)}</span>{switch(lang)}</header>",
        apply_default_css=False,
    )


def build(api: Api, lang: str) -> gr.Blocks:
    """The whole page."""
    import gradio as gr

    def t(key: str) -> str:
        return text(f"web.{key}", lang)

    training = [name for name in TRAINING if COMMANDS[name].main is not None]
    with gr.Blocks(title="swift", analytics_enabled=False, fill_width=True) as page:
        banner(lang)
        with gr.Tabs(elem_id="tabs") as tabs:
            with gr.Tab(t("tab_train"), elem_id="tab-train", id="train"):
                form(api, training, "train")
            with gr.Tab(t("tab_runs"), elem_id="tab-runs", id="runs"):
                run_list(api, None, "runs")
            with gr.Tab(t("tab_chat"), elem_id="tab-chat", id="chat"):
                part(api, "window.swiftUI.chat(root, server, null);", "chat")
            for tab, commands in JOBS:
                with gr.Tab(t(f"tab_{tab}"), elem_id=f"tab-{tab}", id=tab):
                    form(api, [commands[0]], tab)
                    run_list(api, list(commands), f"{tab}-list")
            with gr.Tab(t("tab_catalog"), elem_id="tab-catalog", id="catalog"), gr.Tabs():
                for kind in ("models", "datasets"):
                    with gr.Tab(t(f"tab_{kind}"), elem_id=f"tab-{kind}", id=kind):
                        part(api, f"window.swiftUI.table(root, server, '{kind}');", f"table-{kind}")
        turner(tabs)
    return page


def turner(tabs: gr.Tabs) -> None:
    """Lets scripts turn to a tab by its id."""
    import gradio as gr

    turn = gr.HTML(
        html_template="<i></i>",
        js_on_load="window.swiftUI.turn = (tab) => trigger('turn', {tab});",
        elem_classes="sw-unseen",
        apply_default_css=False,
    )

    def go(event: gr.EventData) -> gr.Tabs:
        return gr.Tabs(selected=str(event.tab))

    go.__annotations__ = {"event": gr.EventData}  # Gradio reads it, and the name is local
    turn.turn(go, outputs=tabs, show_progress="hidden", queue=False, api_visibility="private")


def build_chat(api: Api, lang: str, model: str) -> gr.Blocks:
    """The page of `swift app`: the chat with one model."""
    import gradio as gr

    with gr.Blocks(title=f"{model} - swift", analytics_enabled=False, fill_width=True) as page:
        banner(lang)
        name = json.dumps(model).replace("<", "\\u003c")
        part(api, f"window.swiftUI.chat(root, server, {name});", "chat")
    return page
