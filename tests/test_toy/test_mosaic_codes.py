"""Tests of MosaicCodes: colours to codes and back, by the modules of transformers."""

import pytest
import tiny_vlms
import torch

from mergemix_mm.models.vlms import JanusModel

VQ = dict(
    embed_dim=5,
    num_embeddings=216,
    base_channels=128,
    channel_multiplier=[1, 1, 1, 1],
    num_res_blocks=0,
    latent_channels=5,
)


def build(**vq):
    config = tiny_vlms.tiny_config('janus')
    config['vision_config'].update(image_size=32, patch_size=8)
    config['vq_config'].update(VQ | vq)
    torch.manual_seed(0)
    vlm = JanusModel(config=config, init_cfg=dict(type='MosaicCodes'))
    vlm.init_weights()
    return vlm


@pytest.fixture(scope='module')
def vlm():
    return build()


def tiles(colours):
    """[B, 16, 3] -> images [B, 3, 32, 32] of 4 x 4 tiles."""
    return colours.unflatten(1, (4, 4)).permute(0, 3, 1, 2).repeat_interleave(8, 2).repeat_interleave(8, 3)


def test_colours_of_the_grid_come_back(vlm):
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(6, (14, 16, 3), generator=generator)
    images = tiles(levels / 2.5 - 1)
    codes = vlm.encode_images(images)
    assert torch.equal(codes, (levels * torch.tensor([36, 6, 1])).sum(-1))
    assert len(codes.unique()) > 100
    torch.testing.assert_close(vlm.decode_codes(codes), images, atol=5e-3, rtol=0)


def test_other_colours_become_the_nearest(vlm):
    colours = torch.rand(4, 16, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1
    nearest = (colours * 2.5 + 2.5).round() / 2.5 - 1
    decoded = vlm.decode_codes(vlm.encode_images(tiles(colours)))
    # Colours halfway between two levels may fall on either side.
    assert ((decoded - tiles(nearest)).abs() < 5e-3).float().mean() > 0.99


def test_a_tile_is_the_colour_of_its_middle(vlm):
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(2)) * 2 - 1
    middle = images.unflatten(2, (4, 8)).unflatten(4, (4, 8))[:, :, :, 3:5, :, 3:5].mean((3, 5))
    assert torch.equal(vlm.encode_images(images), vlm.encode_images(tiles(middle.flatten(2).mT)))


def test_the_weights_are_saved_and_loaded_as_others(vlm, tmp_path):
    vlm.save_pretrained(tmp_path)
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(3)) * 2 - 1
    assert torch.equal(JanusModel(str(tmp_path)).encode_images(images), vlm.encode_images(images))


def test_a_vq_model_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"'num_embeddings': 200.*'num_res_blocks': 1.*'num_embeddings': 216"):
        build(num_embeddings=200, num_res_blocks=1)
