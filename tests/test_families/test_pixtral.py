"""Pixtral, and what Mistral 3 shares with it: packed images of several sizes. tests/tiny_vlms has both."""

import math
import sys

import pytest
import tiny_vlms
import torch
from torch import nn

from mergemix_mm.datasets import EncodeConversation
from mergemix_mm.datasets.conversations.chat_template import find_chat_template
from mergemix_mm.families import build_family
from mergemix_mm.families.base import family_of
from mergemix_mm.families.llava import LlavaFamily
from mergemix_mm.families.mistral3 import Mistral3Family
from mergemix_mm.families.pixtral import PixtralFamily, has_table
from mergemix_mm.models import HFVisionLanguageModel
from mergemix_mm.models.vision_encoders import build_vision_encoder, run_layers, score_patches
from mergemix_mm.models.vlms import IMAGE, MARKER, PAD, TEXT

CLASSES = dict(pixtral=PixtralFamily, mistral3=Mistral3Family)
both = pytest.mark.parametrize('name', CLASSES)


def make(name, **options):
    torch.manual_seed(0)
    parts = ['vision_tower', 'projector', 'language_model']
    return HFVisionLanguageModel(config=tiny_vlms.tiny_config(name), trainable=parts, **options).train()


def gradients(vlm, loss):
    vlm.zero_grad()
    loss.backward()
    return {name: value.grad.clone() for name, value in vlm.model.named_parameters() if value.grad is not None}


@both
@pytest.mark.parametrize('side', ['left', 'right'])
@pytest.mark.parametrize('checkpointing', [False, True], ids=['stored', 'checkpointing'])
def test_hidden_states_logits_loss_and_gradients_are_the_librarys(name, side, checkpointing):
    vlm = make(name, gradient_checkpointing=checkpointing)
    batch = tiny_vlms.mixed_batch(name, side)
    given = {key: value for key, value in batch.items() if key not in ('labels', 'original_sizes')}
    expected = vlm.model(**given, labels=batch['labels'])
    states = vlm.model.model(**given).last_hidden_state
    hidden = vlm.hidden(batch)
    logits = vlm.head(hidden)
    real = batch['attention_mask'].bool()
    torch.testing.assert_close(hidden[real], states[real], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits[real], expected.logits[real], atol=1e-5, rtol=1e-5)
    labels = batch['labels'][:, 1:]
    loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten())
    torch.testing.assert_close(loss, expected.loss, atol=1e-5, rtol=1e-5)
    wanted, found = gradients(vlm, expected.loss), gradients(vlm, loss)
    # A last norm of the tower does not exist; all its other parts train.
    assert sum('vision_tower' in key for key in found) == len([*vlm.family.vision_tower.parameters()])
    assert found.keys() == wanted.keys() and all(value.abs().max() > 0 for value in found.values())
    for key, value in found.items():
        torch.testing.assert_close(value, wanted[key], atol=1e-5, rtol=1e-4)


@both
def test_a_canvas_is_the_image_without_padding_and_goes_in_with_zeros_around_it(name):
    family, batch = tiny_vlms.tiny_family(name), tiny_vlms.mixed_batch(name)
    canvases, sizes = family.canvases(batch), batch['image_sizes'].tolist()
    assert [list(canvas.shape[1:]) for canvas in canvases] == sizes and len({*map(tuple, sizes)}) == 3
    # The padding of a batch is larger than any of its images after samples of other batches were left out.
    batch['pixel_values'] = nn.functional.pad(batch['pixel_values'], (0, 7, 0, 14))
    pixels = family.with_canvases(batch, [torch.ones_like(canvas) for canvas in canvases])['pixel_values']
    assert pixels.shape == batch['pixel_values'].shape
    assert pixels.sum(dim=(1, 2, 3)).tolist() == [3 * height * width for height, width in sizes]


def image_features(family, pixels, sizes):
    """What the language model reads of each image."""
    with torch.no_grad():
        found = family.base.get_image_features(pixel_values=pixels, image_sizes=sizes)
    return getattr(found, 'pooler_output', found)  # In transformers 5, under a name.


@both
def test_packed_images_never_see_each_other(name):
    family, batch = tiny_vlms.tiny_family(name), tiny_vlms.mixed_batch(name)
    pixels, sizes = batch['pixel_values'], batch['image_sizes']
    packed = image_features(family, pixels, sizes)
    assert [len(one) for one in packed] == family.image_lengths(batch).tolist()
    for index, (expected, canvas) in enumerate(zip(packed, family.canvases(batch), strict=True)):
        (alone,) = image_features(family, canvas[None], sizes[index : index + 1])
        torch.testing.assert_close(alone, expected, atol=1e-5, rtol=1e-5)
    others = torch.cat([pixels[:1], -pixels[1:]])
    changed = image_features(family, others, sizes)
    assert torch.equal(changed[0], packed[0]) and not torch.allclose(changed[1], packed[1], atol=1e-2)


@both
@pytest.mark.parametrize('side', ['left', 'right'])
def test_the_token_after_each_row_of_an_image_is_a_marker(name, side):
    family, batch = tiny_vlms.tiny_family(name), tiny_vlms.mixed_batch(name, side)
    found, tokenizer = family.modality(batch), tiny_vlms.tiny_processor(name).tokenizer
    texts = [
        [tokenizer.decode(ids[kinds == kind]) for kind in (MARKER, TEXT)]
        for ids, kinds in zip(batch['input_ids'], found, strict=True)
    ]
    rows = [height // family.token_side for height, _ in batch['image_sizes'].tolist()]
    ends = ['[IMG_BREAK]' * (number - 1) + '[IMG_END]' for number in rows]
    assert texts == [
        [ends[0] + ends[1], '<s>which? both'],
        ['', '<s>hello you'],
        [ends[2], '<s>and this? no'],
        ['', '<s>ab'],
    ]
    lengths = family.image_lengths(batch).tolist()
    assert (found == IMAGE).sum(dim=1).tolist() == [lengths[0] + lengths[1], 0, lengths[2], 0]
    assert torch.equal(found == PAD, batch['attention_mask'] == 0)


@both
def test_the_family_follows_from_the_tower_and_from_the_tokenizer(name):
    assert type(tiny_vlms.tiny_family(name)) is family_of(tiny_vlms.tiny_processor(name)) is CLASSES[name]
    plain = tiny_vlms.tiny_family('llava')
    assert plain.model.config.model_type == tiny_vlms.tiny_family('pixtral').model.config.model_type == 'llava'
    assert type(plain) is LlavaFamily and family_of(tiny_vlms.tiny_processor('llava')) is LlavaFamily


def test_a_class_token_that_the_tower_does_not_have_is_not_cut_off():
    config = tiny_vlms.tiny_config('pixtral') | dict(vision_feature_select_strategy='default')
    with pytest.raises(ValueError, match="^vision_feature_select_strategy='default' must be 'full'"):
        HFVisionLanguageModel(config=config)


@both
def test_merging_in_the_tower_is_refused(name):
    with pytest.raises(ValueError, match="model_type='.*vision_config.model_type='pixtral'.*remove vision_merge"):
        make(name, vision_merge=dict(num_merge=2))


@both
def test_images_beyond_the_positions_of_the_tower_are_refused_where_it_looks_them_up(name):
    vlm = make(name).eval()
    processor = tiny_vlms.tiny_processor(name)
    processor.image_processor.size = dict(longest_edge=84)
    images = [tiny_vlms.random_image(28, 84, 0)]
    batch = dict(processor(text=['[IMG]what?'], images=images, return_tensors='pt'))
    if has_table(vlm.family.vision_tower):  # transformers 4 would give the patches positions of the next row.
        for run in (vlm.hidden, vlm.generate):
            with pytest.raises(ValueError, match=r'28 x 84 pixels is larger than .*image_size=\d\d.*longest_edge'):
                run(batch)
    else:
        with torch.no_grad():
            expected = vlm.model.model(**batch).last_hidden_state
            torch.testing.assert_close(vlm.hidden(batch), expected, atol=1e-5, rtol=1e-5)


@both
@pytest.mark.parametrize('size', [dict(longest_edge=30), dict(height=28, width=50), None], ids=str)
def test_a_planned_image_is_the_largest_of_the_processors_size(name, size):
    family, processor = tiny_vlms.tiny_family(name), tiny_vlms.tiny_processor(name)
    processor.image_processor.size = size or dict(longest_edge=family.model.config.vision_config.image_size)
    image = family.largest_image(dict(size=size) if size else {})
    height, width = image.values['image_sizes']
    shown = tiny_vlms.random_image(10 * height, 10 * width, 0)
    found = processor(text=['[IMG]'], images=[shown], return_tensors='pt', add_special_tokens=False)
    assert found['image_sizes'].tolist() == [[height, width]]
    assert image.shapes(1) == dict(pixel_values=tuple(found['pixel_values'].shape))
    places = [token == family.image_token_id for token in image.ids]
    assert places == (found['input_ids'][0] == family.image_token_id).tolist()


@both
@pytest.mark.parametrize('kind', ['PixtralImageProcessor', 'PixtralImageProcessorFast', 'PixtralImageProcessorPil'])
@pytest.mark.parametrize('size', [(3, 40), (40, 3), (3, 7), (100, 30)], ids=str)
def test_every_image_processor_gives_the_tokens_of_its_sizes(name, kind, size):
    import transformers

    if not hasattr(transformers, kind):
        pytest.skip(f'transformers {transformers.__version__} does not have it')
    family, processor = tiny_vlms.tiny_family(name), tiny_vlms.tiny_processor(name)
    options = dict(size=dict(processor.image_processor.size), patch_size=dict(height=7, width=7))
    processor.image_processor = getattr(transformers, kind)(**options)
    question = [dict(type='image'), dict(type='text', text='Q')]
    messages = [dict(role='user', content=question), dict(role='assistant', content=[dict(type='text', text='A')])]
    record = dict(messages=messages, images=[tiny_vlms.random_image(*size, 0)])
    inputs = EncodeConversation(processor).transform(record)['inputs']
    batch = {key: value[None] if value.dim() == 1 else value for key, value in inputs.items() if key != 'pad_token_id'}
    (canvas,) = family.canvases(batch)
    side = family.token_side
    scale = min(1, options['size']['longest_edge'] / max(size))
    rows, columns = (math.ceil(int(length * scale) / side) for length in size)
    assert tuple(canvas.shape) == (3, rows * side, columns * side)
    assert family.placeholders(batch).sum() == family.image_lengths(batch).sum() == rows * columns


UNMARKED = (
    "{%- if messages[0].role == 'system' %}{% set system = messages[0].content[0].text %}"
    "{% set messages = messages[1:] %}{% endif %}{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}"
    "{{ '[INST]' }}{% if loop.last and system is defined %}{{ system + '\n\n' }}{% endif %}"
    "{% for c in m.content %}{{ '[IMG]' if c.type == 'image' else c.text }}{% endfor %}{{ '[/INST]' }}"
    '{% else %}{{ m.content[0].text + eos_token }}{% endif %}{% endfor %}'
)


@both
def test_a_released_template_is_written_by_that_of_the_family(name):
    processor = tiny_vlms.tiny_processor(name)
    processor.chat_template = UNMARKED
    assert find_chat_template(processor).name == name
    processor.chat_template = UNMARKED.replace('{{ bos_token }}', "{{ bos_token + '[SYSTEM_PROMPT]It is Monday.' }}")
    with pytest.raises(
        ValueError, match="writes a prompt unlike any here.*It is Monday.*Give chat_template=: .*'mistral3'"
    ):
        find_chat_template(processor)
    assert find_chat_template(processor, name).name == name


# Rows and columns of patches.
SIZES = [(2, 2), (4, 6), (6, 4), (2, 6), (4, 6)]


@pytest.fixture(scope='module')
def tower():
    """A tower of four layers, with heads of 16 channels."""
    config = tiny_vlms.tiny_config('pixtral')
    config['vision_config'] |= dict(hidden_size=32, num_hidden_layers=4)
    torch.manual_seed(0)
    found = build_family(HFVisionLanguageModel(config=config).model).vision_tower.eval()
    for parameter in found.parameters():
        nn.init.normal_(parameter, std=0.4)
    return found


def draw():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, 7 * rows, 7 * columns, generator=generator) for rows, columns in SIZES]


@torch.no_grad()
def run_library(tower, images):
    """The tower's own forward of all images, packed."""
    sizes = torch.tensor([image.shape[1:] for image in images])
    height, width = sizes.amax(0).tolist()
    pixels = [nn.functional.pad(image, (0, width - image.size(2), 0, height - image.size(1))) for image in images]
    return tower(torch.stack(pixels), image_sizes=sizes).last_hidden_state[0]


def test_tokens_after_all_layers_are_the_librarys(tower):
    images = draw()
    encoder = build_vision_encoder(tower)
    lengths = [rows * columns for rows, columns in SIZES]
    for image, expected, size in zip(images, run_library(tower, images).split(lengths), SIZES, strict=True):
        with torch.no_grad():
            x, grid = encoder.embed(torch.stack([torch.zeros_like(image), image]))
            for x, _ in run_layers(encoder.layers, x, [0] * len(encoder.layers), 0):
                pass
        assert grid == size and expected.std() > 0.5
        torch.testing.assert_close(encoder.finish(x)[1], expected, atol=1e-5, rtol=1e-5)


def test_saliency_is_the_attention_received_in_the_librarys_eager_attention(tower, monkeypatch):
    modeling, images, maps = sys.modules[type(tower).__module__], draw(), []
    eager = modeling.eager_attention_forward

    def record(*args, **kwargs):
        output, weights = eager(*args, **kwargs)
        maps.append(weights)
        return output, weights

    monkeypatch.setattr(modeling, 'eager_attention_forward', record)
    tower.set_attn_implementation('eager')
    run_library(tower, images)
    tower.set_attn_implementation('sdpa')
    assert len(maps) == 4
    lengths = [rows * columns for rows, columns in SIZES]
    for layer, weights in enumerate(maps, start=1):
        # The map of a packed batch has one block per image, and nothing beside the blocks.
        blocks = torch.block_diag(*[torch.ones(length, length) for length in lengths]).bool()
        assert weights[0][:, ~blocks].abs().max() == 0
        for image, own in zip(images, weights[0].mean(dim=0).sum(dim=0).split(lengths), strict=True):
            with torch.no_grad():
                saliency = score_patches(build_vision_encoder(tower), image[None], 0, layer).saliency[0]
            torch.testing.assert_close(saliency, own / len(own), atol=1e-5, rtol=1e-5)
            assert own.std() > 0.02


def test_scores_of_a_batch_are_those_of_its_images_one_by_one(tower):
    images = [image for image in draw() if image.shape[1:] == (28, 42)]
    with torch.no_grad():
        together = score_patches(build_vision_encoder(tower), torch.stack(images), 0)
        for image, expected in zip(images, together.saliency, strict=True):
            alone = score_patches(build_vision_encoder(tower), image[None], 0)
            torch.testing.assert_close(alone.saliency[0], expected, atol=1e-6, rtol=1e-5)
    assert len(images) == 2 and together.grid == (4, 6)
    assert (together.saliency[0] - together.saliency[1]).abs().max() > 1e-3
