"""Every family: images come out of tiles and patches and go in again, and belong to the samples that show them."""

import re

import pytest
import tiny_vlms
import torch
from tiny_vlms import mixed_batch, model_of_type, one_image, random_image, tiny_batch, token_id
from tiny_vlms import tiny_family as build

from mergemix_mm.datasets import ConversationCollate
from mergemix_mm.families import Family, base
from mergemix_mm.families.llava import LlavaFamily
from mergemix_mm.models.vision_encoders import build_vision_encoder
from mergemix_mm.models.vlms import IMAGE, MARKER, PAD, TEXT

FAMILIES = tiny_vlms.FAMILIES
TILED = ('aya_vision', 'internvl', 'smolvlm')


def hidden(family, batch):
    with torch.no_grad():
        return family.base(**family.forward_kwargs(batch)).last_hidden_state


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
    sizes = tiny_vlms.sizes(name)
    batch = tiny_batch(name, [([random_image(*size, seed)], 'what?', ' that') for seed, size in enumerate(sizes)])
    canvases = family.canvases(batch)
    assert torch.equal(family.with_canvases(batch, canvases)['pixel_values'], batch['pixel_values'])
    halves = [canvas / 2 for canvas in canvases]
    assert all(torch.equal(*pair) for pair in zip(family.canvases(family.with_canvases(batch, halves)), halves))
    assert family.owners(batch).tolist() == list(range(len(sizes)))


@pytest.mark.parametrize('name', FAMILIES)
def test_canvases_are_checked_by_their_shapes_and_not_built_again(name, monkeypatch):
    family, batch = build(name), mixed_batch(name)
    given, read, canvases = family.canvases(batch), [], type(family).canvases
    monkeypatch.setattr(
        type(family), 'canvases', lambda self, of: read.append(of['pixel_values'].device.type) or canvases(self, of)
    )
    family.with_canvases(batch, given)
    assert read == ['meta']


@pytest.mark.parametrize('name', TILED)
def test_only_the_changed_image_gets_a_new_thumbnail(name):
    family, batch = build(name), mixed_batch(name)
    canvases = family.canvases(batch)
    pixels = family.with_canvases(batch, [canvases[0], -canvases[1], canvases[2]])['pixel_values']
    changed = (pixels != batch['pixel_values']).flatten(-3).any(dim=-1).flatten().nonzero().flatten().tolist()
    assert changed == [7, 8, 9, 10]  # After the seven views of the first image. The second has 3 x 1 tiles.


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


@pytest.mark.parametrize('name', tiny_vlms.ONE_RUN)
@pytest.mark.parametrize('side', ['left', 'right'])
def test_modality_of_images_in_one_run_and_their_frames(name, side):
    family, batch = build(name), mixed_batch(name, side)
    ids, expected = batch['input_ids'], torch.full_like(batch['input_ids'], TEXT)
    frame = tiny_vlms.FRAMES.get(name, ())
    for token in frame:
        expected[ids == token_id(name, token)] = MARKER
    expected[ids == token_id(name, tiny_vlms.feature_token(name))] = IMAGE
    expected[batch['attention_mask'] == 0] = PAD
    assert torch.equal(family.modality(batch), expected)
    assert (expected == MARKER).sum() == 3 * len(frame)


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


@pytest.mark.parametrize('name', tiny_vlms.ALL_FAMILIES)
@pytest.mark.parametrize('method', ['canvases', 'image_lengths', 'forward_kwargs', 'generate_kwargs'])
def test_pixels_of_another_shape_are_refused_wherever_they_are_read(name, method):
    family, batch = build(name), mixed_batch(name)
    pixels = batch['pixel_values']
    wrong = [pixels[None], pixels[0], list(pixels)]
    if 3 in family.pixel_shape:
        wrong.append(pixels.movedim(family.pixel_shape.index(3), -1))
    for value in wrong:
        found = 'a list' if isinstance(value, list) else re.escape(f'of shape {list(value.shape)}')
        with pytest.raises(ValueError, match=rf'^pixel_values are {found}; \w+Family reads a tensor of shape \[\w+, '):
            getattr(family, method)(batch | dict(pixel_values=value))


@pytest.mark.parametrize('name', FAMILIES)
def test_canvases_of_another_shape_are_refused(name):
    family, batch = build(name), mixed_batch(name)
    with pytest.raises(ValueError, match='cannot replace'):
        family.with_canvases(batch, family.canvases(batch)[:2])
    with pytest.raises(ValueError, match='cannot replace'):
        family.with_canvases(batch, [canvas[:, 1:] for canvas in family.canvases(batch)])


@pytest.mark.parametrize('name', FAMILIES)
def test_the_tower_is_scored_or_declared_unfit(name):
    encoder = build(name).vision_encoder
    assert (encoder is not None) == (name in tiny_vlms.SCORED)
    if encoder is not None:
        assert build_vision_encoder(encoder).image_size == tiny_vlms.SCORED_SIZE[name]


@pytest.mark.parametrize(('name', 'model_type'), tiny_vlms.SHARED)
def test_models_that_share_a_family(name, model_type):
    family, batch = model_of_type(name, model_type), mixed_batch(name)
    assert family.model.config.model_type == model_type
    canvases = [torch.randn_like(canvas) for canvas in family.canvases(batch)]
    changed = family.with_canvases(batch, canvases)
    assert all(torch.equal(*pair) for pair in zip(family.canvases(changed), canvases))
    with torch.no_grad():
        logits = family.model(**family.forward_kwargs(changed)).logits
    assert logits.std() > 0.1
    torch.testing.assert_close(family.head(hidden(family, changed)), logits, atol=1e-5, rtol=1e-5)
    names = [name for names in family.parts.values() for name in names]
    assert all(family.model.get_submodule(name) is not None for name in names)


@pytest.mark.parametrize('name', tiny_vlms.ALL_FAMILIES)
def test_the_planned_image_is_the_largest_that_the_processor_makes(name):
    (height, width), options = tiny_vlms.LARGEST_IMAGE[name]
    family, batch = build(name), one_image(name, height, width)
    image = family.largest_image(options)
    assert image.num_tokens == image.ids.count(family.image_token_id) == family.placeholders(batch).sum()
    assert image.shapes(1) == dict(pixel_values=tuple(batch['pixel_values'].shape))
    assert image.values == {key: batch[key][0].tolist() for key in image.values}
    needed = {'image_sizes', 'image_grid_thw'} & set(batch)
    assert needed <= set(image.values)


class OtherProcessor:
    """The processor of a family that is not of this package."""


def test_a_declared_family_is_read_by_models_and_datasets(monkeypatch):
    monkeypatch.setattr(base, 'FAMILIES', dict(base.FAMILIES))

    class OtherFamily(Family):
        model_types, processors = ('other',), ('OtherProcessor',)
        token_padding = Family.token_padding | dict(levels=7)

    assert base.find_family('other') is base.family_of(OtherProcessor()) is OtherFamily
    samples = [
        dict(
            inputs=dict(input_ids=ids, levels=ids, pad_token_id=0, original_sizes=torch.zeros(0, 2)), data_samples=None
        )
        for ids in (torch.tensor([1, 2, 3]), torch.tensor([4]))
    ]
    assert ConversationCollate()(samples)['inputs']['levels'].tolist() == [[1, 2, 3], [4, 7, 7]]


def test_any_callable_may_be_a_family(monkeypatch):
    monkeypatch.setitem(base.FAMILIES, 'by_hand', lambda model: LlavaFamily(model))
    assert base.find_family('by_hand')(build('llava').model).image_token_id == build('llava').image_token_id
    assert base.family_of(OtherProcessor()) is Family
    with pytest.raises(ValueError, match="'blip'.*'by_hand'"):
        base.find_family('blip')
