"""The Chinese of what commands say: it covers the code, names the same values and options, and is found at run time."""

import re
import subprocess
import sys

import pytest

from scripts.make_said import spoken
from swift.errors import UsageError
from swift.i18n.said import error_said, pairs, said

SHARE = 0.95  # texts that are new or reworded may wait for their Chinese for a while
OPTION = re.compile(r"--\w+(?:[.-]\w+)*")


def test_the_chinese_covers_what_the_code_says_and_little_else():
    texts = {text for found in spoken().values() for text in found}
    assert len(texts) > 900
    missing, stale = sorted(texts - pairs().keys()), sorted(pairs("words").keys() - texts)
    assert len(missing) < (1 - SHARE) * len(texts), f"python scripts/make_said.py lists them: {missing[:20]}"
    assert len(stale) < (1 - SHARE) * len(texts), f"python scripts/make_said.py --stale lists them: {stale[:20]}"


def test_each_translation_names_the_same_values_and_options():
    for english, chinese in pairs().items():
        named = sorted(map(int, re.findall(r"\{(\d+)\}", chinese)))
        assert named == list(range(english.count("{}"))), english
        assert set(OPTION.findall(english)) == set(OPTION.findall(chinese)), english


@pytest.mark.parametrize(
    "english, chinese",
    [
        ("--warmup_ratio and another", "--warmup_ratio and another"),
        ("no such file", "没有这个文件"),
        ("0.5 is too small: at least 1", "0.5 太小：至少 1"),
        ("can't work here: the model has no chat template", "在这里不能用：模型没有聊天模板"),
        (
            "swift deploy ended with exit code 3:\nline one\nline two",
            "swift deploy 以退出码 3 结束：\nline one\nline two",
        ),
    ],
)
def test_a_message_is_found_with_its_values_and_the_messages_inside_it(english, chinese):
    assert said(english, "zh") == chinese
    assert said(english, "en") == english


def test_an_error_keeps_its_layout():
    error = UsageError("unknown option --lr", where="--lr", fix="did you mean --learning_rate?")
    assert error_said(error, "en") == str(error)
    assert error_said(error, "zh") == "--lr: 没有选项 --lr\n  -> 是不是想写 --learning_rate？"


def test_the_command_line_speaks_the_language_asked_for():
    argv = [sys.executable, "-m", "swift", "sft", "--learning_rate", "x"]
    shown = subprocess.run(
        argv, env={"SWIFT_LANG": "zh", "PATH": "", "PYTHONPATH": ":".join(sys.path)}, capture_output=True
    )
    assert shown.returncode == 2
    assert "不是" in shown.stderr.decode()
