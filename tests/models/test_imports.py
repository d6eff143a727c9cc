"""Libraries that quantize layers stay out of a process that doesn't use them, however many are installed."""

import sys
import types

import pytest
from peft.tuners.lora import gptq

from swift.models.imports import libraries_only_where_used


@pytest.mark.parametrize("used", [True, False])
def test_peft_imports_what_has_been_imported_before(monkeypatch, used):
    monkeypatch.delitem(sys.modules, "gptqmodel", raising=False)
    if used:
        monkeypatch.setitem(sys.modules, "gptqmodel", types.ModuleType("gptqmodel"))
    monkeypatch.setattr(gptq, "is_gptqmodel_available", lambda: True)  # as where it is installed
    with libraries_only_where_used():
        assert gptq.is_gptqmodel_available() is used
    assert gptq.is_gptqmodel_available()
