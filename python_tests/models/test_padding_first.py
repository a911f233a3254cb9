"""Rows of the tower's batch are taken apart by groups and put together again."""

from __future__ import annotations

import pytest
import torch

from ficoco_ext.models.padding_first import _laid_out

ORDERS = {
    "one run": [(1, 0), (1, 1)],
    "a run from the middle": [(0, 1), (0, 2)],
    "turns": [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2)],
    "two runs": [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)],
    "backwards": [(0, 2), (0, 1), (0, 0)],
    "ends as a run": [(0, 0), (1, 0), (0, 2)],
    "one row": [(1, 2)],
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.bool])
@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_rows_of_several_tensors(order, dtype):
    tensors = [(torch.randn(3, 4, 2) * 3).to(dtype) for _ in range(2)]
    found = _laid_out(tensors, order)
    assert found.dtype == dtype and found.tolist() == [tensors[number][row].tolist() for number, row in order]
    runs = order in (ORDERS["one run"], ORDERS["a run from the middle"], ORDERS["one row"])
    pointers = [one.untyped_storage().data_ptr() for one in tensors]
    assert (found.untyped_storage().data_ptr() in pointers) == runs  # then it is not copied


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_gradients_go_to_the_rows(order):
    tensors = [torch.randn(3, 2, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(lambda *given: _laid_out(given, order), tensors)


def test_the_backward_pass_is_linear_in_the_rows():
    """One step for each tensor, however many rows take turns: each step fills a gradient of all rows."""
    for count in (4, 64):
        tensors = [torch.zeros(count, 2, requires_grad=True) for _ in range(2)]
        found, steps = _laid_out(tensors, [(row % 2, row // 2) for row in range(2 * count)]), set()
        waiting = [found.grad_fn]
        while waiting:
            step = waiting.pop()
            if step is not None and step not in steps:
                steps.add(step)
                waiting += [before for before, _ in step.next_functions]
        assert len(steps) == 1 + 2 + 2  # of the rows together, of each tensor, and where its gradient ends up
