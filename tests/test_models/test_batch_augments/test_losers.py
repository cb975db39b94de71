"""The augments that make losers for SimPO: SalientBlur and SwapImages."""

import pytest
import torch
from mmpretrain.registry import BATCH_AUGMENTS

from mergemix_mm.models import SalientBlur, mix_batch


@pytest.fixture
def images():
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_blur_changes_the_salient_patches_alone(vit, images):
    before = images.clone()
    result = BATCH_AUGMENTS.build(dict(type='SalientBlur', sigma=0.1)).mix(images, vit)
    sharp = result.mask.view(4, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3).expand_as(images)
    assert torch.equal(result.images[sharp], images[sharp])
    assert result.images[~sharp].var() < 0.2 * images[~sharp].var()
    assert torch.equal(images, before)
    kept, blurred = result.saliency.masked_fill(~result.mask, -1), result.saliency.masked_fill(result.mask, 2)
    assert (kept.amax(dim=1) <= blurred.amin(dim=1)).all()


def test_the_ratio_of_a_blurred_image_is_the_attention_that_stays_sharp(vit, images):
    result = SalientBlur().mix(images, vit)
    share = (result.saliency * result.mask).sum(1) / result.saliency.sum(1)
    assert torch.allclose(result.ratio, share)
    assert torch.equal(result.partner, torch.arange(4))


def test_one_image_can_be_blurred(vit, images):
    result = SalientBlur(sigma=0.1).mix(images[:1], vit, torch.Generator().manual_seed(3))
    assert not torch.equal(result.images, images[:1])


@pytest.mark.parametrize('sigma', [0.0, -1.0, float('inf')])
def test_sigma_out_of_range_is_refused(sigma):
    with pytest.raises(ValueError, match=f'sigma={sigma} must be > 0'):
        SalientBlur(sigma=sigma)


def test_swapping_leaves_nothing_of_the_image_itself(images):
    swap = BATCH_AUGMENTS.build(dict(type='SwapImages'))
    result = mix_batch(swap, images)
    assert result.ratio.tolist() == [0, 0, 0, 0]
    assert (result.partner != torch.arange(4)).all()
    assert torch.equal(result.images, images[result.partner])


def test_swapping_takes_the_labels_along(images):
    scores = torch.eye(4)
    mixed, labels = BATCH_AUGMENTS.build(dict(type='SwapImages'))(images, scores)
    assert torch.equal(mixed, images[labels.argmax(1)])


def test_a_batch_of_one_is_not_swapped(images):
    mixed, labels = BATCH_AUGMENTS.build(dict(type='SwapImages'))(images[:1], torch.eye(1))
    assert torch.equal(mixed, images[:1]) and labels.item() == 1
