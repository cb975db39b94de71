"""Hidden patches: how many, which, and what they hold. FGSM and PGD: where they may go and what they reach."""

import pytest
import torch

from mergemix_mm.functional import fgsm, hide_patches, pgd


@pytest.fixture
def images():
    """Two images of 4 x 6 pixels in [0, 1], six patches each; some pixels lie at the ends of the range."""
    torch.manual_seed(0)
    return torch.rand(2, 3, 4, 6).mul(1.4).sub(0.2).clamp(0, 1)


@pytest.fixture
def linear(images):
    """A hand-made model with two classes whose loss has the gradient -weight: logits (w . x, 0), hinge of class 0."""
    weight = torch.randn_like(images[:1])
    weight[0, 0] = 0  # Of these pixels nothing depends.
    return weight, lambda x: -(weight * x).flatten(1).sum(1)


@pytest.mark.parametrize('count', [0, 1, 4, 6])
def test_exactly_the_patches_of_highest_priority_are_filled(images, count):
    priority = torch.tensor([[6.0, 5, 4, 3, 2, 1], [0, 0, 0, 1, 1, 1]])
    hidden = hide_patches(images + 1, priority, count, (2, 3))  # No own pixel is 0.
    patches = hidden.unflatten(3, (3, 2)).unflatten(2, (2, 2)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
    gone = (patches == 0).all(-1)
    first, second = {0: ([], []), 1: ([0], [3]), 4: ([0, 1, 2, 3], [0, 3, 4, 5]), 6: (range(6), range(6))}[count]
    assert [row.nonzero().flatten().tolist() for row in gone] == [list(first), list(second)]
    assert ((hidden == images + 1) | (hidden == 0)).all()
    with pytest.raises(ValueError, match=r'count=7 must be in \[0, 6\]'):
        hide_patches(images, priority, 7, (2, 3))


def test_fgsm_of_a_linear_model_is_the_sign_of_its_weights_times_epsilon_within_the_range(images, linear):
    weight, loss = linear
    attacked = fgsm(loss, images, 0.1)
    torch.testing.assert_close(attacked, (images - 0.1 * weight.sign()).clamp(0, 1))
    assert (attacked[:, 0] == images[:, 0]).all()


@pytest.mark.parametrize('random_start', [False, True])
def test_pgd_stays_within_epsilon_and_the_range_and_reaches_the_corner_of_the_ball(images, linear, random_start):
    weight, loss = linear
    # Limits for each channel, as normalised pixels have them.
    epsilon, low, high = (torch.tensor(values).view(3, 1, 1) for values in ([0.1, 0.2, 0.05], [0.0] * 3, [1.0] * 3))
    generator = torch.Generator().manual_seed(0)
    attacked = pgd(loss, images, epsilon, epsilon / 4, 8, low, high, random_start, generator)
    assert ((attacked - images).abs() <= epsilon + 1e-6).all() and attacked.min() >= 0 and attacked.max() <= 1
    # The corner of a linear model: eight steps of a quarter cross the whole ball, wherever they began.
    corner = (images - epsilon * weight.sign()).clamp(0, 1)
    torch.testing.assert_close(attacked[:, 1:], corner[:, 1:])
    assert (loss(attacked) > loss(images)).all() and attacked.requires_grad is False


def test_without_gradient_steps_and_with_epsilon_zero_nothing_moves(images, linear):
    _, loss = linear
    assert torch.equal(fgsm(loss, images, 0.0), images)
    assert torch.equal(pgd(loss, images, 0.0, 0.1, 3), images)
    assert torch.equal(pgd(loss, images, 0.1, 0.1, 0, random_start=False), images)


def test_a_seed_repeats_the_random_start(images, linear):
    _, loss = linear
    first, again, other = (
        pgd(loss, images, 0.2, 0.0, 1, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_attacks_work_where_gradients_are_off_and_leave_those_of_the_model_alone(images):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(72, 3))
    with torch.no_grad():
        attacked = fgsm(lambda x: torch.nn.functional.cross_entropy(model(x), torch.tensor([0, 1])), images, 0.1)
    assert (attacked != images).any() and model[1].weight.grad is None
