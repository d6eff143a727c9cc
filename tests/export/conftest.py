"""Proofs on a few hundred positions instead of thousands: tiny random models need no more."""

import pytest

from swift.export import calibration, report


@pytest.fixture(autouse=True)
def short_proofs(monkeypatch):
    monkeypatch.setattr(report, "DECODED", 4)
    monkeypatch.setattr(calibration, "HELD_OUT_TOKENS", 600)
