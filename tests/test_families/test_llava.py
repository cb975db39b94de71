import pytest
import tiny_vlms
import torch

from mergemix_mm.models.vision_encoders import build_vision_encoder, score_patches
from mergemix_mm.models.vlms import IMAGE, PAD, TEXT, HFVisionLanguageModel


@pytest.fixture(scope='module')
def vlm():
    torch.manual_seed(0)
    return HFVisionLanguageModel(config=tiny_vlms.tiny_config('llava')).eval()


def batch_of(padding_side='right'):
    images = [tiny_vlms.random_image(30, 40, seed) for seed in range(3)]
    batch = tiny_vlms.tiny_processor('llava')(
        text=['<image>is<image>', 'x<image>'],
        images=images,
        padding=True,
        padding_side=padding_side,
        return_tensors='pt',
    )
    return dict(batch)


def test_canvases_are_the_processors_images_and_their_samples(vlm):
    batch = batch_of()
    canvases, owners = vlm.canvases(batch)
    assert torch.equal(torch.stack(canvases), batch['pixel_values'])
    assert owners.tolist() == [0, 0, 1]


def test_other_canvases_change_the_pixels_of_a_new_batch_only(vlm):
    batch = batch_of()
    pixels = batch['pixel_values'].clone()
    mixed = vlm.with_canvases(batch, [canvas.flip(2) for canvas in vlm.canvases(batch)[0]])
    assert torch.equal(mixed['pixel_values'], pixels.flip(3))
    assert torch.equal(batch['pixel_values'], pixels)
    assert mixed['input_ids'] is batch['input_ids']
    before, after = vlm.hidden(batch), vlm.hidden(mixed)
    assert (before - after).abs().amax(dim=(1, 2)).gt(1e-2).all()


def test_modality_with_padding_on_the_left(vlm):
    batch = batch_of('left')
    found = vlm.modality(batch)
    begin = [] if batch['input_ids'][0, 0] == vlm.family.image_token_id else [TEXT]
    assert found[0].tolist() == begin + [IMAGE] * 16 + [TEXT] * 2 + [IMAGE] * 16
    assert found[1].tolist() == [PAD] * 17 + begin + [TEXT] + [IMAGE] * 16


def test_a_later_token_never_changes_an_earlier_hidden_state(vlm):
    batch = batch_of()
    changed = dict(batch, input_ids=batch['input_ids'].clone())
    changed['input_ids'][0, 17] += 1
    before, after = vlm.hidden(batch)[0], vlm.hidden(changed)[0]
    assert torch.equal(before[:17], after[:17])
    assert (before[17:] - after[17:]).abs().amax(dim=1).gt(1e-4).all()


def test_its_tower_scores_patches(vlm):
    scores = score_patches(build_vision_encoder(vlm.vision_encoder), batch_of()['pixel_values'], num_merge=2, layer=2)
    assert scores.saliency.shape == (3, 16)


def test_a_pixtral_tower_is_refused():
    config = dict(tiny_vlms.tiny_config('llava'), vision_feature_layer=-1)
    config['vision_config'] = dict(model_type='pixtral', hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    with pytest.raises(ValueError, match="'pixtral' packs images of several sizes"):
        HFVisionLanguageModel(config=config)
