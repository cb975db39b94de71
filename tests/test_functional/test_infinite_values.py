"""The functions at infinity and NaN: defined values, and gradients without NaN."""

import math

import pytest
import torch

from mergemix_mm.functional import aia_loss, answer_logps, attention_ratio, simpo_loss, topk_mask

INF, NAN = math.inf, math.nan


def grads(loss, *inputs):
    loss.sum().backward()
    return [one.grad for one in inputs]


@pytest.mark.parametrize('loss_type', ['sigmoid', 'hinge'])
@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_simpo_has_the_limits_of_its_loss_and_gradients_without_nan(loss_type, smoothing):
    chosen = torch.tensor([-INF, -1.0, -INF, INF, -1.0, INF], requires_grad=True)
    rejected = torch.tensor([-1.0, -INF, -INF, INF, INF, -INF], requires_grad=True)
    loss = simpo_loss(chosen, rejected, 2.0, 0.5, smoothing, loss_type)
    tied = simpo_loss(torch.zeros(1), torch.zeros(1), 2.0, 0.5, smoothing, loss_type).item()
    sure = INF if smoothing and loss_type == 'sigmoid' else 0.0
    assert loss.tolist() == pytest.approx([INF, sure, tied, tied, INF, sure])
    assert all(grad.isfinite().all() for grad in grads(loss, chosen, rejected))


@pytest.mark.parametrize(('key', 'value'), [('beta', INF), ('beta', NAN), ('margin', NAN), ('margin', INF)])
def test_simpo_refuses_options_that_are_not_finite(key, value):
    options = dict(beta=1.0, margin=0.0) | {key: value}
    with pytest.raises(ValueError, match=f'{key}={value}'):
        simpo_loss(torch.zeros(1), torch.zeros(1), **options)


@pytest.mark.parametrize(
    ('own', 'other', 'share'),
    [
        ([3.0, 9.0], [9.0, 1.0], 0.75),
        ([INF, 9.0], [9.0, 1.0], 1.0),
        ([3.0, 9.0], [9.0, INF], 0.0),
        ([INF, 9.0], [9.0, INF], 0.5),
        ([3.0, INF], [INF, 1.0], 0.75),  # What is covered does not count.
        ([-INF, 9.0], [9.0, 1.0], 0.0),
        ([-INF, 9.0], [9.0, -INF], 0.5),  # Nothing visible: the area.
        ([NAN, 9.0], [9.0, 1.0], 0.0),
        ([NAN, 9.0], [9.0, NAN], 0.5),
        ([0.0, 9.0], [9.0, 0.0], 0.5),
        ([3e38, 9.0], [9.0, 3e38], 0.5),  # The sum overflows.
        ([1e-30, 9.0], [9.0, 0.0], 1.0),
    ],
)
def test_the_attention_ratio_is_a_share_for_every_saliency(own, other, share):
    saliency = torch.tensor([own, other], requires_grad=True)
    mask = torch.tensor([[True, False], [True, False]])
    ratio = attention_ratio(saliency, torch.tensor([1, 0]), mask)
    assert ratio[0].item() == pytest.approx(share) and bool(((ratio >= 0) & (ratio <= 1)).all())
    assert not grads(ratio, saliency)[0].isnan().any()


def test_patches_without_a_number_are_kept_last():
    saliency = torch.tensor([[NAN, 1.0, -INF, 2.0], [INF, NAN, 3.0, NAN]])
    assert topk_mask(saliency, 0.5).tolist() == [[False, True, False, True], [True, False, True, False]]
    assert topk_mask(torch.full((1, 4), NAN), 0.5).tolist() == [[True, True, False, False]]


def test_answers_ignore_what_stands_at_prompts_and_bear_impossible_tokens():
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(1, 4, 8, generator=generator), torch.randn(5, 8, generator=generator)
    labels = torch.tensor([[-100, -100, 1, 2]])
    clean, _ = answer_logps(hidden, weight, labels)
    spoilt = hidden.clone()
    spoilt[0, 0], spoilt[0, 3] = NAN, INF  # Neither predicts an answer token.
    spoilt.requires_grad_()
    sums, _ = answer_logps(spoilt, weight, labels)
    assert sums.item() == pytest.approx(clean.item())
    assert grads(sums, spoilt)[0].isfinite().all()

    def head(states):  # Forbids token 1, as a mask of logits does.
        return (states @ weight.T).masked_fill(torch.arange(5) == 1, -INF)

    states = hidden.clone().requires_grad_()
    sums, lengths = answer_logps(states, head, labels)
    assert sums.item() == -INF and lengths.item() == 2
    sums, _ = answer_logps(states, head, torch.tensor([[-100, -100, 0, 2]]))
    assert sums.isfinite().all() and grads(sums, states)[0].isfinite().all()
    with pytest.raises(ValueError, match='chunk_size=nan must be an integer'):
        answer_logps(hidden, weight, labels, chunk_size=NAN)


def test_an_infinite_intensity_has_an_infinite_loss_and_the_slope_of_the_linear_part():
    intensity = torch.tensor([[INF, 0.5, NAN]], requires_grad=True)
    valid = torch.tensor([True, True, False])
    loss = aia_loss(intensity, torch.tensor([0.4]), torch.tensor([0.2]), valid)
    assert loss.item() == INF
    assert grads(loss, intensity)[0].tolist() == [pytest.approx([0.2 / 2, 0.1 / 2, 0])]
