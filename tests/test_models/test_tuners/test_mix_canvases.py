"""Mixing images of several sizes and owners."""

import pytest
import torch
from mmpretrain.registry import BATCH_AUGMENTS

from mergemix_mm.functional import attention_ratio, mix_images, resize
from mergemix_mm.models import MergeMix, OACutMix, SalientBlur, SwapImages
from mergemix_mm.models.batch_augments import Mixer, MixResult
from mergemix_mm.models.tuners import mix_canvases
from mergemix_mm.models.vision_encoders import ADAPTERS
from mergemix_mm.models.vision_encoders.mmpretrain import MMPretrainEncoder
from mergemix_mm.visualization import draw_mixed_samples


def draw(*sizes: tuple[int, int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, *size, generator=generator) for size in sizes]


SAME = [(32, 32)] * 4
DIFFERENT = [(32, 32), (30, 50), (32, 32), (48, 20)]
MIXERS = {
    'MergeMix': dict(type='MergeMix'),
    'SalientBlur': dict(type='SalientBlur'),
    'SwapImages': dict(type='SwapImages'),
    'Mixup': dict(type='Mixup', alpha=1.0),
    'CutMix': dict(type='CutMix', alpha=1.0),
    'ResizeMix': dict(type='ResizeMix', alpha=1.0),
}


@pytest.mark.parametrize('sizes', [SAME, DIFFERENT], ids=['same', 'different'])
@pytest.mark.parametrize('mixer', MIXERS)
def test_sizes_stay_and_the_clean_images_are_not_modified(vit, mixer, sizes):
    canvases = draw(*sizes)
    before = [canvas.clone() for canvas in canvases]
    mixer = BATCH_AUGMENTS.build(MIXERS[mixer])
    result = mix_canvases(mixer, canvases, torch.arange(4), vit)
    assert [image.shape for image in result.images] == [canvas.shape for canvas in canvases]
    assert all(torch.equal(a, b) for a, b in zip(canvases, before, strict=True))
    assert ((result.ratio >= 0) & (result.ratio <= 1)).all()


@pytest.mark.parametrize('mixer', [MIXERS['MergeMix'], MIXERS['CutMix'], MIXERS['SwapImages']])
def test_partners_belong_to_other_samples(vit, mixer):
    owner = torch.tensor([0, 0, 0, 1])
    mixer = BATCH_AUGMENTS.build(mixer)
    for _ in range(10):
        result = mix_canvases(mixer, draw(*SAME), owner, vit)
        assert (owner[result.partner] != owner)[result.mixed].all()
        unmixed = ~result.mixed
        assert (result.ratio[unmixed] == 1).all()
        for i in unmixed.nonzero().flatten().tolist():
            assert torch.equal(result.images[i], result.clean[i])
        if isinstance(mixer, MergeMix):
            assert result.mixed.all()


def test_images_of_the_size_of_the_encoder_are_mixed_as_in_classification(vit):
    canvases = draw(*SAME)
    result = mix_canvases(MergeMix(), canvases, torch.arange(4), vit)
    expected = mix_images(torch.stack(canvases), result.partner, result.mask, result.grid)
    assert torch.equal(torch.stack(result.images), expected)


def test_the_mask_of_another_size_is_the_same_part_of_the_image(vit):
    canvases = draw(*[(64, 128)] * 3)
    result = mix_canvases(MergeMix(), canvases, torch.arange(3), vit)
    assert result.grid == (4, 4)
    expected = mix_images(torch.stack(canvases), result.partner, result.mask, result.grid)
    assert torch.equal(torch.stack(result.images), expected)


def test_a_partner_of_another_size_is_resized(vit):
    red, blue = torch.zeros(3, 32, 32), torch.zeros(3, 20, 50)
    red[0], blue[2] = 1, 1
    result = mix_canvases(SwapImages(), [red, blue], torch.tensor([0, 1]))
    assert torch.allclose(result.images[0], blue[:, :1, :1].expand(3, 32, 32))
    assert torch.allclose(result.images[1], red[:, :1, :1].expand(3, 20, 50))
    mixed = mix_canvases(MergeMix(ratio='area'), [red, blue], torch.tensor([0, 1]), vit)
    share = mixed.images[1][2].mean()
    assert share == pytest.approx(float(mixed.ratio[1]), abs=0.05)


def test_all_images_are_scored_in_one_call_of_the_encoder(vit, monkeypatch):
    calls = []
    embed = vit.patch_embed.forward
    monkeypatch.setattr(vit.patch_embed, 'forward', lambda images: calls.append(images.shape) or embed(images))
    mix_canvases(MergeMix(), draw(*DIFFERENT), torch.arange(4), vit)
    assert calls == [(4, 3, 32, 32)]


class AnySizeEncoder(MMPretrainEncoder):
    """As the tower of a Qwen: no image size of its own, and no merging."""

    no_merge = 'rotary positions'

    def __init__(self, model):
        super().__init__(model)
        self.image_size = None


@pytest.fixture
def any_size(vit, monkeypatch):
    monkeypatch.setitem(ADAPTERS, f'{type(vit).__module__}.{type(vit).__name__}', AnySizeEncoder)
    return vit


ANY = [(32, 32), (24, 40), (32, 32), (48, 16)]


def test_each_image_is_scored_once_at_its_own_size(any_size, monkeypatch):
    calls = []
    embed = any_size.patch_embed.forward
    monkeypatch.setattr(any_size.patch_embed, 'forward', lambda images: calls.append(images.shape) or embed(images))
    for mixer, owner in ((MergeMix(num_merge=0), torch.arange(4)), (SalientBlur(num_merge=0), torch.zeros(4).long())):
        calls.clear()
        result = mix_canvases(mixer, draw(*ANY), owner, any_size)
        assert calls == [(2, 3, 32, 32), (1, 3, 24, 40), (1, 3, 48, 16)]
        assert result.mixed.all() and result.grid == [(4, 4), (3, 5), (4, 4), (6, 2)]
        assert (
            [len(mask) for mask in result.mask] == [len(saliency) for saliency in result.saliency] == [16, 15, 16, 12]
        )


def test_masks_on_the_pixels_keep_their_grid_beside_that_of_the_saliency(any_size):
    canvases = draw(*ANY)
    torch.manual_seed(0)
    result = mix_canvases(OACutMix(num_merge=0), canvases, torch.arange(4), any_size)
    assert result.grid == ANY and result.saliency_grid == [(4, 4), (3, 5), (4, 4), (6, 2)]
    for image, clean, mask, grid in zip(result.images, canvases, result.mask, result.grid, strict=True):
        own = mask.view(grid)
        assert torch.equal(image[:, own], clean[:, own])
    assert 0 < torch.cat(result.mask).float().mean() < 1
    assert draw_mixed_samples(result).ndim == 3


@pytest.mark.parametrize('seed', range(3))
def test_masks_ratios_and_pixels_follow_the_scores_of_each_image(any_size, seed):
    canvases, owner, mixer = draw(*ANY), torch.tensor([0, 0, 1, 2]), MergeMix(num_merge=0)
    torch.manual_seed(seed)
    result = mix_canvases(mixer, canvases, owner, any_size)
    assert result.mixed.all() and (owner[result.partner] != owner).all()
    for index, (image, mask, saliency) in enumerate(zip(canvases, result.mask, result.saliency, strict=True)):
        partner, grid = int(result.partner[index]), result.grid[index]
        torch.testing.assert_close(saliency, mixer.score(image[None], any_size).saliency[0])
        assert saliency.masked_fill(~mask, 1).min() >= saliency.masked_fill(mask, 0).max()
        # The partner's saliency is that of its own size, on the grid of the image and with the same sum.
        other = result.saliency[partner]
        resized = resize(other.view(1, 1, *result.grid[partner]), grid).flatten()
        both = torch.stack([saliency, resized * (other.sum() / resized.sum())])
        ratio = attention_ratio(both, torch.tensor([1, 0]), torch.stack([mask, mask]))[0]
        assert result.ratio[index].item() == pytest.approx(ratio.item(), abs=1e-5)
        kept = mask.view(grid).repeat_interleave(8, 0).repeat_interleave(8, 1)
        expected = torch.where(kept, image, resize(canvases[partner][None], image.shape[1:])[0])
        assert torch.equal(result.images[index], expected)


def test_one_sample_alone_cannot_be_mixed_but_can_be_blurred(vit):
    canvases, owner = draw(*SAME), torch.tensor([2, 2, 2, 2])
    assert mix_canvases(MergeMix(), canvases, owner, vit) is None
    assert mix_canvases(SwapImages(), canvases, owner) is None
    assert mix_canvases(MergeMix(), [], owner[:0], vit) is None
    blurred = mix_canvases(SalientBlur(), canvases, owner, vit)
    assert blurred.mixed.all()


def test_a_mixer_without_partners_and_scores_changes_each_image_at_its_own_size():
    seen = []

    class Darken(Mixer):
        needs_partner = False

        def mix(self, images, encoder=None, generator=None, partner=None):
            assert partner is None
            seen.append(tuple(images.shape))
            return MixResult(images / 4, torch.arange(len(images)), torch.full((len(images),), 0.25))

    canvases = draw(*DIFFERENT)
    result = mix_canvases(Darken(), canvases, torch.zeros(4, dtype=torch.long))
    assert all(torch.equal(image, canvas / 4) for image, canvas in zip(result.images, canvases, strict=True))
    assert result.mixed.all() and result.ratio.tolist() == [0.25] * 4 and result.partner.tolist() == [0, 1, 2, 3]
    assert seen == [(2, 3, 32, 32), (1, 3, 30, 50), (1, 3, 48, 20)]


def test_missing_encoder_is_the_error_of_mergemix():
    with pytest.raises(ValueError, match='MergeMix has no encoder'):
        mix_canvases(MergeMix(), draw(*SAME), torch.arange(4))


def test_swapping_several_images_of_a_sample_takes_all_of_them_from_others():
    owner = torch.tensor([0, 0, 1, 1])
    for _ in range(5):
        result = mix_canvases(SwapImages(), draw(*DIFFERENT), owner)
        assert result.mixed.all() and (owner[result.partner] != owner).all() and result.ratio.eq(0).all()
        for image, canvas, j in zip(result.images, result.clean, result.partner.tolist(), strict=True):
            assert torch.equal(image, resize(result.clean[j][None], canvas.shape[1:])[0])


def test_a_compiled_step_swaps_the_same_images():
    def step(canvases, owner):
        torch.manual_seed(0)
        return mix_canvases(SwapImages(), canvases, owner).images

    canvases, owner = draw((8, 12), (12, 8), (8, 8)), torch.tensor([0, 0, 1])
    torch.testing.assert_close(torch.compile(step, backend='eager')(canvases, owner), step(canvases, owner))
