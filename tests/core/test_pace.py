"""The time limit: how long the next batch is expected to take."""

from __future__ import annotations

from vggfeat.core.signals import Pace, StopFlag


def test_a_cold_batch_counts_only_until_there_is_another() -> None:
    """The first batch loads the device's libraries; it must not end a run that has time left."""
    pace = Pace()
    assert pace.slowest == 0.0
    pace.note(3000.0, cold=True)
    pace.note(2000.0, cold=True)
    assert pace.slowest == 3000.0
    stop = StopFlag(2500.0)
    assert not stop.allows(pace.slowest)
    assert stop.reason == "time limit"
    pace.note(1.0)
    assert pace.slowest == 1.0
    assert stop.allows(pace.slowest)
    assert stop.reason == ""


def test_the_slowest_of_the_latest_counts() -> None:
    """One batch of minutes, as on a network drive that hung, is forgotten in time."""
    pace = Pace()
    pace.note(600.0)
    for _ in range(63):
        pace.note(1.0)
    assert pace.slowest == 600.0
    pace.note(2.0)
    assert pace.slowest == 2.0
    pace.note(3000.0, cold=True)  # of a next shard
    assert pace.slowest == 2.0
