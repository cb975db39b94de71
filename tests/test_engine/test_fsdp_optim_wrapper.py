"""FSDPOptimWrapper without FSDP; what it does with it is in test_vlm_tuner_distributed.py."""

import pytest
import torch
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn


def test_a_model_that_is_not_sharded_is_refused_with_the_ways_out():
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    wrapper = OPTIM_WRAPPERS.build(dict(type='FSDPOptimWrapper', optimizer=optimizer, clip_grad=dict(max_norm=1.0)))
    with wrapper.optim_context(model):
        loss = model(torch.ones(1, 2)).sum()
    with pytest.raises(TypeError, match=r"Linear is not sharded.*FSDPStrategy.*optim_wrapper\.type='OptimWrapper'"):
        wrapper.update_params(loss)
