"""SmolVLM and Idefics3: tiles are read off the text, and patches get their own positions."""

import numpy as np
import pytest
import torch
from tiny_vlms import SIZES, mixed_batch, model_of_type, one_image, random_image, tiny_processor
from tiny_vlms import tiny_family as build

from mergemix_mm.models.vlms import IMAGE, MARKER, PAD, TEXT


@pytest.mark.parametrize(('height', 'width'), SIZES)
def test_a_smolvlm_canvas_is_the_whole_image_at_the_size_of_its_grid(height, width):
    canvas = build('smolvlm').canvases(one_image('smolvlm', height, width))[0]
    processor, pixels = tiny_processor('smolvlm').image_processor, np.array(random_image(height, width, 0))
    found = processor([[random_image(height, width, 0)]], return_row_col_info=True)
    assert tuple(canvas.shape[1:]) == (28 * found['rows'][0][0], 28 * found['cols'][0][0])
    if isinstance(processor.size, dict):  # transformers 4: with numpy, channels last.
        whole = processor.resize_for_vision_encoder(processor.resize(pixels, processor.size), 28)
        whole = torch.from_numpy(whole).permute(2, 0, 1)
    else:
        pixels, way = torch.from_numpy(pixels).permute(2, 0, 1), dict(resample=processor.resample)
        whole = processor.resize_for_vision_encoder(processor.resize(pixels, processor.size, **way), 28, **way)
    whole = (whole / 255 - 0.5) / 0.5
    torch.testing.assert_close(canvas, whole, atol=1e-6, rtol=0)


def test_a_smolvlm_image_that_is_not_split_is_its_global_view():
    family, processor = build('smolvlm'), tiny_processor('smolvlm')
    processor.image_processor.do_image_splitting = False
    images = [[random_image(40, 60, 0), random_image(60, 40, 1)]]
    batch = dict(processor(images=images, text=['<image><image>?'], return_tensors='pt'))
    assert batch['pixel_values'].shape == (1, 2, 3, 28, 28)
    assert [list(canvas.shape) for canvas in family.canvases(batch)] == [[3, 28, 28]] * 2
    assert torch.equal(torch.stack(family.canvases(batch)), batch['pixel_values'][0])


def test_a_smolvlm_view_of_zeros_is_not_taken_for_padding():
    family, batch = build('smolvlm'), one_image('smolvlm', 56, 84)
    empty = family.with_canvases(batch, [torch.zeros_like(family.canvases(batch)[0])])
    features = family.base.get_image_features(empty['pixel_values'])
    if not isinstance(features, torch.Tensor):  # transformers 5: [tokens, C] of each sample, or of each view.
        features = torch.cat(list(features.pooler_output))
    assert features.shape[:-1].numel() == 4 * batch['pixel_values'].size(1)
    assert empty['pixel_values'].abs().max() < 1e-4


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize('model_type', ['smolvlm', 'idefics3'])
def test_each_patch_has_its_own_position_and_those_of_a_smaller_image_are_spread(model_type, dtype):
    """Of 26 x 26, as in Idefics3; under transformers 4, most would have that of the patch before."""
    vision = dict(model_type=f'{model_type}_vision', image_size=52, patch_size=2)
    family = model_of_type('smolvlm', model_type, vision)
    embeddings = family.vision_tower.embeddings.to(dtype)
    with torch.no_grad():
        embeddings.patch_embedding.weight.zero_()
        embeddings.patch_embedding.bias.zero_()
        table = embeddings.position_embedding.weight.copy_(torch.randn(26 * 26, 16))
        mask = torch.ones(2, 26, 26, dtype=torch.bool)
        mask[1, 13:] = mask[1, :, 20:] = False
        found = embeddings(pixel_values=torch.zeros(2, 3, 52, 52, dtype=dtype), patch_attention_mask=mask)
    assert torch.equal(found[0], table)
    rows, columns = torch.arange(13) * 2, torch.arange(20) * 26 // 20
    assert torch.equal(found[1][mask[1].flatten()], table[(rows[:, None] * 26 + columns).flatten()])


@pytest.mark.parametrize('side', ['left', 'right'])
def test_modality_of_smolvlm_marks_frames_row_markers_and_new_lines_of_images(side):
    family, batch = build('smolvlm'), mixed_batch('smolvlm', side)
    found, tokenizer = family.modality(batch), tiny_processor('smolvlm').tokenizer
    texts = [
        [tokenizer.decode(ids[kinds == kind]) for kind in (MARKER, TEXT)]
        for ids, kinds in zip(batch['input_ids'], found)
    ]
    fake = '<fake_token_around_image>'

    def markers(rows, columns):
        lines = [''.join(f'{fake}<row_{r}_col_{c}>' for c in range(1, columns + 1)) for r in range(1, rows + 1)]
        return '\n'.join(lines) + f'\n\n{fake}<global-img>{fake}'

    assert texts == [
        [markers(2, 3) + markers(3, 1), 'which? both'],
        ['', 'hello you'],
        [markers(3, 3), 'and this? no'],
        ['', 'ab'],
    ]
    assert (found == IMAGE).sum() == 4 * (7 + 4 + 10)
    assert torch.equal(found == PAD, batch['attention_mask'] == 0)
