"""Time left: at an even pace it is the steps left times the seconds of one, in a first sitting and in a later one."""

import pytest

from swift.train.metrics import Stopwatch


@pytest.mark.parametrize(("first", "earlier"), [(0, 0.0), (40, 120.0)])
def test_time_left_is_steps_left_times_the_pace_of_this_sitting(first, earlier, monkeypatch):
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    watch = Stopwatch(earlier, first)
    for step in range(first + 1, first + 11):
        now += 3.0
        assert watch.eta(step, first + 20) == pytest.approx(3.0 * (first + 20 - step))
    assert watch.elapsed() == pytest.approx(earlier + 30.0)
