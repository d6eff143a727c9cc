"""Tests read English, whatever the language of the machine."""

import os

for variable in ("SWIFT_LANG", "SWIFT_UI_LANG", "LC_ALL", "LC_MESSAGES"):
    os.environ.pop(variable, None)
os.environ["LANG"] = "C.UTF-8"
