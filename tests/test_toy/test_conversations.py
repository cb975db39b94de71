"""Tests of ShapesConversationDataset: the drawn scenes, their questions and the right answers."""

import re
from collections import Counter

import numpy as np
import pytest
from mmengine.registry import DATASETS

from mergemix_mm.toy import ShapesConversationDataset
from mergemix_mm.toy.drawing import PALETTE
from mergemix_mm.toy.scenes import ANSWERS, COLORS, COUNTS, SHAPES

KINDS = tuple(ANSWERS)


def _all(split='train', length=300, **kwargs):
    dataset = ShapesConversationDataset(split, length=length, **kwargs)
    return [dataset.get_data_info(index) for index in range(length)]


def _pixels(record):
    return np.asarray(record['images'][0])


def _question(record):
    return record['messages'][0]['content'][1]['text']


def _named(text, words):
    found = [word for word in words if re.search(rf'\b{word}\b', text)]
    return found[0] if found else None


def _answer_from_things(record):
    """Answer a question by its words, from the list of things alone."""
    text = _question(record)
    color, shape = _named(text, COLORS), _named(text, SHAPES)
    meant = [thing for thing in record['things'] if color in (None, thing['color']) and shape in (None, thing['shape'])]
    assert meant == [thing for thing in record['things'] if thing['asked']]
    if text.startswith('Is there'):
        return 'yes' if meant else 'no'
    if text.startswith('How many'):
        return COUNTS[len(meant) - 1]
    (thing,) = meant
    if text.endswith('on the left?'):
        return 'yes' if thing['cell'][1] == 0 else 'no'
    if text.startswith('Where'):
        return ('left', 'center', 'right')[thing['cell'][1]]
    return thing['color'] if text.startswith('What color') else thing['shape']


def _color_of(image, mask):
    """The colour of the palette nearest to the median of some pixels, whatever their brightness."""
    color = np.median(image[mask], axis=0)
    tones = np.array([PALETTE[name] for name in COLORS])
    cosine = tones @ color / np.linalg.norm(tones, axis=1) / np.linalg.norm(color)
    return COLORS[int(cosine.argmax())]


def _shape_of(mask):
    """The shape that a mask shows, from where its bounding box is filled."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = box.shape
    if not box[height // 2, width // 2]:
        return 'ring'
    if box.mean() > 0.95:
        return 'square'
    if box[-1].mean() > 0.8:
        return 'triangle'
    if box.mean() > 0.7:
        return 'circle'
    return 'diamond' if box[round(0.28 * height), round(0.28 * width)] else 'cross'


@pytest.mark.parametrize('split', ['train', 'val'])
def test_each_answer_is_the_only_right_one(split):
    records = _all(split, 500)
    assert {record['question_type'] for record in records} == set(KINDS)
    for record in records:
        assert record['gt_answer'] == _answer_from_things(record)
        assert record['messages'][1] == dict(role='assistant', content=[dict(type='text', text=record['gt_answer'])])


def test_colors_shapes_and_places_are_those_that_were_drawn():
    seen = Counter()
    for record in _all(length=300, image_size=96, questions=('color', 'shape', 'position')):
        mask, (thing,) = record['gt_mask'], [thing for thing in record['things'] if thing['asked']]
        middle = np.argwhere(mask).mean(0)
        assert tuple((middle // 32).astype(int)) == thing['cell']
        assert _color_of(_pixels(record), mask) == thing['color']
        assert _shape_of(mask) == thing['shape']
        seen.update([thing['color'], thing['shape']])
    assert set(seen) == {*COLORS, *SHAPES} and min(seen.values()) > 20


def test_mask_covers_all_things_that_are_counted_and_nothing_without_one():
    for record in _all(length=100, image_size=96, questions=('count', 'yesno')):
        cells = {tuple(cell) for cell in (np.argwhere(record['gt_mask']) // 32).tolist()}
        assert cells == {thing['cell'] for thing in record['things'] if thing['asked']}
        absent = record['gt_answer'] == 'no' and _question(record).startswith('Is there')
        assert record['gt_mask'].any() != absent


def test_no_two_things_share_a_cell():
    for record in _all(length=200):
        cells = [thing['cell'] for thing in record['things']]
        assert 2 <= len(cells) == len(set(cells)) <= 6


def test_no_combination_of_val_appears_in_train():
    pairs = {}
    for split in ('train', 'val'):
        records = _all(split, 400)
        pairs[split] = {(thing['color'], thing['shape']) for record in records for thing in record['things']}
        asked = {(_named(_question(record), COLORS), _named(_question(record), SHAPES)) for record in records}
        assert {pair for pair in asked if None not in pair} <= pairs[split]
    assert (len(pairs['train']), len(pairs['val'])) == (24, 12)
    assert not pairs['train'] & pairs['val']
    assert set(Counter(color for color, _ in pairs['val']).values()) == {2}
    assert set(Counter(shape for _, shape in pairs['val']).values()) == {2}


@pytest.mark.parametrize('split, prior', [('train', 0.8), ('val', 0.2)])
def test_first_answer_of_each_kind_has_the_share_that_is_asked_for(split, prior):
    length = 2000
    counts = Counter(
        (r['question_type'], r['gt_answer']) for r in _all(split, length, answer_prior=prior, image_size=24)
    )
    for kind, (first, *others) in ANSWERS.items():
        number = length / len(KINDS)
        assert counts[kind, first] == pytest.approx(number * prior, abs=4 * (number * prior * (1 - prior)) ** 0.5)
        for other in others:
            share = (1 - prior) / len(others)
            assert counts[kind, other] == pytest.approx(number * share, abs=4 * (number * share * (1 - share)) ** 0.5)


def test_answers_are_equally_frequent_without_a_prior():
    counts = Counter((r['question_type'], r['gt_answer']) for r in _all(length=2000, image_size=24))
    for kind, answers in ANSWERS.items():
        share = 1 / len(answers)
        for answer in answers:
            assert counts[kind, answer] == pytest.approx(400 * share, abs=4 * (400 * share * (1 - share)) ** 0.5)


def test_same_index_is_the_same_record_whatever_the_global_state():
    np.random.seed(1)
    one = _all(length=20)
    np.random.seed(2)
    for first, second in zip(one, _all(length=30), strict=False):
        np.testing.assert_array_equal(_pixels(first), _pixels(second))
        np.testing.assert_array_equal(first['gt_mask'], second['gt_mask'])
        assert first['messages'] == second['messages'] and first['source'] == second['source']


def test_seed_and_index_change_the_record():
    first, second, other = _all(length=2, questions=('color',)) + _all(length=1, questions=('color',), seed=1)
    assert (_pixels(first) != _pixels(second)).mean() > 0.5
    assert (_pixels(first) != _pixels(other)).mean() > 0.5


def test_background_holds_every_color_of_the_palette_by_chance():
    found = Counter()
    for record in _all(length=100, image_size=48):
        image, outside = _pixels(record).astype(float), ~record['gt_mask']
        for name, tone in PALETTE.items():
            if name not in {thing['color'] for thing in record['things']}:
                found[name] += bool((np.abs(image - np.array(tone) * 255).max(-1) < 4)[outside].any())
    assert set(found) == set(COLORS) and min(found.values()) > 10


def test_records_pass_through_the_pipeline_and_negative_indices_count_from_the_end():
    dataset = DATASETS.build(
        dict(type='ShapesConversationDataset', split='val', length=7, pipeline=[lambda record: record['source']])
    )
    assert len(dataset) == 7 and dataset.modalities.tolist() == [True] * 7
    assert dataset[3] == 'ShapesConversationDataset[3]' and dataset[-1] == 'ShapesConversationDataset[6]'
    with pytest.raises(IndexError, match=r'index 7'):
        dataset[7]


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(split='test'), r"split='test'"),
        (dict(length=0), r'length=0'),
        (dict(image_size=16), r'image_size=16'),
        (dict(answer_prior='0.8'), r"answer_prior='0\.8'"),
        (dict(answer_prior=float('nan')), r'answer_prior=nan'),
        (dict(seed=-1), r'seed=-1'),
        (dict(questions='color'), r"questions='color'"),
        (dict(questions=('size',)), r"questions=\('size',\)"),
        (dict(answer_prior=80), r'answer_prior=80'),
    ],
)
def test_bad_arguments_name_the_key_and_what_is_allowed(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ShapesConversationDataset(**kwargs)
