"""Tests of ShapesTaskDataset: boxes against pixels, words against things, and records against the task transforms."""

from collections import Counter

import numpy as np
import pytest
from mmengine.registry import DATASETS

from mergemix_mm.toy import ShapesConversationDataset, ShapesTaskDataset
from mergemix_mm.toy.drawing import PALETTE
from mergemix_mm.toy.scenes import ANSWERS, COLORS, SHAPES, shapes_facts, split_pairs
from mergemix_mm.toy.tasks import TASKS

# The task of short answers is about any question.
TRANSFORMS_OF = {task: f'{task.title().replace("_", "")}Task' for task in TASKS} | dict(vqa='ShortAnswerTask')


def _all(task, split='train', length=100, **kwargs):
    dataset = ShapesTaskDataset(task, split, length=length, **kwargs)
    return [dataset.get_data_info(index) for index in range(length)]


def _words(thing):
    return f'{thing["color"]} {thing["shape"]}'


def _asked(record):
    (thing,) = (thing for thing in record['things'] if thing['asked'])
    return thing


@pytest.mark.parametrize('task', ['vqa', 'grounding', 'classification'])
def test_boxes_are_tight_around_pixels_of_the_color(task):
    for record in _all(task, length=10, image_size=192):
        pixels = np.asarray(record['images'][0]) / 255
        for thing in record['things']:
            tone = np.array(PALETTE[thing['color']])
            cosine = pixels @ tone / np.linalg.norm(pixels, axis=-1) / np.linalg.norm(tone)
            x1, y1, x2, y2 = thing['box']
            near = np.zeros((192, 192), dtype=bool)
            near[max(y1 - 2, 0) : y2 + 2, max(x1 - 2, 0) : x2 + 2] = True
            drawn = near & (cosine > 0.99) & (pixels.max(-1) > 0.7 * tone.max())
            rows, columns = (np.flatnonzero(drawn.any(axis)) for axis in (1, 0))
            found = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
            # Pixels that are covered in part have a mixed colour.
            assert np.abs(np.subtract(found, thing['box'])).max() <= 2
            assert ((y1 + y2) // 2 // 64, (x1 + x2) // 2 // 64) == thing['cell']


def test_things_come_in_reading_order_and_do_not_overlap():
    for record in _all('caption'):
        cells = [thing['cell'] for thing in record['things']]
        assert cells == sorted(set(cells))
        covered = np.zeros((48, 48), dtype=int)
        for x1, y1, x2, y2 in (thing['box'] for thing in record['things']):
            covered[y1:y2, x1:x2] += 1
        assert covered.max() == 1


def test_an_expression_fits_the_thing_in_its_box_and_no_other():
    kinds = Counter()
    for record in _all('grounding', length=300):
        words = record['expression'].removeprefix('the ').removesuffix(' thing').split()
        (meant,) = (thing for thing in record['things'] if {*words} <= {thing['color'], thing['shape']})
        assert meant['box'] == record['box'] and meant['asked']
        kinds[record['expression'].endswith(' thing'), len(words)] += 1
    assert set(kinds) == {(False, 2), (True, 1), (False, 1)}  # The red ring, the red thing, the ring.
    assert min(kinds.values()) > 30


def test_the_thing_in_question_may_stand_anywhere():
    cells = Counter(_asked(record)['cell'] for record in _all('grounding', length=900, image_size=24))
    assert len(cells) == 9 and min(cells.values()) > 60
    same_column = [
        thing['cell'][1] == _asked(record)['cell'][1]
        for record in _all('grounding', length=300, image_size=24)
        for thing in record['things']
        if not thing['asked']
    ]
    assert np.mean(same_column) == pytest.approx(2 / 8, abs=0.06)


def test_neither_color_nor_shape_alone_tells_which_thing_is_meant():
    for key in ('color', 'shape'):
        chance = []
        for record in _all('grounding', length=500, image_size=24):
            fitting = [thing for thing in record['things'] if thing[key] == _asked(record)[key]]
            chance.append(1 / len(fitting))
        assert 0.55 < np.mean(chance) < 0.75


def test_fields_of_the_other_tasks_follow_from_the_things():
    for record in _all('region_caption'):
        assert record['box'] == _asked(record)['box'] and record['caption'] == f'a {_words(_asked(record))}'
    for record in _all('detection'):
        assert record['label'] == _asked(record)['shape']
        assert record['boxes'] == [thing['box'] for thing in record['things'] if thing['shape'] == record['label']]
    for record in _all('caption'):
        *others, last = [f'a {_words(thing)}' for thing in record['things']]
        sentence = f'{", ".join(others)} and {last}.'
        assert record['caption'] == f'A{sentence[1:]}'
    for record in _all('grounded_caption'):
        assert record['phrases'] == [(f'a {_words(thing)}', [thing['box']]) for thing in record['things']]
    for record in _all('classification'):
        assert [_words(thing) for thing in record['things']] == [record['label']]
    assert {len(record['boxes']) for record in _all('detection', length=300, image_size=24)} >= {1, 2, 3}


def test_choices_hold_the_answer_once_at_any_place():
    places = Counter()
    for record in _all('multiple_choice', length=400, image_size=24):
        choices, answers = record['choices'], ANSWERS[record['question_type']]
        assert len(set(choices)) == len(choices) == min(4, len(answers)) and set(choices) <= set(answers)
        places[choices.index(record['answer'])] += 1
    assert min(places[i] for i in range(3)) > 60


def test_questions_are_those_of_the_conversations():
    conversations = ShapesConversationDataset(length=50, image_size=24)
    for index, record in enumerate(_all('vqa', length=50, image_size=24)):
        other = conversations.get_data_info(index)
        assert record['question'] == other['messages'][0]['content'][1]['text']
        assert (record['answer'], record['question_type']) == (other['gt_answer'], other['question_type'])
        assert sorted((thing['cell'], _words(thing)) for thing in record['things']) == sorted(
            (thing['cell'], _words(thing)) for thing in other['things']
        )


def test_a_finer_grid_makes_things_smaller_and_keeps_the_columns():
    for record in _all('vqa', length=200, image_size=96, grid=6):
        assert all(max(thing['cell']) < 6 for thing in record['things'])
        assert all(max(x2 - x1, y2 - y1) <= 16 for x1, y1, x2, y2 in (thing['box'] for thing in record['things']))
        if record['question_type'] == 'position':
            assert record['answer'] == ('left', 'center', 'right')[_asked(record)['cell'][1] // 2]
    assert {thing['cell'][0] for record in _all('grounding', grid=6) for thing in record['things']} == set(range(6))


def test_facts_have_one_answer_each_and_sums_are_right():
    facts = shapes_facts()
    kinds = Counter(kind for kind, _, _ in facts)
    assert kinds == dict(sum=100, after=12, before=12, price=36) and len({question for _, question, _ in facts}) == 160
    for kind, question, answer in facts:
        if kind == 'sum':
            assert eval(question.removeprefix('What is ').removesuffix('?')) == int(answer)
    answer_of = {question: answer for _, question, answer in facts}
    for words in (COLORS, SHAPES):
        for word, following in zip(words, words[1:] + words[:1]):
            assert answer_of[f'What comes after {word}?'] == following
            assert answer_of[f'What comes before {following}?'] == word
    prices = [answer for kind, _, answer in facts if kind == 'price']
    assert len(set(prices)) == 36 and all(len(price) == 2 for price in prices)


def test_text_only_goes_through_the_facts_in_turn_without_images():
    dataset = ShapesTaskDataset('text_only', length=200)
    assert not dataset.modalities.any() and dataset.modalities.shape == (200,)
    assert ShapesTaskDataset('vqa', length=3).modalities.tolist() == [True] * 3
    records = [dataset.get_data_info(index) for index in range(200)]
    assert [(r['question_type'], r['question'], r['answer']) for r in records[:160]] == shapes_facts()
    assert records[160]['question'] == records[0]['question'] and records[0]['images'] == []


@pytest.mark.parametrize('task', ['grounding', 'grounded_caption', 'vqa'])
def test_no_combination_of_val_appears_in_train(task):
    for split in ('train', 'val'):
        records = _all(task, split, 200, image_size=24)
        seen = {(thing['color'], thing['shape']) for record in records for thing in record['things']}
        assert seen == set(split_pairs(split))


def test_same_index_is_the_same_record_and_the_seed_changes_it():
    first, again, other = (_all('grounding', length=4, seed=seed)[3] for seed in (0, 0, 1))
    assert first.pop('images')[0].tobytes() == again.pop('images')[0].tobytes() != other['images'][0].tobytes()
    assert first == again and first['source'] == 'ShapesTaskDataset[3]'


@pytest.mark.parametrize('task', TASKS)
def test_the_task_transform_takes_the_records(task):
    config = dict(type='ShapesTaskDataset', task=task, length=20, pipeline=[dict(type=TRANSFORMS_OF[task])])
    dataset = DATASETS.build(config)
    for sample in (dataset[i] for i in range(20)):
        assert sample['task'] in (task, 'short_answer')
        assert [message['role'] for message in sample['messages']] == ['user', 'assistant']
    assert dataset.metainfo['classes'] == SHAPES


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(task='pose'), r"task='pose'"),
        (dict(task='vqa', grid=4), r'grid=4'),
        (dict(task='vqa', grid=9), r'grid=9 .*image_size=48 .* 6'),
        (dict(task='vqa', image_size=16), r'ShapesTaskDataset: image_size=16'),
    ],
)
def test_bad_arguments_name_the_key_and_what_is_allowed(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ShapesTaskDataset(**kwargs)
