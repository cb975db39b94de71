"""LLaVA-OneVision: what it adds to LLaVA-NeXT. tests/tiny_vlms/llava_onevision.py brings the tests of all families."""

import numpy as np
import pytest
import tiny_vlms
import torch

from mergemix_mm.datasets import ConversationCollate, EncodeConversation, RecordError
from mergemix_mm.datasets.conversations.chat_template import find_chat_template
from mergemix_mm.models.vlms import IMAGE, MARKER, HFVisionLanguageModel

NAME = 'llava_onevision'
SIZES = [(40, 60), (90, 30), (28, 56), (84, 84), (100, 33), (31, 97), (10, 10), (201, 77), (84, 56), (70, 84)]
GRIDS = [[384 * rows, 384 * columns] for rows in range(1, 7) for columns in range(1, 7)]
PICTURE = dict(type='image')


def build(trainable=('language_model', 'projector'), **changes):
    torch.manual_seed(0)
    return HFVisionLanguageModel(config=tiny_vlms.tiny_config(NAME) | changes, trainable=trainable).eval()


def with_released_grids(**options):
    """36 grids of tiles with 27 x 27 patches; 14 pixels of a patch do not divide a tile of 384."""
    vision = tiny_vlms.tiny_config(NAME)['vision_config'] | dict(image_size=384)
    return build(vision_config=vision, image_grid_pinpoints=GRIDS, vision_aspect_ratio='anyres_max_9', **options).family


@pytest.fixture(scope='module')
def vlm():
    return build()


def pictures(*sizes):
    return [tiny_vlms.random_image(*size, seed) for seed, size in enumerate(sizes)]


def batch_of(images, texts, **options):
    """What the library's processor makes of texts, and of their images in lists or in a row."""
    given = dict(text=texts, images=images, padding=True, return_tensors='pt')
    return dict(tiny_vlms.tiny_processor(NAME)(**given, **options))


def singles(sizes=SIZES):
    return batch_of([[image] for image in pictures(*sizes)], ['<image>What is it?'] * len(sizes))


def several(side='right', nested=True):
    """Samples of two images, of one, of none and of three."""
    images = pictures((40, 60), (90, 30), (84, 84), (28, 28), (31, 97), (60, 20))
    groups = [images[:2], images[2:3], images[3:]]
    texts = ['<image> or <image>?', '<image>which?', 'none', '<image><image>and<image>']
    return batch_of(groups if nested else images, texts, padding_side=side)


def test_token_counts_are_those_of_the_processor_for_every_shape(vlm):
    batch = singles()
    counts = (batch['input_ids'] == vlm.model.config.image_token_id).sum(dim=1)
    assert torch.equal(vlm.family.image_lengths(batch), counts)
    # Nine tiles of 2 x 2 are scaled down to 4 x 4, with a new line in each row.
    assert counts[SIZES.index((84, 84))] == 4 + 4 * 5 and counts[SIZES.index((28, 56))] == 4 + 2 * 5
    assert len(set(counts.tolist())) > 4


def test_token_counts_of_the_released_grids():
    family, processor = with_released_grids(), tiny_vlms.tiny_processor(NAME)
    processor.image_processor.image_grid_pinpoints = GRIDS
    processor.num_image_tokens, processor.vision_aspect_ratio = 729, 'anyres_max_9'
    sizes = np.random.default_rng(0).integers(1, 3000, (300, 2)).tolist()
    found = [len(family._layout(*size)) for size in sizes]
    assert found == [processor._get_number_of_features(*size, 384, 384) for size in sizes]


@pytest.mark.parametrize('nested', [True, False], ids=['lists', 'row'])
@pytest.mark.parametrize('side', ['left', 'right'])
def test_states_logits_loss_and_gradients_are_the_librarys(side, nested):
    batch, found = several(side, nested), build()
    assert batch['batch_num_images'].tolist() == ([2, 1, 3] if nested else [1] * 6)
    labels = batch['input_ids'].masked_fill(batch['attention_mask'] == 0, -100)
    labels[labels == found.family.image_token_id] = -100
    expected = found.model(**batch, labels=labels, output_hidden_states=True)
    expected.loss.backward()
    wanted = {name: value.grad for name, value in found.model.named_parameters() if value.grad is not None}
    found.model.zero_grad()
    hidden = found.hidden(batch)
    logits = found.head(hidden)
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    loss.backward()
    assert logits.std() > 0.1
    torch.testing.assert_close(hidden, expected.hidden_states[-1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits, expected.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loss, expected.loss, atol=1e-5, rtol=1e-5)
    gradients = {name: value.grad for name, value in found.model.named_parameters() if value.grad is not None}
    assert gradients.keys() == wanted.keys() and wanted['model.image_newline'].abs().max() > 0
    for name, value in gradients.items():
        torch.testing.assert_close(value, wanted[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('nested', [True, False], ids=['lists', 'row'])
def test_answers_are_the_librarys(vlm, nested):
    batch = several('left', nested)
    options = dict(max_new_tokens=4, min_new_tokens=4)
    expected = vlm.model.generate(**batch, **options, do_sample=False)[:, batch['input_ids'].size(1) :]
    assert torch.equal(vlm.generate(batch, **options).sequences, expected)


def test_markers_are_where_the_library_puts_its_newline(vlm):
    for batch in (singles(), several(), several(nested=False)):
        given = {key: batch[key] for key in ('pixel_values', 'image_sizes', 'batch_num_images')}
        features = vlm.model.model.get_image_features(**given)
        features = getattr(features, 'pooler_output', features)  # Of transformers 5.
        newline = (torch.cat(list(features)) == vlm.model.model.image_newline).all(dim=-1)
        modality = vlm.modality(batch)[batch['input_ids'] == vlm.model.config.image_token_id]
        assert torch.equal(modality == MARKER, newline) and torch.equal(modality == IMAGE, ~newline)


def test_several_images_of_a_sample_are_read_whole_and_a_single_one_in_tiles(vlm):
    canvases, owners = vlm.canvases(several())
    assert owners.tolist() == [0, 0, 1, 3, 3, 3]
    assert [tuple(one.shape[1:]) for one in canvases] == [(28, 28)] * 2 + [(84, 84)] + [(28, 28)] * 3
    canvases, owners = vlm.canvases(several(nested=False))
    assert owners.tolist() == [0, 0, 1, 3, 3, 3]
    assert [tuple(one.shape[1:]) for one in canvases][:2] == [(56, 84), (84, 28)]


def test_an_image_that_is_read_whole_has_no_thumbnail(vlm):
    batch = several()
    canvases = vlm.family.canvases(batch)
    pixels = vlm.with_canvases(batch, [-canvases[0], *canvases[1:]])['pixel_values']
    assert torch.equal(pixels[0, 0], -canvases[0]) and not pixels[0, 1:].any()
    assert torch.equal(pixels[1:], batch['pixel_values'][1:])


@pytest.mark.parametrize('size', SIZES, ids=str)
def test_tiles_are_exact_and_the_thumbnail_is_that_of_the_new_image(vlm, size):
    """Another image of the same size in place of this one: what the processor would have made of it."""
    batch, other = singles([size]), singles([(9, 9), size])
    other = {key: other[key][1:] for key in ('pixel_values', 'image_sizes', 'batch_num_images')}
    (canvas,) = vlm.family.canvases({**batch, **other})
    rebuilt = vlm.with_canvases(batch, [canvas])['pixel_values'][0]
    expected = other['pixel_values'][0, : len(rebuilt)]
    assert torch.equal(rebuilt[1:], expected[1:])
    # The thumbnail comes from the resized canvas instead of the file: resampling twice, of values in [-1.8, 2.2].
    error = (rebuilt[0] - expected[0]).abs()
    assert error.mean() < 0.06 and error.max() < 0.6
    assert (batch['pixel_values'][0, 0] - expected[0]).abs().mean() > 0.3


def turn(role, *parts):
    return dict(role=role, content=[part if part is PICTURE else dict(type='text', text=part) for part in parts])


def talk(*numbers):
    """A conversation whose turns show these numbers of images, of unlike sizes."""
    sizes = [(28, 28), (40, 60), (84, 84)][: sum(numbers)]
    turns = [(turn('user', *[PICTURE] * number, 'Q'), turn('assistant', 'Yes')) for number in numbers]
    return dict(messages=[one for both in turns for one in both], images=pictures(*sizes))


# As released: answers are marked, and what ends them is not.
RELEASED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% for c in m.content if c.type == 'image' %}"
    "{{ '<image>\n' }}{% endfor %}{% for c in m.content if c.type == 'text' %}{% if m.role == 'assistant' %}"
    "{% generation %}{{ c.text }}{% endgeneration %}{% else %}{{ c.text }}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_the_released_template_has_its_twin_here():
    processor = tiny_vlms.tiny_processor(NAME)
    own = find_chat_template(processor)
    processor.chat_template = RELEASED
    assert find_chat_template(processor).name == own.name == NAME
    for record in (talk(1), talk(1, 0), talk(2, 0), talk(0)):
        assert processor.apply_chat_template(record['messages']) == own.render(record['messages'])[0]


def test_a_collated_batch_is_that_of_the_processor():
    encode = EncodeConversation(tiny_vlms.tiny_processor(NAME))
    records = [talk(1, 1), talk(1), talk(0), talk(2, 1)]
    found = ConversationCollate()([encode(one) for one in records])['inputs']
    texts = [encode.template.render(one['messages'])[0] for one in records]
    expected = batch_of([one['images'] for one in records if one['images']], texts, padding_side='right')
    assert found['batch_num_images'].tolist() == [2, 1, 3]
    for key, value in expected.items():
        assert torch.equal(found[key], value), key
    vlm = build()
    assert vlm.family.owners(found).tolist() == [0, 0, 1, 3, 3, 3]


def test_an_image_that_truncation_leaves_alone_gets_its_tiles():
    record = talk(1, 1, 1)
    encode = EncodeConversation(tiny_vlms.tiny_processor(NAME))
    whole = encode(record)['inputs']
    family, shown = build().family, set()
    for max_length in range(1, len(whole['input_ids']) + 1):
        encode.max_length = max_length
        try:
            inputs = encode(record)['inputs']
        except RecordError as error:
            assert 'all answers are cut off' in str(error)
            continue
        number = len(inputs['original_sizes'])
        shown.add(number)
        assert len(inputs['input_ids']) <= max_length
        batch = {key: value[None] if key == 'input_ids' else value for key, value in inputs.items()}
        assert inputs['batch_num_images'].tolist() == [number]
        assert family.owners(batch).tolist() == [0] * number
        assert inputs['pixel_values'].shape[:2] == ((1, 2) if number == 1 else (number, 1))
        if number > 1:
            assert torch.equal(inputs['input_ids'], whole['input_ids'][: len(inputs['input_ids'])])
    assert shown == {1, 2, 3}


def test_no_image_takes_more_tokens_than_the_planned_one():
    """It has 98 rows of 81 tokens of 4 x 3 tiles, which are just few enough not to be scaled down to 6561."""
    family = with_released_grids()
    image = family.largest_image({})
    assert image.num_tokens == 729 + 98 * 82 and image.shapes(2)['pixel_values'] == (2, 13, 3, 384, 384)
    sizes = np.random.default_rng(0).integers(1, 3000, (300, 2)).tolist()
    assert max(len(family._layout(*size)) for size in sizes) <= image.num_tokens
    # Tokens of the tower count as well where it keeps them for the backward.
    image = with_released_grids(trainable=['vision_tower', 'language_model']).largest_image({})
    assert image.num_tokens < 729 + 98 * 82 and image.shapes(2)['pixel_values'] == (2, 37, 3, 384, 384)


@pytest.mark.parametrize('key, value', [('vision_aspect_ratio', 'pad'), ('vision_feature_select_strategy', 'default')])
def test_settings_that_the_library_cannot_run_are_refused(key, value):
    with pytest.raises(ValueError, match=f"{key}='{value}'.*allowed is '"):
        build(**{key: value})


def test_counts_of_images_that_do_not_fit_are_refused(vlm):
    batch = several() | dict(batch_num_images=torch.tensor([2, 1]))
    with pytest.raises(ValueError, match=r'batch_num_images=\[2, 1\] counts 3 images, and pixel_values hold 6'):
        vlm.hidden(vlm.with_canvases(batch, vlm.family.canvases(batch)))


def test_videos_are_refused(vlm):
    clip = np.zeros((2, 28, 28, 3), dtype=np.uint8)
    batch = dict(tiny_vlms.tiny_processor(NAME)(text=['<video>?'], videos=[clip], return_tensors='pt'))
    for run in (vlm.hidden, vlm.generate):
        with pytest.raises(ValueError, match='pixel_values_videos: videos are not supported'):
            run(batch)
