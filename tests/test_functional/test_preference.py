"""Answer log-probabilities against full logits, and SimPO against literal values."""

import pytest
import torch
from largest_tensor import LargestTensor

from mergemix_mm.functional import answer_logps, simpo_loss


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 9, 6, generator=generator, requires_grad=True)
    weight = torch.randn(11, 6, generator=generator, requires_grad=True)
    labels = torch.randint(11, (3, 9), generator=generator)
    labels[0, :4] = labels[1, [0, 3, 8]] = -100
    labels[2] = -100
    return hidden, weight, labels


def full_logps(hidden, head, labels):
    """Logits of every position, whole log-softmax, labels shifted by one."""
    logps = head(hidden).float().log_softmax(-1)[:, :-1]
    targets, answered = labels[:, 1:].clamp(min=0), labels[:, 1:] != -100
    return (logps.gather(2, targets.unsqueeze(-1)).squeeze(-1) * answered).sum(1), answered.sum(1)


def gradients(sums, *inputs):
    weights = torch.tensor([1.0, -2.0, 3.0])
    return torch.autograd.grad((sums * weights).sum(), inputs)


@pytest.mark.parametrize('chunk_size', [1, 4, 1024])
@pytest.mark.parametrize('as_weight', [True, False])
def test_values_and_gradients_equal_those_of_full_logits(batch, chunk_size, as_weight):
    hidden, weight, labels = batch
    sums, lengths = answer_logps(hidden, weight if as_weight else lambda x: x @ weight.T, labels, chunk_size=chunk_size)
    expected, counts = full_logps(hidden, lambda x: x @ weight.T, labels)
    torch.testing.assert_close(sums, expected)
    assert lengths.tolist() == counts.tolist() == [5, 6, 0]
    for got, want in zip(gradients(sums, hidden, weight), gradients(expected, hidden, weight), strict=True):
        torch.testing.assert_close(got, want)


def test_a_label_is_scored_by_the_position_before_it():
    hidden = torch.eye(4).unsqueeze(0)
    weight = torch.full((5, 4), -50.0)
    weight[3, 1] = 50.0  # Position 1 is sure of token 3.
    labels = torch.tensor([[-100, -100, 3, -100]])
    sums, _ = answer_logps(hidden, weight, labels)
    assert float(sums) == pytest.approx(0.0, abs=1e-6)


def test_heads_with_bias_scale_and_soft_cap_are_functions(batch):
    hidden, weight, labels = batch
    bias = torch.randn(11, requires_grad=True)

    def head(states):
        return 5 * torch.tanh((states @ weight.T * 0.3 + bias) / 5)

    sums, _ = answer_logps(hidden, head, labels, chunk_size=3)
    expected, _ = full_logps(hidden, head, labels)
    torch.testing.assert_close(sums, expected)
    for got, want in zip(gradients(sums, hidden, weight, bias), gradients(expected, hidden, weight, bias), strict=True):
        torch.testing.assert_close(got, want)


def test_a_frozen_head_gets_no_gradient_and_none_is_computed(batch):
    hidden, weight, labels = batch
    frozen = weight.detach()
    sums, _ = answer_logps(hidden, frozen, labels)
    sums.sum().backward()
    assert frozen.grad is None
    assert hidden.grad.abs().sum() > 0


def test_no_logits_of_all_positions_are_built():
    hidden = torch.randn(2, 100, 8, requires_grad=True)
    weight = torch.randn(500, 8, requires_grad=True)
    labels = torch.full((2, 100), -100)
    labels[:, 80:] = 7
    with LargestTensor() as seen:
        sums, _ = answer_logps(hidden, weight, labels, chunk_size=8)
        sums.sum().backward()
    assert seen.elements == 8 * 500, 'one chunk of logits, and the weight with its gradient'


@pytest.mark.parametrize('as_weight', [True, False])
def test_bf16_autocast_keeps_float32_probabilities_and_finite_gradients(batch, as_weight):
    hidden, weight, labels = batch
    with torch.autocast('cpu', dtype=torch.bfloat16):
        sums, _ = answer_logps(hidden, weight if as_weight else lambda x: x @ weight.T, labels)
    assert sums.dtype == torch.float32
    expected, _ = full_logps(hidden, lambda x: x @ weight.T, labels)
    torch.testing.assert_close(sums, expected, atol=0.3, rtol=0.05)
    for got, want in zip(gradients(sums, hidden, weight), gradients(expected, hidden, weight), strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, want, atol=0.2, rtol=0.1)


@pytest.mark.parametrize('as_weight', [True, False])
def test_the_gradient_of_the_weight_is_summed_over_chunks_in_float32(as_weight):
    # Each of 512 chunks adds 1: in bfloat16, the sum would stay at 256.
    hidden, weight = torch.ones(1, 1025, 1), torch.zeros(2, 1, requires_grad=True)
    head = weight if as_weight else lambda states: torch.nn.functional.linear(states, weight)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        sums, _ = answer_logps(hidden, head, torch.zeros(1, 1025, dtype=torch.int64), chunk_size=2)
    sums.sum().backward()
    assert weight.grad.tolist() == [[512], [-512]]


@pytest.mark.parametrize('as_weight', [True, False])
def test_several_passes_share_a_call_and_give_what_each_would_alone(batch, as_weight):
    hidden, weight, labels = batch
    head = weight if as_weight else lambda x: x @ weight.T
    passes, of_each = (hidden, hidden[:2, 2:].flip(2)), (labels, labels[:2, 2:])
    sums, lengths = answer_logps(passes, head, of_each, chunk_size=3)
    alone = [answer_logps(*one) for one in zip(passes, (head, head), of_each)]
    torch.testing.assert_close(sums, torch.cat([one[0] for one in alone]))
    assert lengths.tolist() == [5, 6, 0, 5, 4]
    joined, single = (
        torch.autograd.grad(total.square().sum(), (hidden, weight), retain_graph=True)
        for total in (sums, torch.cat([one[0] for one in alone]))
    )
    torch.testing.assert_close(joined, single, rtol=1e-4, atol=1e-4)


def test_what_is_no_answer_is_not_copied_when_passes_are_joined():
    hidden, labels = torch.randn(2, 50, 16), torch.full((2, 50), -100)
    labels[:, [1, 45]] = 3
    with LargestTensor() as seen:
        answer_logps([hidden, hidden + 1], torch.randn(5, 16), [labels, labels])
    assert seen.elements == hidden.numel(), 'only hidden + 1, of this test'


def test_a_batch_without_answers_is_zero_and_still_has_a_gradient(batch):
    hidden, weight, labels = batch
    sums, lengths = answer_logps(hidden, weight, torch.full_like(labels, -100))
    sums.sum().backward()
    assert sums.tolist() == [0, 0, 0]
    assert lengths.tolist() == [0, 0, 0]
    assert torch.equal(hidden.grad, torch.zeros_like(hidden))


def test_shapes_that_do_not_fit_are_errors(batch):
    hidden, weight, labels = batch
    with pytest.raises(ValueError, match=r'labels \[3, 8\] must be \[B, L\] of hidden \[3, 9, 6\]'):
        answer_logps(hidden, weight, labels[:, 1:])
    with pytest.raises(ValueError, match=r'labels \[2, 9\] must be \[B, L\] of hidden \[3, 9, 6\]'):
        answer_logps([hidden, hidden], weight, [labels, labels[:2]])
    with pytest.raises(ValueError, match='chunk_size=0'):
        answer_logps(hidden, weight, labels, chunk_size=0)


# Computed by hand from the formula with 8 digits.
GOLDEN = [
    # chosen, rejected, beta, margin, smoothing, loss type, loss
    (-0.5, -1.0, 2.0, 0.5, 0.0, 'sigmoid', 0.47407698),  # z = 0.5
    (-1.0, -0.5, 2.0, 0.5, 0.0, 'sigmoid', 1.70141328),  # z = -1.5
    (-0.5, -1.0, 2.0, 0.5, 0.1, 'sigmoid', 0.52407698),
    (-1.2, -1.2, 10.0, 0.0, 0.0, 'sigmoid', 0.69314718),  # log 2
    (-0.3, -0.8, 10.0, 3.0, 0.2, 'sigmoid', 0.52692801),  # z = 2
    (-0.5, -1.0, 2.0, 0.5, 0.0, 'hinge', 0.5),
    (-0.5, -2.0, 2.0, 0.5, 0.0, 'hinge', 0.0),
]


@pytest.mark.parametrize(('chosen', 'rejected', 'beta', 'margin', 'smoothing', 'loss_type', 'expected'), GOLDEN)
def test_simpo_golden_values(chosen, rejected, beta, margin, smoothing, loss_type, expected):
    loss = simpo_loss(torch.tensor([chosen]), torch.tensor([rejected]), beta, margin, smoothing, loss_type)
    assert loss.tolist() == pytest.approx([expected], abs=1e-6)


def test_the_margin_may_differ_from_sample_to_sample():
    chosen, rejected = torch.tensor([-0.5, -0.5]), torch.tensor([-1.0, -1.0])
    both = simpo_loss(chosen, rejected, 2.0, torch.tensor([0.5, 1.0]))
    assert both.tolist() == pytest.approx([0.47407698, 0.69314718], abs=1e-6)


def test_low_precision_inputs_are_compared_in_float32():
    loss = simpo_loss(torch.tensor([-0.5]).bfloat16(), torch.tensor([-1.0]).bfloat16(), 2.0, 0.5)
    assert loss.dtype == torch.float32


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(beta=0.0), 'beta=0.0'),
        (dict(label_smoothing=0.5), 'label_smoothing=0.5'),
        (dict(loss_type='ipo'), r"loss_type='ipo' must be one of \('sigmoid', 'hinge'\)"),
    ],
)
def test_arguments_out_of_range_are_errors(kwargs, message):
    with pytest.raises(ValueError, match=message):
        simpo_loss(torch.zeros(1), torch.zeros(1), **dict(beta=2.0, margin=0.0) | kwargs)
