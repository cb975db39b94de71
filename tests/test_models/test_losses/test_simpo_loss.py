import pytest
import torch
from mmengine.registry import MODELS

from mergemix_mm.functional import simpo_loss


def test_module_and_function_agree():
    chosen, rejected, margin = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    loss = MODELS.build(dict(type='SimPOLoss', beta=3.0, label_smoothing=0.2, loss_type='sigmoid'))
    assert torch.equal(loss(chosen, rejected, margin), simpo_loss(chosen, rejected, 3.0, margin, 0.2))


def test_defaults_are_simpos():
    # z = 2 * (-1 - -2) - 0.5 = 1.5; -log sigmoid(1.5) = 0.2014133
    loss = MODELS.build(dict(type='SimPOLoss'))
    assert loss(torch.tensor([-1.0]), torch.tensor([-2.0]), 0.5).item() == pytest.approx(0.2014133, abs=1e-6)


def test_arguments_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r'beta=0.0 must be > 0'):
        MODELS.build(dict(type='SimPOLoss', beta=0.0))
