"""Docs are output: the generated pages are up to date, and both languages have the same pages."""

import importlib.util
import re
from pathlib import Path

import pytest

from swift.i18n import LANGUAGES

ROOT = Path(__file__).resolve().parents[2]
_spec = importlib.util.spec_from_file_location("make_docs", ROOT / "scripts" / "make_docs.py")
make_docs = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make_docs)


@pytest.mark.parametrize("lang", LANGUAGES)
def test_the_commands_page_is_fresh(lang):
    page = ROOT / "docs" / lang / "commands.md"
    assert page.read_text(encoding="utf-8") == make_docs.commands_page(lang), "run: python scripts/make_docs.py"


@pytest.mark.parametrize("lang", LANGUAGES)
def test_the_table_of_architectures_is_fresh(lang):
    text = (ROOT / "docs" / lang / "models.md").read_text(encoding="utf-8")
    assert text == make_docs.models_page(lang, text), "run: python scripts/make_docs.py"


def test_both_languages_have_the_same_pages():
    pages = [{p.name for p in (ROOT / "docs" / lang).glob("*.md")} for lang in LANGUAGES]
    assert pages[0] == pages[1]


def test_readmes_are_one_screen_and_name_the_two_commands():
    for name in ("README.md", "README_zh.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert "make demo" in text and "make test" in text
        assert len(text.splitlines()) <= 75


def test_links_between_pages_lead_somewhere():
    pages = [ROOT / "README.md", ROOT / "README_zh.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/**/*.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"
