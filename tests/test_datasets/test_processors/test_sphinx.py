"""The processor of SPHINX: canvases, placeholders of views, and its files."""

import math

import numpy as np
import pytest
import tiny_sphinx
import tiny_vlms
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mergemix_mm.datasets import EncodeConversation, SphinxProcessor
from mergemix_mm.datasets.conversations.chat_template import read_template
from mergemix_mm.functional import real_views

VIEW = 5


@pytest.fixture
def plain_tokenizer():
    """One that knows no image tokens."""
    return tiny_sphinx.tokenizer()


def make(plain_tokenizer, **kwargs):
    return SphinxProcessor(plain_tokenizer, **dict(dict(view_tokens=VIEW, image_size=28, grid=2), **kwargs))


def test_the_four_tokens_follow_the_vocabulary(plain_tokenizer):
    length = len(plain_tokenizer)
    processor = make(plain_tokenizer)
    assert processor.image_token_id == length
    tokens = ['<image>', '<image_start>', '<image_end>', '<image_skip>']
    assert processor.tokenizer.convert_tokens_to_ids(tokens) == list(range(length, length + 4))


def test_a_tokenizer_that_knows_some_of_the_tokens_is_refused():
    with pytest.raises(ValueError, match=r"'<image>'"):
        SphinxProcessor(tiny_vlms.tiny_tokenizer('llava'), view_tokens=VIEW)


def test_every_view_of_a_square_image_has_its_tokens_between_markers(plain_tokenizer):
    processor = make(plain_tokenizer, crop_tokens=2)
    image, start, end = (processor.image_token_id + offset for offset in range(3))
    whole, crop = [start, *[image] * VIEW, end], [start, image, image, end]
    assert processor.tokens_of(40, 40) == whole + 4 * crop


@pytest.mark.parametrize('align', ['center', 'corner'])
def test_a_crop_of_padding_alone_is_one_token(plain_tokenizer, align):
    processor = make(plain_tokenizer, grid=3, align=align)
    skip = processor.image_token_id + 3
    ids = processor.tokens_of(10, 30)
    real = real_views(torch.tensor([[10, 30]]), 3, align)[0]
    # A third of the square: the row in the middle, or the first.
    assert real.view(-1).tolist()[1:] == [row == (1 if align == 'center' else 0) for row in range(3) for _ in range(3)]
    assert ids.count(skip) == 6 and len(ids) == 4 * (VIEW + 2) + 6


def test_texts_hold_the_tokens_of_their_images_in_order_and_are_padded(plain_tokenizer):
    processor = make(plain_tokenizer)
    images = [Image.new('RGB', size) for size in ((20, 20), (20, 5))]
    batch = processor(text=['a<image>b', '<image>'], images=images)
    assert batch['pixel_values'].shape == (2, 3, 28, 28)
    assert batch['original_sizes'].tolist() == [[20, 20], [5, 20]]
    a, b = plain_tokenizer('ab', add_special_tokens=False)['input_ids']
    first, second = batch['input_ids'].tolist()
    assert first == [a, *processor.tokens_of(20, 20), b]
    assert batch['attention_mask'].sum(1).tolist() == [len(first), len(processor.tokens_of(5, 20))]
    assert second[: len(processor.tokens_of(5, 20))] == processor.tokens_of(5, 20)
    left = processor(text=['a<image>b', '<image>'], images=images, padding_side='left')
    assert left['attention_mask'][1, 0] == 0 and left['attention_mask'][1, -1] == 1


def test_placeholders_and_images_must_be_equally_many(plain_tokenizer):
    with pytest.raises(ValueError, match='hold 1 times <image> for 0 images'):
        make(plain_tokenizer)(text=['<image>'])


@pytest.mark.parametrize('align', ['center', 'corner'])
def test_padding_is_zero_and_lies_where_real_views_say(plain_tokenizer, align):
    processor = make(plain_tokenizer, align=align)
    pixels = processor.pixels_of(Image.new('RGB', (40, 20), (255, 255, 255)))
    first, last = (7, 21) if align == 'center' else (0, 14)
    white = (1 - torch.tensor(processor.image_mean)) / torch.tensor(processor.image_std)
    # But for the rows at the edge, which resizing blends.
    inside = pixels[:, first + 3 * (first > 0) : last - 3]
    assert torch.allclose(inside, white.view(3, 1, 1).expand_as(inside))
    padding = torch.ones(28, dtype=torch.bool)
    padding[max(first - 3, 0) : last + 3] = False
    # The mean colour, rounded to a byte.
    assert pixels[:, padding].abs().max() < 0.5 / 255 / min(processor.image_std) + 1e-6


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 60), st.integers(1, 60), st.sampled_from(['center', 'corner']), st.sampled_from([2, 3]))
def test_views_that_are_left_out_hold_no_pixel_of_the_image(height, width, align, grid):
    processor = make(tiny_sphinx.tokenizer(), image_size=12 * grid, grid=grid, align=align, image_mean=[0] * 3)
    pixels = processor.pixels_of(Image.new('RGB', (width, height), (255, 255, 255)))
    crops = pixels[0].unflatten(1, (grid, 12)).unflatten(0, (grid, 12)).transpose(1, 2).flatten(0, 1)
    ids = torch.tensor(processor.tokens_of(height, width))
    marks = ids[(ids == processor.image_token_id + 1) | (ids == processor.image_token_id + 3)]
    skipped = (marks == processor.image_token_id + 3)[1:]
    # Resizing reaches over the edge of a crop by two pixels: of those that it makes, or of the image if it is smaller.
    edge = math.ceil(2 * max(1, 12 * grid / max(height, width)))
    assert crops[skipped][:, edge : 12 - edge, edge : 12 - edge].abs().sum() == 0


def test_images_keep_their_aspect_ratio(plain_tokenizer):
    image = np.zeros((20, 40, 3), np.uint8)
    image[:, :20] = 255
    pixels = make(plain_tokenizer).pixels_of(Image.fromarray(image))[0, 10:18]
    assert pixels[:, :12].min() > 1 and pixels[:, 16:].max() < -1


def test_saved_and_read_it_is_the_same(plain_tokenizer, tmp_path):
    processor = make(plain_tokenizer, crop_tokens=2, align='corner', image_mean=(0.5, 0.4, 0.3))
    processor.save_pretrained(tmp_path)
    again = SphinxProcessor.from_pretrained(tmp_path)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 30, 3), dtype=np.uint8))
    first, second = (one(text=['x<image>'], images=[image]) for one in (processor, again))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    assert again.chat_template == processor.chat_template
    with pytest.raises(OSError, match='sphinx_processor.json'):
        SphinxProcessor.from_pretrained(tmp_path / 'none')


def test_the_chat_template_is_one_of_the_repository_or_a_text(plain_tokenizer, tmp_path):
    assert make(plain_tokenizer).chat_template == read_template('llava')
    named = make(plain_tokenizer, chat_template='question_first')
    assert named.chat_template == read_template('question_first') != read_template('llava')
    named.save_pretrained(tmp_path)
    assert SphinxProcessor.from_pretrained(tmp_path).chat_template == named.chat_template
    assert make(plain_tokenizer, chat_template='{{ messages }}').chat_template == '{{ messages }}'
    with pytest.raises(ValueError, match=r"chat_template='lava'.*'emu3'"):
        make(plain_tokenizer, chat_template='lava')
    with pytest.raises(ValueError, match='chat_template=.7.'):
        make(plain_tokenizer, chat_template=7)


def test_conversations_are_encoded_with_labels_on_the_answer(plain_tokenizer):
    encode = EncodeConversation(make(plain_tokenizer))
    image = Image.new('RGB', (30, 10))
    messages = [
        dict(role='user', content=[dict(type='image'), dict(type='text', text='what?')]),
        dict(role='assistant', content=[dict(type='text', text='a cat')]),
    ]
    inputs = encode(dict(messages=messages, images=[image]))['inputs']
    labelled = inputs['labels'][inputs['labels'] != -100]
    assert plain_tokenizer.decode(labelled) == ' a cat</s>'
    assert inputs['original_sizes'].tolist() == [[10, 30]]
    ids = inputs['input_ids'].tolist()
    wanted = encode.processor.tokens_of(10, 30)
    assert any(ids[i : i + len(wanted)] == wanted for i in range(len(ids)))


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(align='left'), "align='left'"),
        (dict(grid=0), 'grid=0'),
        (dict(view_tokens=True), 'view_tokens=True'),
        (dict(image_size=28.0), r'image_size=28\.0'),
        (dict(crop_tokens=-1), 'crop_tokens=-1'),
        (dict(image_mean=(0.5, float('nan'), 0.5)), r'image_mean=\(0.5, nan, 0.5\)'),
        (dict(image_mean=(0.5,)), r'image_mean=\(0.5,\)'),
        (dict(image_mean=0.5), 'image_mean=0.5'),
        (dict(image_std=(0.5, 0.5, 0)), r'image_std=\(0.5, 0.5, 0\) .*std > 0'),
    ],
)
def test_bad_arguments_are_named(plain_tokenizer, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(plain_tokenizer, **arguments)
