"""The tests that need a GPU compare in a way that works: the same calls and the same check, on the CPU's kernels."""

import pytest
import torch
from helpers.calls import check, every_call, make
from helpers.ops import DTYPES, needs_kernels

pytestmark = needs_kernels


@every_call
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_the_specification(name, dtype):
    check(make(name, dtype=dtype)(), make(name, dtype=dtype, oracle=True)(), "cpu")


def test_what_is_off_is_seen():
    right = make("compress-14")()
    for wrong in (right[0] + 1, right[0] * float("nan"), right[0][:, 1:]):
        with pytest.raises(AssertionError):
            check((wrong, *right[1:]), tuple(one.double() if one.is_floating_point() else one for one in right), "cpu")
    with pytest.raises(AssertionError):
        check((torch.tensor([1.0]),), (torch.tensor([float("inf")], dtype=torch.float64),), "cpu")
