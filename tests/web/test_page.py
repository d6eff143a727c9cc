"""Words of the page, its calls, and its server: nothing heavy, nothing from elsewhere, no word missing or left over."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from swift.i18n import strings
from swift.web.api import Api, Work
from swift.web.chat import Chat, ChatApi
from swift.web.jobs import Jobs
from swift.web.runlist import RunList

ROOT = Path(__file__).resolve().parents[2]
STATIC = ROOT / "swift" / "web" / "static"
# keys that are put together: the prefix, and where its endings come from
MADE = ("tab_", "start_", "state_", "figure_", "curve_", "part_", "check_", "column_", "filter_", "only_", "search_",
        "no_", "model_", "asked_", "bool_")  # fmt: skip


def test_every_word_of_the_scripts_is_there_and_none_is_left_over():
    words = set(strings("en")["web"])
    code = "\n".join(p.read_text(encoding="utf-8") for p in [*STATIC.glob("*.js"), *(ROOT / "swift/web").glob("*.py")])
    used = set(re.findall(r"""\bt\(\s*["'](\w+)["']""", code)) | set(re.findall(r"""["']web\.(\w+)["']""", code))
    assert used <= words
    quoted = set(re.findall(r"""["'](\w+)["']""", code))
    left = {w for w in words - used - quoted if not w.startswith(MADE)} - {"locale"}
    assert not left


def test_scripts_show_no_words_of_their_own():
    """What a script puts into the page comes from the strings: no Chinese, and no sentence in an element's text."""
    for script in STATIC.glob("*.js"):
        code = re.sub(r"//.*", "", script.read_text(encoding="utf-8"))
        assert not re.search(r"[\u4e00-\u9fff]", code), script
        assert not re.search(r"""el\([^()]*\{\s*\}\s*,\s*["'][A-Z][a-z]+ """, code), script
        assert "innerHTML" not in code and "insertAdjacentHTML" not in code and "document.write" not in code


@pytest.fixture
def api(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    jobs = Jobs(tmp_path / "output" / ".jobs")
    chat = Chat(jobs.directory)
    yield Api("en", Work(jobs, RunList([tmp_path / "output"], jobs)).table, ChatApi(chat).table)
    chat.close()


@pytest.mark.parametrize(
    "request_",
    [
        None,
        [],
        {"what": "__class__"},
        {"what": ["form"]},
        {"what": "form", "args": {"command": "../../etc"}},
        {"what": "form", "args": {"command": {"a": 1}}},
        {"what": "preview", "args": {"command": "sft", "fields": {"model": ["x"]}}},
        {"what": "preview", "args": {"command": "sh", "fields": {}}},
        {"what": "start", "args": {"command": "-c", "fields": {}}},
        {"what": "folder", "args": {"id": "../.."}},
        {"what": "stop", "args": {"id": "x" * 100000}},
        {"what": "load_yaml", "args": {"command": "sft", "content": "a: [1"}},
        {"what": "load_yaml", "args": {"command": "sft", "content": "!!python/object/apply:os.system ['true']"}},
        {"what": "chat_send", "args": {"spec": {"model": "x"}, "messages": [{"role": "user", "content": "x"}]}},
        {"what": "chat_fetch", "args": {"id": "../../x"}},
    ],
)
def test_whatever_a_page_sends_is_answered_with_words(api, request_):
    assert api.call(request_)["error"]


def test_every_form_and_table_can_be_asked(api):
    for command in ("sft", "pt", "eval", "export", "deploy"):
        assert api.call({"what": "form", "args": {"command": command}})["common"]
        assert api.call({"what": "suggest", "args": {"command": command}})["model"]
    found = api.call({"what": "models", "args": {"query": "smollm2", "size": "<1B", "offset": 0}})
    assert found["count"] and all("smollm2" in row["id"].lower() for row in found["rows"])
    assert api.call({"what": "models", "args": {"query": "<script>"}})["rows"] == []
    assert api.call({"what": "datasets", "args": {"only": "here"}})["count"]
    json.dumps(api.call({"what": "runs", "args": {"chosen": "..", "compare": [3, None]}}))


def test_a_wrong_model_stops_the_start_beside_its_field(api):
    fields = {"model": "./no/such/model", "dataset": "swift/self-cognition#5"}
    answer = api.call({"what": "start", "args": {"command": "sft", "fields": fields}})
    assert list(answer["mistakes"]) == ["model"]
    assert api.call({"what": "runs", "args": {}})["runs"] == []


def test_the_plan_and_the_data_come_from_the_commands(api, tmp_path):
    from tests import tiny

    tiny.checkpoint(tmp_path / "model")
    row = {
        "messages": [{"role": "user", "content": "<script>alert(1)</script>"}, {"role": "assistant", "content": "no"}]
    }
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(row)}\n" * 8)
    args = {"command": "sft", "fields": {"model": str(tmp_path / "model"), "dataset": "rows.jsonl", "max_steps": "2"}}
    plan = api.call({"what": "plan", "args": args})
    assert plan["steps"] == 2 and plan["rows"] == 8 and plan["fits"] is True
    page = api.call({"what": "data", "args": args})["html"]
    assert "<mark>" in page and "<script>" not in page and "&lt;script&gt;" in page


@pytest.mark.parametrize("lang", [pytest.param("en", marks=pytest.mark.slow), "zh"])
def test_the_server_starts_without_torch_and_shows_the_asked_language(lang, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = (
        "import sys, threading; from swift.cli import main\n"
        "def look():\n"
        "    sys.stdin.readline(); print([m for m in ('torch', 'transformers') if m in sys.modules], flush=True)\n"
        "threading.Thread(target=look, daemon=True).start(); main(sys.argv[1:])"
    )
    server = subprocess.Popen(
        [sys.executable, "-c", code, "web-ui", "--server_port", str(port), "--lang", lang],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert str(port) in server.stdout.readline()
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, follow_redirects=True) as client:
            end = time.monotonic() + 30
            while True:
                try:
                    page = client.get("/")
                    break
                except httpx.ConnectError:
                    assert time.monotonic() < end
                    time.sleep(0.1)
            assert page.status_code == 200 and page.url.path == f"/{lang}/"
            head = client.get(f"/{lang}/config").json()["head"]
            assert f'lang = "{lang}"' in head and strings(lang)["web"]["choose_run"] in head
            assert client.get("/", headers={"host": "evil.example"}).status_code == 403
            assert client.get("/favicon.ico").status_code == 200
        server.stdin.write("\n")
        server.stdin.flush()
        assert server.stdout.readline().strip() == "[]"
        assert (tmp_path / "output" / ".jobs").stat().st_mode & 0o777 == 0o700
    finally:
        server.terminate()
        server.wait(15)
