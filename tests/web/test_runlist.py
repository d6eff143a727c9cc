"""The list of runs survives whatever lies in the directories, and what a page sends never becomes a path."""

import json
import math

import pytest

from swift.errors import UsageError
from swift.web import views
from swift.web.files import tail
from swift.web.jobs import Jobs
from swift.web.runlist import POINTS, RunList, checkpoints, curves, state_of


@pytest.fixture
def place(tmp_path):
    root = tmp_path / "output"
    root.mkdir()
    return root, RunList([root], Jobs(root / ".jobs"))


def a_run(root, name="m/v0-x", state="finished", records=(), command="sft"):
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "args.json").write_text(json.dumps({"command": command, "options": {}, "origins": {}}))
    (folder / "manifest.json").write_text(json.dumps({"state": state}))
    (folder / "logging.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return folder


def test_runs_of_a_terminal_are_listed_with_their_curves(place):
    root, runlist = place
    folder = a_run(root, records=[{"step": i, "loss": 1 / i, "max_steps": 9} for i in range(1, 10)])
    (run,) = runlist.list()
    assert run.path == folder.resolve() and state_of(run) == "finished"
    assert curves(run.path) == {"loss": [[i, 1 / i] for i in range(1, 10)]}
    shown = views.detail(run)
    assert shown["step"] == shown["max_steps"] == 9 and runlist.find(run.id) == run
    json.dumps(shown, allow_nan=False)


@pytest.mark.parametrize(
    "broken",
    [
        {"args.json": "{"},
        {"args.json": "[]", "manifest.json": "null"},
        {"manifest.json": "\x00\xff"},
        {"args.json": '{"command": ["x"], "options": [], "origins": 3}'},
        {"manifest.json": '{"state": {"a": 1}}'},
        {"logging.jsonl": 'x\n{"step": "a"}\n{"step": 1, "loss": "NaN"}\n[1]\n'},
        {"logging.jsonl": '{"step": 2, "loss": NaN}\n{"step": 1e999}\n{"step": 3, "loss": Infinity}\n'},
        {"logging.jsonl": "[" * 100_000},
        {"logging.jsonl": '{"step": 1' + "0" * 400 + ', "loss": 1}'},
        {"data_report.html": "<script>alert(1)</script>"},
    ],
)
def test_broken_files_in_a_run_are_harmless(place, broken):
    root, runlist = place
    folder = a_run(root)
    a_run(root, "good/v0-y", records=[{"step": 1, "loss": 2.0}])
    for name, content in broken.items():
        (folder / name).write_text(content, encoding="utf-8")
    for run in runlist.list():
        json.dumps([views.line(run), views.detail(run), views.folder(run)], allow_nan=False)
    assert any(curves(run.path) == {"loss": [[1, 2.0]]} for run in runlist.list())


def test_a_directory_where_a_file_should_be(place):
    root, runlist = place
    folder = a_run(root)
    for name in ("logging.jsonl", "args.json"):
        (folder / name).unlink()
        (folder / name).mkdir()
    (folder / "checkpoint-1").write_text("a file")
    assert checkpoints(folder) == []
    assert all(views.detail(run) for run in runlist.list())


@pytest.mark.parametrize("id", ["..", "../../etc", "/etc/passwd", "run-0", "", "run-\0"])
def test_only_ids_of_the_list_are_found(place, id):
    root, runlist = place
    a_run(root)
    with pytest.raises(UsageError):
        runlist.find(id)


def test_a_link_out_of_the_roots_is_not_followed(place, tmp_path):
    root, runlist = place
    a_run(tmp_path / "elsewhere")
    (root / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert runlist.list() == []


def test_curves_are_thinned_and_keep_their_ends(place):
    root, _ = place
    folder = a_run(root, records=[{"step": i, "loss": math.sin(i)} for i in range(1, 5001)])
    points = curves(folder)["loss"]
    assert len(points) <= POINTS + 1 and points[0][0] == 1 and points[-1][0] == 5000


def test_a_huge_log_is_read_from_its_end_and_shown_as_a_terminal_would(tmp_path):
    log = tmp_path / "log"
    with open(log, "wb") as file:
        file.seek(3 << 30)
        file.write(b"\nbefore\n 10%|#\r 90%|########\r\x1b[31mred\x1b[0m \x1b]0;title\x07\x00end\xff\n")
    shown, cut = tail(log)
    assert cut and shown.endswith("before\nred \\x00end\ufffd") and "90%" not in shown
    assert tail(tmp_path / "none") == ("", False)


def test_the_data_report_runs_no_scripts(place):
    root, runlist = place
    folder = a_run(root)
    (folder / "data_report.html").write_text("<script>alert(1)</script>")
    page = views.data_report(runlist.list()[0])["html"]
    assert page.startswith('<meta http-equiv="Content-Security-Policy" content="default-src \'none\'')
