"""InternVL, SmolVLM, Qwen2.5-VL and Janus: images come back out of tiles and patches, and go in again."""

from functools import cache

import numpy as np
import pytest
import tiny_vlms
import torch
from tiny_vlms import random_image, tiny_batch, tiny_config, tiny_processor, token_id

from mergemix_mm.models.vlms import IMAGE, MARKER, PAD, TEXT

pytest.importorskip('transformers')
from mergemix_mm.families import find_family
from mergemix_mm.families.internvl import tile_grid

FAMILIES = tiny_vlms.FAMILIES
TILED = ('internvl', 'smolvlm')
SIZES = [(40, 60), (100, 30), (28, 28), (31, 200), (90, 91), (60, 40), (200, 45), (7, 30)]


@cache
def build(family):
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(**tiny_config(family))
    model = transformers.AutoModelForImageTextToText.from_config(config).eval()
    return find_family(config.model_type)(model)


def mixed_batch(family, padding_side='right'):
    """Two images, none, one, and again none."""
    images = [random_image(*size, seed) for seed, size in enumerate(SIZES[:3])]
    samples = [(images[:2], 'which?', ' both'), ([], 'hello', ' you'), (images[2:], 'and this?', ' no'), ([], 'a', 'b')]
    return tiny_batch(family, samples, padding_side)


def one_image(family, height, width, seed=0):
    return tiny_batch(family, [([random_image(height, width, seed)], 'what?', ' that')])


def hidden(family, batch):
    with torch.no_grad():
        return family.base(**family.forward_kwargs(batch)).last_hidden_state


def assert_close(got, expected):
    assert expected.abs().mean() > 0.1
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize('limits', [(1, 6), (1, 12), (2, 4), (3, 8), (6, 6)])
def test_internvl_finds_the_grid_that_the_processor_used(limits):
    from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas

    sizes = [(height, width) for height in range(5, 200, 5) for width in range(5, 200, 5)]
    grids = set()
    for size in sizes:
        columns, rows = get_optimal_tiled_canvas(size, (28, 28), *limits)
        count = rows * columns + (rows * columns > 1)
        assert tile_grid(*size, count, (28, 28)) == (rows, columns), size
        grids.add((rows, columns))
    assert len(grids) > 3


@pytest.mark.parametrize(('height', 'width'), SIZES)
def test_an_internvl_canvas_is_the_whole_image_at_the_size_of_its_grid(height, width):
    canvas = build('internvl').canvases(one_image('internvl', height, width))[0]
    processor = tiny_processor('internvl').image_processor
    size = dict(height=canvas.size(1), width=canvas.size(2))
    whole = processor(random_image(height, width, 0), size=size, crop_to_patches=False, return_tensors='pt')
    assert torch.equal(canvas, whole['pixel_values'][0])


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


@pytest.mark.parametrize(('height', 'width'), [(28, 28), (56, 84), (112, 28), (84, 84)])
def test_a_qwen_canvas_is_the_normalised_image(height, width):
    canvas = build('qwen2_5_vl').canvases(one_image('qwen2_5_vl', height, width))[0]
    processor = tiny_processor('qwen2_5_vl').image_processor
    mean, std = (torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
    pixels = torch.from_numpy(np.array(random_image(height, width, 0))).permute(2, 0, 1) / 255
    torch.testing.assert_close(canvas, (pixels - mean) / std, atol=1e-5, rtol=0)


@pytest.mark.parametrize('name', FAMILIES)
@pytest.mark.parametrize('side', ['left', 'right'])
def test_unchanged_canvases_give_the_same_pixels(name, side):
    family, batch = build(name), mixed_batch(name, side)
    again = family.with_canvases(batch, [canvas.clone() for canvas in family.canvases(batch)])
    assert torch.equal(again['pixel_values'], batch['pixel_values'])
    assert again.keys() == batch.keys()


@pytest.mark.parametrize('name', FAMILIES)
def test_images_of_many_sizes_go_out_and_in_again(name):
    family = build(name)
    batch = tiny_batch(name, [([random_image(*size, seed)], 'what?', ' that') for seed, size in enumerate(SIZES)])
    canvases = family.canvases(batch)
    assert torch.equal(family.with_canvases(batch, canvases)['pixel_values'], batch['pixel_values'])
    halves = [canvas / 2 for canvas in canvases]
    assert all(torch.equal(*pair) for pair in zip(family.canvases(family.with_canvases(batch, halves)), halves))
    assert family.owners(batch).tolist() == list(range(len(SIZES)))


@pytest.mark.parametrize('name', TILED)
def test_only_the_changed_image_gets_a_new_thumbnail(name):
    family, batch = build(name), mixed_batch(name)
    canvases = family.canvases(batch)
    pixels = family.with_canvases(batch, [canvases[0], -canvases[1], canvases[2]])['pixel_values']
    changed = (pixels != batch['pixel_values']).flatten(-3).any(dim=-1).flatten().nonzero().flatten().tolist()
    assert changed == [7, 8, 9, 10]  # Behind the seven views of the first image; the second has 3 x 1 tiles.


@pytest.mark.parametrize('name', FAMILIES)
def test_other_canvases_come_back_as_they_went_in_and_the_batch_stays(name):
    family, batch = build(name), mixed_batch(name)
    before = {key: value.clone() for key, value in batch.items()}
    canvases = [torch.randn_like(canvas) for canvas in family.canvases(batch)]
    changed = family.with_canvases(batch, canvases)
    assert len(canvases) == 3
    assert all(torch.equal(*pair) for pair in zip(family.canvases(changed), canvases))
    assert changed['pixel_values'].shape == batch['pixel_values'].shape
    assert all(torch.equal(batch[key], before[key]) for key in before)
    assert all(changed[key] is batch[key] for key in before if key != 'pixel_values')


@pytest.mark.parametrize('name', TILED)
@pytest.mark.parametrize(('height', 'width'), [(56, 84), (84, 28), (60, 90), (200, 45)])
def test_a_rebuilt_thumbnail_is_near_to_the_processors(name, height, width):
    family, batch = build(name), one_image(name, height, width)
    canvas = family.canvases(batch)[0].clone()
    canvas[:, -1, -1] += 1e-4  # Not the same any more.
    rebuilt = family.with_canvases(batch, [canvas])['pixel_values'].view(-1, 3, 28, 28)
    pixels = batch['pixel_values'].view(-1, 3, 28, 28)
    assert len(pixels) > 2
    torch.testing.assert_close(rebuilt[:-1], pixels[:-1], atol=2e-4, rtol=0)
    assert not torch.equal(rebuilt[-1], pixels[-1])
    assert (rebuilt[-1] - pixels[-1]).abs().max() < 0.12  # Of about four units from black to white.
    assert (rebuilt[-1] - pixels[-1]).abs().mean() < 0.012


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
    family = other_model('smolvlm', model_type, vision)
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


@pytest.mark.parametrize('name', FAMILIES)
@pytest.mark.parametrize('side', ['left', 'right'])
def test_owners_are_the_samples_whose_hidden_states_an_image_changes(name, side):
    family, batch = build(name), mixed_batch(name, side)
    assert family.owners(batch).tolist() == [0, 0, 2]
    clean, canvases = hidden(family, batch), family.canvases(batch)
    for index, owner in enumerate([0, 0, 2]):
        others = [-canvas if place == index else canvas for place, canvas in enumerate(canvases)]
        moved = (hidden(family, family.with_canvases(batch, others)) - clean).abs().amax(dim=(1, 2)) > 1e-3
        assert moved.nonzero().flatten().tolist() == [owner]


@pytest.mark.parametrize('name', FAMILIES)
def test_padding_on_either_side_gives_the_same_hidden_states(name):
    family = build(name)
    left, right = mixed_batch(name, 'left'), mixed_batch(name, 'right')
    assert not torch.equal(left['attention_mask'], right['attention_mask'])
    real = [hidden(family, batch)[batch['attention_mask'] == 1] for batch in (left, right)]
    assert_close(*real)


@pytest.mark.parametrize('name', FAMILIES)
def test_head_of_hidden_is_what_the_library_computes(name):
    family, batch = build(name), mixed_batch(name)
    kwargs = {key: value for key, value in batch.items() if key not in ('labels', 'original_sizes')}
    with torch.no_grad():
        output = family.model(**kwargs, output_hidden_states=True)
    assert_close(hidden(family, batch), output.hidden_states[-1])
    assert_close(family.head(hidden(family, batch)), output.logits)


@pytest.mark.parametrize('name', tiny_vlms.FRAMES)
@pytest.mark.parametrize('side', ['left', 'right'])
def test_modality_of_families_with_framed_images(name, side):
    family, batch = build(name), mixed_batch(name, side)
    ids, expected = batch['input_ids'], torch.full_like(batch['input_ids'], TEXT)
    for token in tiny_vlms.FRAMES[name]:
        expected[ids == token_id(name, token)] = MARKER
    expected[ids == token_id(name, tiny_vlms.image_token(name))] = IMAGE
    expected[batch['attention_mask'] == 0] = PAD
    assert torch.equal(family.modality(batch), expected)
    assert (expected == MARKER).sum() == 6


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


@pytest.mark.parametrize('name', FAMILIES)
def test_a_batch_of_text_alone_has_no_canvases(name):
    family = build(name)
    batch = tiny_batch(name, [([], 'hello', ' you'), ([], 'a', 'b')])
    assert 'pixel_values' not in batch
    assert family.canvases(batch) == []
    assert family.owners(batch).tolist() == []
    assert family.with_canvases(batch, []).keys() == batch.keys()
    assert hidden(family, batch).shape[:2] == batch['input_ids'].shape
    assert set(family.modality(batch).unique().tolist()) == {PAD, TEXT}


@pytest.mark.parametrize('name', FAMILIES)
def test_images_that_truncation_cut_are_refused(name):
    family, batch = build(name), mixed_batch(name)
    images = (batch['input_ids'][0] == family.image_token_id).nonzero()[:, 0]
    batch['input_ids'][0, images[-1]] = family.image_token_id + 1
    with pytest.raises(ValueError, match='raise max_length'):
        family.owners(batch)


def test_internvl_asks_for_the_sizes_of_tiled_images():
    family, batch = build('internvl'), mixed_batch('internvl')
    del batch['original_sizes']
    with pytest.raises(ValueError, match=r'\[7, 4, 1\] tiles.*add original_sizes'):
        family.canvases(batch)
    single = one_image('internvl', 28, 28)
    del single['original_sizes']
    assert torch.equal(family.canvases(single)[0], single['pixel_values'][0])


@pytest.mark.parametrize('name', FAMILIES)
def test_canvases_of_another_shape_are_refused(name):
    family, batch = build(name), mixed_batch(name)
    with pytest.raises(ValueError, match='cannot replace'):
        family.with_canvases(batch, family.canvases(batch)[:2])
    with pytest.raises(ValueError, match='cannot replace'):
        family.with_canvases(batch, [canvas[:, 1:] for canvas in family.canvases(batch)])


def test_qwen_cannot_score_and_the_others_can():
    from mergemix_mm.models.vision_encoders import build_vision_encoder

    assert build('qwen2_5_vl').vision_encoder is None
    for name in ('internvl', 'smolvlm', 'janus'):
        assert build_vision_encoder(build(name).vision_encoder).image_size == (28, 28)


@pytest.mark.parametrize('name', FAMILIES)
def test_generation_starts_with_the_most_likely_token_behind_the_prompt(name):
    from mergemix_mm.models import HFVisionLanguageModel

    torch.manual_seed(0)
    vlm = HFVisionLanguageModel(config=tiny_config(name))
    vlm.eval()
    batch = {key: value for key, value in mixed_batch(name, 'left').items() if key != 'labels'}
    found = vlm.generate(batch, max_new_tokens=2, eos_token_id=[])
    with torch.no_grad():
        logps = vlm.head(vlm.hidden(batch)[:, -1]).log_softmax(dim=-1)
    assert torch.equal(found.sequences[:, 0], logps.argmax(dim=-1))
    assert (found.logps < logps.amax(dim=-1)).all()


def other_model(name, model_type, vision):
    """A model of another type behind a family's config."""
    import transformers

    torch.manual_seed(0)
    config = tiny_config(name) | dict(model_type=model_type)
    config['vision_config'] |= vision
    config = transformers.AutoConfig.for_model(**config)
    return find_family(model_type)(transformers.AutoModelForImageTextToText.from_config(config).eval())


@pytest.mark.parametrize(
    ('name', 'model_type', 'vision'),
    [
        ('smolvlm', 'idefics3', dict(model_type='idefics3_vision')),
        ('qwen2_5_vl', 'qwen2_vl', dict(embed_dim=16, hidden_size=16, mlp_ratio=2)),
    ],
)
def test_models_that_share_a_family(name, model_type, vision):
    family, batch = other_model(name, model_type, vision), mixed_batch(name)
    assert family.model.config.model_type == model_type
    canvases = [torch.randn_like(canvas) for canvas in family.canvases(batch)]
    changed = family.with_canvases(batch, canvases)
    assert all(torch.equal(*pair) for pair in zip(family.canvases(changed), canvases))
    with torch.no_grad():
        logits = family.model(**family.forward_kwargs(changed)).logits
    assert_close(family.head(hidden(family, changed)), logits)
    names = [name for names in family.parts.values() for name in names]
    assert all(family.model.get_submodule(name) is not None for name in names)
