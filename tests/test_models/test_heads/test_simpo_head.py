import math

import pytest
import torch

from mergemix_mm.models.heads import AnswerScores, SFTHead, SimPOHead

CHOSEN = AnswerScores(torch.tensor([-2.0, -6.0, -3.0]), torch.tensor([2, 3, 1]))
REJECTED = AnswerScores(torch.tensor([-4.0, -3.0, -9.0]), torch.tensor([2, 3, 1]))
RATIO = torch.tensor([0.25, 0.5, 1.0])
ALL = torch.tensor([True, True, True])


def softplus(z: float) -> float:
    """-log sigmoid(z)."""
    return math.log1p(math.exp(-z))


def scores(*sums: float) -> AnswerScores:
    return AnswerScores(torch.tensor(sums, requires_grad=True), torch.ones(len(sums), dtype=torch.int64))


def test_sft_is_the_cross_entropy_per_answer_token():
    losses = SFTHead().loss(CHOSEN)
    assert losses['loss_sft'] == pytest.approx(11 / 6)
    assert losses['logp_chosen'] == pytest.approx((-1 - 2 - 3) / 3)
    assert losses['answer_length'] == pytest.approx(2)


def test_sft_without_any_answer_is_zero_and_differentiable():
    sums = torch.zeros(2, requires_grad=True)
    loss = SFTHead().loss(AnswerScores(sums, torch.zeros(2, dtype=torch.int64)))['loss_sft']
    loss.backward()
    assert loss == 0 and sums.grad is not None and sums.grad.isfinite().all()


def test_mixing_margin_is_one_minus_the_ratio_of_each_sample_outside_beta():
    losses = SimPOHead(beta=2.0).loss(CHOSEN, REJECTED, RATIO, ALL)
    # mean log-probabilities: chosen -1, -2, -3; rejected -2, -1, -9.
    expected = [softplus(2 * 1 - 0.75), softplus(2 * -1 - 0.5), softplus(2 * 6 - 0.0)]
    assert losses['loss_simpo'] == pytest.approx(sum(expected) / 3, rel=1e-6)
    assert losses['loss_sft'] == pytest.approx(11 / 6)


def test_a_number_as_margin_is_simpos_gamma():
    losses = SimPOHead(beta=2.0, margin=0.5).loss(CHOSEN, REJECTED, None, ALL)
    expected = [softplus(2 - 0.5), softplus(-2 - 0.5), softplus(12 - 0.5)]
    assert losses['loss_simpo'] == pytest.approx(sum(expected) / 3, rel=1e-6)
    assert 'ratio_mean' not in losses


def test_logged_rewards():
    losses = SimPOHead(beta=2.0).loss(CHOSEN, REJECTED, RATIO, ALL)
    named = dict(
        reward_chosen=-4, reward_rejected=-8, reward_margin=4, reward_accuracy=2 / 3, logp_chosen=-2, logp_rejected=-4
    )
    for name, value in {**named, 'ratio_mean': 1.75 / 3, 'answer_length': 2}.items():
        assert losses[name] == pytest.approx(value), name
        assert 'loss' not in name and not losses[name].requires_grad


def test_samples_without_a_loser_are_not_in_the_preference_term():
    valid = torch.tensor([True, False, False])
    losses = SimPOHead().loss(CHOSEN, REJECTED, RATIO, valid)
    assert losses['loss_simpo'] == pytest.approx(softplus(1 - 0.75), rel=1e-6)
    assert losses['loss_sft'] == pytest.approx(11 / 6)
    assert losses['ratio_mean'] == pytest.approx(0.25)


def test_samples_without_an_answer_do_not_spoil_the_gradient():
    chosen, rejected = scores(-1.0, 0.0), scores(-2.0, 0.0)
    chosen.lengths[1] = rejected.lengths[1] = 0
    losses = SimPOHead().loss(chosen, rejected, torch.tensor([0.5, 0.5]), torch.tensor([True, True]))
    assert losses['loss_simpo'].item() == pytest.approx(softplus(1 - 0.5), rel=1e-6)
    losses['loss_simpo'].backward()
    assert chosen.sums.grad.tolist()[1] == 0 and rejected.sums.grad.isfinite().all()


def test_no_pair_anywhere_leaves_the_preference_out():
    losses = SimPOHead().loss(CHOSEN)
    assert not {'loss_simpo', 'reward_margin'} & set(losses)
    losses = SimPOHead().loss(CHOSEN, REJECTED, RATIO, ~ALL)
    assert losses['loss_simpo'] == 0 and 'reward_margin' not in losses


@pytest.mark.parametrize('detach', [False, True])
def test_the_loser_gets_gradients_unless_detached(detach):
    chosen, rejected = scores(-1.0), scores(-2.0)
    head = SimPOHead(detach_loser=detach)
    head.loss(chosen, rejected, torch.tensor([0.5]), torch.tensor([True]))['loss_simpo'].backward()
    assert chosen.sums.grad is not None and chosen.sums.grad.item() < 0
    assert (rejected.sums.grad is None) == detach
    assert head.loser_needs_grad != detach
    if not detach:
        assert rejected.sums.grad.item() == pytest.approx(-chosen.sums.grad.item())


def test_loser_sft_is_the_cross_entropy_of_the_mixed_images_over_valid_samples():
    head = SimPOHead(loser_sft_weight=0.5, detach_loser=True)
    losses = head.loss(CHOSEN, REJECTED, RATIO, torch.tensor([True, True, False]))
    assert losses['loss_sft_loser'] == pytest.approx(0.5 * 7 / 5)
    assert head.loser_needs_grad


def test_weights_and_types():
    assert SimPOHead(sft_weight=0.0).loss(CHOSEN, REJECTED, RATIO, ALL)['loss_sft'] == 0
    hinge = SimPOHead(loss_type='hinge', margin=0.0).loss(CHOSEN, REJECTED, RATIO, ALL)['loss_simpo']
    assert hinge == pytest.approx((0 + 2 + 0) / 3)
    smooth = SimPOHead(margin=0.0, label_smoothing=0.1).loss(CHOSEN, REJECTED, RATIO, ALL)['loss_simpo']
    expected = [0.9 * softplus(z) + 0.1 * softplus(-z) for z in (1, -1, 6)]
    assert smooth == pytest.approx(sum(expected) / 3, rel=1e-6)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(margin='mix'), "margin='mix' must be 'mixing' or a number"),
        (dict(sft_weight=-1.0), 'sft_weight=-1.0 must be >= 0'),
        (dict(loser_sft_weight=-0.5), 'loser_sft_weight=-0.5 must be >= 0'),
        (dict(beta=-1.0), 'beta=-1.0 must be > 0'),
        (dict(label_smoothing=0.5), r'label_smoothing=0.5 must be in \[0, 0.5\)'),
        (dict(loss_type='ipo'), "loss_type='ipo' must be one of"),
    ],
)
def test_arguments_out_of_range_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        SimPOHead(**kwargs)
