from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vggfeat.images.batch_plan import EMPTY, plan_batches

ROW_SETS = st.sets(st.integers(0, 5000), max_size=200)
SIZES = st.integers(1, 40)


def as_rows(rows: set[int] | range) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array(sorted(rows), dtype=np.int64)


@given(rows=ROW_SETS, batch_size=SIZES)
def test_every_row_is_dealt_once(rows: set[int], batch_size: int) -> None:
    """Every row to do is in the plan exactly once, and nothing else is."""
    plan = plan_batches(as_rows(rows), batch_size)
    assert plan.dtype == np.int64
    assert plan.shape[1] == batch_size
    assert sorted(plan[plan != EMPTY].tolist()) == sorted(rows)


@given(rows=ROW_SETS, batch_size=SIZES)
def test_a_row_has_one_slot(rows: set[int], batch_size: int) -> None:
    """Row r is in slot r mod B, whatever else is to do."""
    for batch in plan_batches(as_rows(rows), batch_size).tolist():
        for slot, row in enumerate(batch):
            assert row == EMPTY or row % batch_size == slot


@given(rows=ROW_SETS, batch_size=SIZES)
def test_no_fewer_batches_would_do(rows: set[int], batch_size: int) -> None:
    """There are as many batches as the fullest slot has rows, and none is empty."""
    plan = plan_batches(as_rows(rows), batch_size)
    shares = [sum(row % batch_size == slot for row in rows) for slot in range(batch_size)]
    assert len(plan) == max(shares)
    assert bool((plan != EMPTY).any(axis=1).all())


@given(rows=ROW_SETS, batch_size=SIZES)
def test_a_slot_keeps_the_order(rows: set[int], batch_size: int) -> None:
    """Within a slot, rows come in ascending order and without gaps."""
    for slot in plan_batches(as_rows(rows), batch_size).T.tolist():
        dealt = [row for row in slot if row != EMPTY]
        assert dealt == sorted(dealt)
        assert slot[: len(dealt)] == dealt


@given(start=st.integers(0, 1000), count=st.integers(0, 300), batch_size=SIZES)
def test_consecutive_rows_fill_their_batches(start: int, count: int, batch_size: int) -> None:
    """Rows in a run make the fewest batches there can be, all full but the last."""
    plan = plan_batches(as_rows(range(start, start + count)), batch_size)
    assert len(plan) == -(-count // batch_size)
    assert bool((plan[:-1] != EMPTY).all())


def test_a_whole_run_in_file_order() -> None:
    """A run from row 0 takes the rows in file order."""
    assert plan_batches(np.arange(7), 3).tolist() == [[0, 1, 2], [3, 4, 5], [6, EMPTY, EMPTY]]


@given(rows=ROW_SETS, batch_size=SIZES, data=st.data())
def test_resuming_keeps_the_slots(rows: set[int], batch_size: int, data: st.DataObject) -> None:
    """What is left after a cut anywhere is computed in the slots it had before the cut."""
    left = data.draw(st.sets(st.sampled_from(sorted(rows)))) if rows else set()
    before = slots(plan_batches(as_rows(rows), batch_size))
    after = slots(plan_batches(as_rows(left), batch_size))
    assert after == {row: before[row] for row in left}


@given(order=st.permutations(range(17)), batch_size=SIZES, data=st.data())
def test_another_order(order: list[int], batch_size: int, data: st.DataObject) -> None:
    """With ranks the batches are full and in their order, and slots outlast a cut as well."""
    ranks = np.array(order)
    whole = plan_batches(np.arange(17), batch_size, ranks)
    in_turn = [row for batch in whole.tolist() for row in batch if row != EMPTY]
    assert ranks[in_turn].tolist() == list(range(17))
    left = as_rows(data.draw(st.sets(st.sampled_from(range(17)))))
    before = slots(whole)
    assert slots(plan_batches(left, batch_size, ranks[left])) == {
        row: before[row] for row in left.tolist()
    }


def slots(plan: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> dict[int, int]:
    return {row: slot for batch in plan.tolist() for slot, row in enumerate(batch) if row != EMPTY}


def test_nothing_to_do_is_no_batch() -> None:
    """Without rows there are no batches, of the same width."""
    assert plan_batches(np.arange(0), 8).shape == (0, 8)
