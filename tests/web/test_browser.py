"""The page in a real browser: what is on it works, in both languages, on a screen and on a phone."""

import base64
import json
import os
import signal
from pathlib import Path

import pytest

from tests import tiny, tiny_vlm
from tests.serve.served import PacedEngine, running, service
from tests.web.browser import browser_page, processes_in, served, wait_for

EVIL = "<img src=x onerror=alert(1)><script>alert(2)</script>"
SHOTS = os.environ.get("SWIFT_TEST_SHOTS")


def shot(page, name):
    """A picture for whoever sets SWIFT_TEST_SHOTS to a directory."""
    if SHOTS:
        page.screenshot(path=str(Path(SHOTS) / f"{name}.png"), full_page=True)


def go(page, tab):
    page.evaluate(f"swiftUI.goTab('{tab}')")


def fill(page, tab, **values):
    for name, value in values.items():
        page.locator(f"#{tab}-{name}").evaluate("node => { const d = node.closest('details'); if (d) d.open = true; }")
        field = page.locator(f"#{tab}-{name}")
        if field.evaluate("node => node.tagName") == "SELECT":
            field.select_option(value)
        else:
            field.fill(value)


def state(page):
    return page.locator("#list-runs .sw-head .sw-state").get_attribute("class").split()[-1]


def rows(folder, count=24):
    lines = []
    for i in range(count):
        turns = [{"role": "user", "content": f"say {i} {EVIL}"}, {"role": "assistant", "content": f"it is {i}"}]
        lines.append(json.dumps({"messages": turns}))
    (folder / "rows.jsonl").write_text("\n".join(lines))


def test_a_form_a_table_and_a_run_in_both_languages_and_on_a_phone(tmp_path):
    run = tmp_path / "output" / EVIL.replace("/", "_") / "v0-x"
    run.mkdir(parents=True)
    (run / "args.json").write_text(json.dumps({"command": "sft", "options": {}, "origins": {}}))
    (run / "manifest.json").write_text(json.dumps({"state": "finished"}))
    (run / "logging.jsonl").write_text("".join(f'{{"step": {i}, "max_steps": 9, "loss": {9 - i}}}\n' for i in range(9)))
    (run / "data_report.html").write_text(f"<h1>report</h1>{EVIL}")
    with browser_page() as page, served(tmp_path) as ui:
        page.goto(ui.address)
        page.goto(f"{ui.address}/en/")
        fill(page, "train", model=EVIL, dataset="rows.jsonl", lora_rank="eight")
        page.wait_for_selector(".sw-field.bad >> text=not a whole number")
        assert EVIL in page.inner_text("#form-train .sw-command")
        page.fill("#form-train .sw-search", "weight decay")
        page.wait_for_selector("#train-weight_decay:visible")
        assert page.locator("#train-hub_token:visible").count() == 0
        fill(page, "train", lora_rank="4", weight_decay="0.3")
        page.wait_for_function("document.querySelector('.sw-command').textContent.includes('--weight_decay 0.3')")
        with page.expect_download() as saved:
            page.click("text=Save YAML")
        assert "weight_decay: 0.3" in Path(saved.value.path()).read_text()
        file = {"name": "a.yaml", "mimeType": "text/yaml", "buffer": b"lora_alpha: 7"}
        page.set_input_files("#form-train input[type=file]", files=[file])
        page.wait_for_function("document.querySelector('#train-lora_alpha').value === '7'")
        assert page.input_value("#train-lora_rank") == ""
        go(page, "runs")
        page.wait_for_selector(".sw-chart")
        assert state(page) == "finished" and page.locator("#list-runs img, #list-runs script").count() == 0
        page.click("[data-action=data_report]")
        page.frame_locator("iframe.sw-report").locator("h1").wait_for()
        go(page, "catalog")
        page.fill("#search-models", "smollm2 135m instruct")
        page.wait_for_function("document.querySelectorAll('#table-models tbody tr').length === 1")
        page.click("#table-models tbody >> text=Train")
        page.wait_for_function("document.querySelector('#train-model').value.includes('SmolLM2-135M')")
        page.click("nav.sw-lang >> text=中文")
        page.wait_for_selector("#start-train >> text=开始训练")
        assert "SmolLM2-135M" in page.input_value("#train-model")  # what was typed is still there
        page.set_viewport_size({"width": 390, "height": 800})
        for tab in ("train", "runs", "chat", "eval", "export", "deploy", "catalog"):
            go(page, tab)
            page.wait_for_selector(f"#tab-{tab} .sw-part > *:visible")
            page.wait_for_timeout(200)
            shot(page, f"phone-zh-{tab}")
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, tab


@pytest.mark.slow
def test_two_models_think_write_and_stop_side_by_side(tmp_path):
    """Thinking is folded, markdown is drawn, markup is text; an answer stops, a message is edited, images are sent."""
    said = f"<think>hm, {EVIL}</think>**bold** {EVIL}\n\n- one\n- two\n\n```html\n{EVIL}\n```\n[x](javascript:alert(3))"
    first = service(PacedEngine(pause=0, answer=lambda request: said))
    second = service(PacedEngine(pause=0.02, answer=lambda request: "slow " * 2000))
    pixel = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
    with browser_page() as page, running(first) as one, running(second) as two, served(tmp_path) as ui:
        page.goto(f"{ui.address}/en/")
        page.wait_for_selector("#train-model")
        go(page, "chat")
        page.fill("#chat-model-a", one)
        page.fill("#chat-message", f"hello {EVIL}")
        page.press("#chat-message", "Enter")
        page.wait_for_selector(".sw-reply .sw-facts")
        assert page.locator(".sw-think").evaluate("node => node.open") is False
        assert page.inner_text(".sw-markdown strong") == "bold" and page.locator(".sw-markdown li").count() == 2
        assert page.locator(".sw-feed img, .sw-feed script, .sw-markdown a").count() == 0
        assert EVIL in page.inner_text(".sw-markdown pre") and EVIL in page.inner_text(".sw-user")
        page.fill("#chat-model-b", two)
        page.fill("#chat-message", "again")
        page.press("#chat-message", "Enter")
        page.wait_for_selector(".sw-replies.two .sw-markdown >> text=slow slow")
        page.click("#chat-send")  # it stops now
        page.wait_for_selector(".sw-replies.two >> text=stopped")
        shot(page, "two")
        page.fill("#chat-model-b", "")
        file = {"name": "a.png", "mimeType": "image/png", "buffer": base64.b64decode(pixel)}
        page.set_input_files(".sw-compose input[type=file]", files=[file])
        page.wait_for_selector(".sw-thumb")
        page.fill("#chat-message", "what is this?")
        page.press("#chat-message", "Enter")
        page.wait_for_function("document.querySelector('#chat-send').textContent === 'Send'")
        assert page.locator(".sw-user img").count() == 1 and page.locator(".sw-thumb").count() == 0
        page.locator(".sw-user >> text=Edit").first.click()
        assert page.input_value("#chat-message") == f"hello {EVIL}" and page.locator(".sw-turn").count() == 0


@pytest.mark.slow
def test_the_whole_way_of_a_model(tmp_path):
    """Train two models side by side, stop, resume, talk, merge, deploy; kill the page's server in between."""
    tiny.checkpoint(tmp_path / "model")
    rows(tmp_path)
    common = dict(model="./model", dataset="rows.jsonl", logging_steps="1", gradient_accumulation_steps="1")
    with browser_page() as page, served(tmp_path) as ui:
        page.goto(f"{ui.address}/en/")
        page.wait_for_selector("#train-model")
        fill(page, "train", **{**common, "model": "./nope"}, max_steps="4000", save_steps="5", learning_rate="1e-3")
        page.click("#start-train")
        page.wait_for_selector(".sw-field.bad #train-model")
        fill(page, "train", model="./model")
        page.click("#check-train")
        page.wait_for_selector("#check-plan .sw-table, #check-plan .sw-error")
        page.wait_for_selector("#check-resolved .sw-table")
        page.wait_for_selector("#check-data iframe")
        assert page.locator("#check-plan .sw-error").count() == 0
        page.frame_locator("#check-data iframe").locator("mark").first.wait_for()
        shot(page, "checks")
        page.click("#start-train")
        page.wait_for_selector("#list-runs .sw-chart path.line")
        line = page.locator("#list-runs .sw-chart path.line").first.get_attribute("d")
        page.wait_for_function(
            f"document.querySelector('#list-runs .sw-chart path.line').getAttribute('d') !== '{line}'"
        )
        shot(page, "running")
        # a second one beside it, then the page's server is killed and comes back
        go(page, "train")
        fill(page, "train", max_steps="12", save_steps="6", output_dir="output/second")
        page.click("#start-train")
        wait_for(lambda: page.locator("#list-runs .sw-card").count() == 2)
        ui.kill()
        page.wait_for_selector("#sw-offline")
        assert any("swift sft" in line for line in processes_in(tmp_path))
        ui.start()
        page.wait_for_selector("#sw-offline", state="detached")
        page.reload()
        page.wait_for_selector("#train-model")
        go(page, "runs")
        wait_for(lambda: page.locator("#list-runs .sw-card").count() == 2)
        page.locator("#list-runs .sw-card", has_text="second").click()
        wait_for(lambda: state(page) == "finished", 120)
        page.locator("#list-runs .sw-card", has_text="model/").click()
        wait_for(lambda: state(page) == "running" and page.locator("#list-runs .sw-point").count() > 0)
        page.click("[data-action=stop]")
        wait_for(lambda: state(page) == "stopped")
        for number in range(2):
            page.locator("#list-runs .sw-tick input").nth(number).check()
        assert page.locator("#list-runs .sw-tick input:checked").count() == 2
        page.wait_for_function("document.querySelectorAll('#list-runs .sw-figure:first-child path.line').length >= 2")
        shot(page, "compared")
        page.click("[data-action=resume]")
        wait_for(lambda: state(page) == "running", 60)
        page.click("[data-action=stop]")
        wait_for(lambda: page.locator("[data-action=kill]").count() or state(page) == "stopped")
        wait_for(lambda: state(page) == "stopped", 90)
        # the checkpoint of the second: talk, merge, deploy
        page.locator("#list-runs .sw-card", has_text="second").click()
        wait_for(lambda: page.locator("#list-runs h3").inner_text().startswith("second"))
        page.locator("#list-runs .sw-point").first.locator("text=Chat").click()
        page.fill("#chat-max_new_tokens", "12")
        page.fill("#chat-message", "say 3")
        page.press("#chat-message", "Enter")
        page.wait_for_selector(".sw-reply .sw-facts", timeout=90_000)
        assert page.locator(".sw-reply .sw-error").count() == 0
        page.click("#chat-regenerate")
        page.wait_for_selector(".sw-reply .sw-facts", timeout=90_000)
        with page.expect_download() as saved:
            page.click("#chat-export")
        assert json.loads(Path(saved.value.path()).read_text())["messages"][0]["content"] == "say 3"
        shot(page, "chat")
        go(page, "runs")
        page.locator("#list-runs .sw-point").first.locator("text=Merge").click()
        page.wait_for_selector("#export-merge_lora")
        page.wait_for_function("document.querySelector('#export-merge_lora').value === 'true'")
        page.click("#start-export")
        page.wait_for_selector("#list-export-list .sw-head .sw-state.finished", timeout=120_000)
        shot(page, "merged")
        page.locator("#list-export-list [data-action=talk]").wait_for()
        merged = page.input_value("#export-output_dir")
        go(page, "deploy")
        fill(page, "deploy", model=merged, adapters="", port="0")
        page.click("#start-deploy")
        page.wait_for_selector("#list-deploy-list .sw-head a", timeout=120_000)
        shot(page, "deployed")
        page.locator("#list-deploy-list [data-action=stop]").click()
        page.wait_for_selector("#list-deploy-list .sw-head .sw-state.stopped", timeout=60_000)
    wait_for(lambda: processes_in(tmp_path) == [], 20)
    assert (Path(merged) / "model.safetensors").is_file()


@pytest.mark.slow
def test_the_chat_page_alone(tmp_path):
    tiny.checkpoint(tmp_path / "model")
    with browser_page() as page, served(tmp_path, "app", "--model", "./model", "--max_new_tokens", "8") as ui:
        page.goto(f"{ui.address}/en/")
        page.fill("#chat-message", "say 3")
        page.press("#chat-message", "Enter")
        page.wait_for_selector(".sw-reply .sw-facts", timeout=90_000)
        assert page.locator(".sw-reply .sw-error").count() == 0 and page.locator("#tab-train-button").count() == 0
        shot(page, "app")
        ui.kill(signal.SIGKILL)
        wait_for(lambda: processes_in(tmp_path) == [], 20)
        ui.start()


@pytest.mark.slow
def test_a_picture_is_read_by_a_model_of_images(tmp_path):
    """A picture chosen in the page reaches the model: another one gives another answer, none at all a third."""
    tiny_vlm.checkpoint(tmp_path / "model", "qwen2_5_vl")
    said = []
    with browser_page() as page, served(tmp_path) as ui:
        page.goto(f"{ui.address}/en/")
        page.wait_for_selector("#train-model")
        go(page, "chat")
        page.fill("#chat-model-a", "./model")
        page.fill("#chat-max_new_tokens", "12")
        page.fill("#chat-temperature", "0")
        for size in ((60, 40), (120, 160), None):
            if size is not None:
                picture = tiny_vlm.picture(tmp_path / f"{size[0]}.png", 0, size)
                page.set_input_files(".sw-compose input[type=file]", files=[picture])
                page.wait_for_selector(".sw-thumb")
            page.fill("#chat-message", "what is this?")
            page.press("#chat-message", "Enter")
            page.wait_for_selector(".sw-reply .sw-facts, .sw-reply .sw-error", timeout=120_000)
            assert page.locator(".sw-reply .sw-error").count() == 0, page.inner_text(".sw-reply")
            assert page.locator(".sw-user img").count() == (size is not None)
            said.append(page.inner_text(".sw-reply .sw-markdown"))
            shot(page, f"picture-{size}")
            page.click("#chat-clear")
            page.wait_for_selector(".sw-turn", state="detached")
    assert len(set(said)) == 3, said


@pytest.mark.slow
def test_a_model_is_measured_and_quantized_from_the_page(tmp_path):
    tiny.checkpoint(tmp_path / "model")
    questions = [{"query": f"Which is {i}?", "choices": [f"it is {i}", "no"], "gold": 0} for i in range(6)]
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / "arc_challenge.jsonl").write_text("\n".join(map(json.dumps, questions)))
    rows(tmp_path)
    with browser_page() as page, served(tmp_path) as ui:
        page.goto(f"{ui.address}/zh/")
        page.wait_for_selector("#train-model")
        go(page, "eval")
        fill(page, "eval", model="./model", eval_dataset="ARC_d", local_dataset="sets")
        page.click("#start-eval")
        page.wait_for_selector(".sw-field.bad #eval-eval_dataset")
        fill(page, "eval", eval_dataset="ARC_c")
        page.click("#start-eval")
        page.wait_for_selector(".sw-field.bad #eval-eval_limit", timeout=90_000)  # six rows of 1172
        fill(page, "eval", eval_limit="6")
        page.click("#start-eval")
        page.wait_for_selector("#list-eval-list .sw-head .sw-state.finished", timeout=300_000)
        page.click("#list-eval-list [data-action=eval_report]")
        page.frame_locator("#list-eval-list iframe").locator("text=评测报告").first.wait_for()
        shot(page, "evaluated")
        go(page, "export")
        fill(page, "export", model="./model", quant_method="gptq", quant_bits="3", dataset="rows.jsonl")
        page.click("#start-export")
        page.wait_for_selector(".sw-field.bad #export-quant_bits", timeout=90_000)
        fill(page, "export", quant_bits="4", quant_n_samples="4", group_size="32", max_ppl_increase="9")
        page.click("#start-export")
        page.wait_for_selector("#list-export-list .sw-head .sw-state.finished", timeout=300_000)
        page.locator("#list-export-list [data-action=talk]").wait_for()
        shot(page, "quantized")
    assert list(tmp_path.glob("**/quantization_report.json"))
