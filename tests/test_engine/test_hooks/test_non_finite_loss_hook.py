"""Only a loss that stays NaN stops a run."""

import pytest
import torch
from tiny_runs import DropoutModel, build

from mergemix_mm.engine.hooks import NonFiniteLossHook, StepSeedHook


class NanModel(DropoutModel):
    """Its loss is NaN in the iterations that it is told."""

    def __init__(self, steps):
        super().__init__()
        self.steps, self.step = steps, 0

    def forward(self, inputs, mode='tensor'):
        output = super().forward(inputs, mode)
        if mode == 'loss':
            self.step += 1
            if self.step - 1 in self.steps:
                # As with loss scaling, whose optimizer skips the step: the weights stay.
                output['loss'] = output['loss'].detach() * float('nan') + 0 * sum(p.sum() for p in self.parameters())
                output['loss'].register_hook(torch.zeros_like)
        return output


@pytest.mark.parametrize(
    ('steps', 'stopped_at'),
    [(range(3, 12), 6), (range(2, 4), None), ({1, 2, 4, 5, 7, 8, 10, 11}, None)],
)
def test_only_a_loss_that_stays_nan_stops_the_run(tmp_path, steps, stopped_at):
    hooks = [StepSeedHook(), NonFiniteLossHook(patience=3)]
    runner = build(tmp_path, model=NanModel(steps), hooks=hooks, validate=False)
    if stopped_at is None:
        runner.train()
        assert runner.iter == 12
        return
    with pytest.raises(FloatingPointError, match=r'the loss \(loss\) is NaN or infinite since iteration 4, 3 steps'):
        runner.train()
    assert runner.iter + 1 == stopped_at


@pytest.mark.parametrize('patience', [0, -1, 1.5, True, None])
def test_a_patience_that_is_no_positive_integer_is_refused(patience):
    with pytest.raises(ValueError, match=f'patience={patience!r}'):
        NonFiniteLossHook(patience=patience)
