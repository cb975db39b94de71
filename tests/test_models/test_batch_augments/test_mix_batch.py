"""MMPretrain's own batch augments, called in the same way as MergeMix."""

import pytest
import torch
from mmpretrain.registry import BATCH_AUGMENTS

from mergemix_mm.models import mix_batch

AUGMENTS = [dict(type='Mixup', alpha=1.0), dict(type='CutMix', alpha=1.0), dict(type='ResizeMix', alpha=1.0)]


@pytest.mark.parametrize('cfg', AUGMENTS, ids=lambda cfg: cfg['type'])
def test_partner_and_ratio_say_how_the_augment_mixed(cfg):
    torch.manual_seed(0)
    augment, images = BATCH_AUGMENTS.build(cfg), torch.randn(5, 3, 16, 16)
    before, labels = images.clone(), torch.eye(8)[torch.tensor([0, 3, 7, 3, 1])]
    seen = set()
    for _ in range(10):
        result = mix_batch(augment, images)
        assert torch.equal(images, before)
        assert result.clean is images
        assert result.mask is None
        alone = result.partner == torch.arange(5)
        assert torch.equal(result.ratio[alone], torch.ones(int(alone.sum())))
        torch.testing.assert_close(result.mix_scores(labels).sum(1), torch.ones(5))
        if cfg['type'] == 'Mixup':
            weight = result.ratio.view(-1, 1, 1, 1)
            torch.testing.assert_close(result.images, weight * images + (1 - weight) * images[result.partner])
        if cfg['type'] == 'CutMix':
            own = (result.images == images).all(1)
            share = own.float().mean((1, 2))
            torch.testing.assert_close(share[~alone], result.ratio[~alone])
        seen.add(float(result.ratio.min()))
    assert len(seen) > 5
