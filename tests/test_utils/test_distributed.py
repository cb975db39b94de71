"""Means over the samples that count, in one process; tests of the tuners run them in two."""

import torch

from mergemix_mm.utils.distributed import mean_over_ranks, mean_where


def test_the_divisor_of_one_process_is_its_count_and_never_zero():
    count = torch.tensor(3)
    assert mean_over_ranks(count) == 3 and count.dtype == torch.int64
    assert mean_over_ranks(torch.tensor(0)) == 1


def test_the_logged_mean_leaves_invalid_values_out():
    values = torch.tensor([1.0, torch.nan, 4.0], requires_grad=True)
    mean = mean_where(values, torch.tensor([True, False, True]))
    assert mean == 2.5 and not mean.requires_grad
    assert mean_where(values, torch.tensor([False] * 3)) == 0
