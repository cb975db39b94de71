"""What is around a model is taken off, in whatever order it was put there."""

import pytest
import torch
from torch import nn

from mergemix_mm.utils.wrappers import unwrapped, without_wrappers

# MMEngine knows all of torch's wrappers; DataParallel is the one that needs no process group.
WRAPPERS = dict(
    none=lambda module: module,
    parallel=nn.DataParallel,
    compiled=torch.compile,
    compiled_outside=lambda module: torch.compile(nn.DataParallel(module)),
    compiled_inside=lambda module: nn.DataParallel(torch.compile(module)),
)


@pytest.mark.parametrize('wrap', WRAPPERS.values(), ids=WRAPPERS)
def test_the_innermost_module_is_found(wrap):
    module = nn.Linear(2, 2)
    assert unwrapped(wrap(module)) is module


def test_a_child_named_module_is_not_taken_for_the_inside_of_a_wrapper():
    parent = nn.Module()
    parent.module = nn.Linear(2, 2)
    assert unwrapped(parent) is parent


def test_names_inside_of_a_model_are_free_of_wrappers_until_the_block_ends():
    model = nn.Sequential(nn.DataParallel(torch.compile(nn.Linear(2, 2))), nn.Linear(2, 2))
    before, wrapper = list(model.state_dict()), model[0]
    with pytest.raises(KeyError), without_wrappers(model):
        assert list(model.state_dict()) == ['0.weight', '0.bias', '1.weight', '1.bias']
        raise KeyError
    assert model[0] is wrapper
    assert list(model.state_dict()) == before
