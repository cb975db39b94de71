"""What each task writes of a structured record."""

import inspect

import pytest
import torch
from mmengine.registry import TRANSFORMS
from PIL import Image

from mergemix_mm.datasets import POPEDataset, RecordError, ScienceQADataset, TaskTemplate, VQAv2Dataset
from mergemix_mm.datasets.transforms import tasks
from mergemix_mm.functional import boxes_from_square, parse_boxes

# 20 wide and 10 high: in the middle of a square of 20, or in its upper half.
IMAGE = Image.new('RGB', (20, 10))
BOX = [2, 0, 10, 5]
CENTER, CORNER = '[0.100,0.250,0.500,0.500]', '[0.100,0.000,0.500,0.250]'
SECOND = '[0.500,0.500,1.000,0.750]'


def write(task, images=(IMAGE,), options=None, **fields):
    transform = TRANSFORMS.build(dict(type=task, **(options or {})))
    return transform(dict(images=list(images), source='a.json:7', **fields))


def texts(record):
    """Question and answer; the question comes behind its images."""
    question, answer = record['messages']
    num_images = len(record['images'])
    assert [question['role'], answer['role']] == ['user', 'assistant']
    assert question['content'][:num_images] == [dict(type='image')] * num_images
    assert all(part['type'] == 'text' for part in question['content'][num_images:])
    return ''.join(part['text'] for part in question['content'][num_images:]), answer['content'][0]['text']


CASES = [
    ('VQATask', dict(question='Why?', answer='So.'), 'Why?', 'Why?', 'So.'),
    (
        'ShortAnswerTask',
        dict(question='Why?', answer='rain'),
        'Why?\nAnswer the question using a single word or phrase.',
        'Why?',
        'rain',
    ),
    (
        'MultipleChoiceTask',
        dict(question='Where?', choices=['left', 'right'], answer='right'),
        "Where?\nA. left\nB. right\nAnswer with the option's letter from the given choices directly.",
        'Where?\nA. left\nB. right',
        'B',
    ),
    (
        'GroundingTask',
        dict(expression='the {red} ring', box=BOX),
        'Please provide the bounding box coordinate of the region this sentence describes: the {red} ring.',
        'the {red} ring',
        CENTER,
    ),
    (
        'RegionCaptionTask',
        dict(box=BOX, caption='a red ring'),
        f'Please provide a short description for this region: {CENTER}',
        CENTER,
        'a red ring',
    ),
    ('CaptionTask', dict(caption='A ring.'), 'Provide a one-sentence caption for the provided image.', '', 'A ring.'),
    (
        'DetailedCaptionTask',
        dict(caption='A ring. It is red.'),
        'Describe the image in detail.',
        '',
        'A ring. It is red.',
    ),
    (
        'GroundedCaptionTask',
        dict(phrases=[('a ring', [BOX]), ('a cross', [[10, 5, 20, 10]])]),
        'Describe the image concisely. Include the bounding box for each mentioned object.',
        '',
        f'<p>a ring</p>{CENTER} <p>a cross</p>{SECOND}',
    ),
    (
        'DetectionTask',
        dict(label='ring', boxes=[BOX, [10, 5, 20, 10]]),
        'Detect all ring shown in the image.',
        'ring',
        f'{CENTER[:-1]};{SECOND[1:]}',
    ),
    (
        'PoseTask',
        dict(box=BOX, keypoints=[[4, 1], [10, 5]], keypoint_names=['nose', 'left_ear']),
        f'Detect the key points of the person in the region {CENTER}.',
        CENTER,
        '<p>nose</p>[0.200,0.300] <p>left_ear</p>[0.500,0.500]',
    ),
    (
        'TextSpottingTask',
        dict(texts=['EXIT', 'EXIT'], boxes=[BOX, [10, 5, 20, 10]]),
        'Please detect all texts and provide their bounding box coordinate.',
        '',
        f'<p>EXIT</p>{CENTER} <p>EXIT</p>{SECOND}',
    ),
    (
        'LayoutTask',
        dict(labels=['title', 'text', 'title'], boxes=[BOX, [10, 5, 20, 10], BOX]),
        'Detect the layout of the document in the image.',
        '',
        f'<p>title</p>{CENTER[:-1]};{CENTER[1:]} <p>text</p>{SECOND}',
    ),
    ('ClassificationTask', dict(label='ring'), 'Classify the image.', '', 'This is a ring'),
    ('ChartToTableTask', dict(table='a | b\n1 | 2'), 'Convert the chart to a table.', '', 'a | b\n1 | 2'),
    ('TextOnlyTask', dict(images=[], question='Why?', answer='So.'), 'Why?', 'Why?', 'So.'),
    ('LanguageModellingTask', dict(images=[], text='Once.'), '', '', 'Once.'),
]


@pytest.mark.parametrize(('task', 'fields', 'instructed', 'bare', 'answer'), CASES, ids=[case[0] for case in CASES])
def test_question_with_and_without_its_instruction_and_the_answer(task, fields, instructed, bare, answer):
    record = write(task, **fields)
    assert texts(record) == (instructed, answer)
    assert record['gt_answer'] == answer and record['source'] == 'a.json:7'
    assert texts(write(task, options=dict(instruction=None), **fields)) == (bare, answer)
    assert texts(write(task, options=dict(instruction=''), **fields)) == (bare, answer)


def test_every_task_is_here_and_has_a_name_of_its_own():
    found = [getattr(tasks, name) for name in tasks.__all__ if name.endswith('Task') and name != 'CoordinateTask']
    # The last one has no question to write.
    assert {task.__name__ for task in found} == {case[0] for case in CASES} | {'LanguageModellingTask'}
    assert len({task.TASK for task in found}) == len(found)
    assert write('GroundingTask', **CASES[3][1])['task'] == 'grounding'


@pytest.mark.parametrize(
    ('dataset', 'task', 'question'),
    [
        (VQAv2Dataset, 'ShortAnswerTask', '{question}'),
        (POPEDataset, 'ShortAnswerTask', '{question}'),
        (ScienceQADataset, 'MultipleChoiceTask', '{question}\n{choices}'),
    ],
)
def test_datasets_of_questions_ask_as_the_tasks_do(dataset, task, question):
    suffix = inspect.signature(dataset).parameters['suffix'].default
    assert question + suffix == TRANSFORMS.get(task).INSTRUCTION


@pytest.mark.parametrize('case', CASES, ids=[case[0] for case in CASES])
def test_a_missing_field_names_source_task_and_keys(case):
    task, fields = case[:2]
    for key in set(fields) - {'images'}:
        less = {name: value for name, value in fields.items() if name != key}
        with pytest.raises(RecordError, match=rf"a\.json:7: {TRANSFORMS.get(task).TASK}: lacks \['{key}'\]"):
            write(task, **less)


@pytest.mark.parametrize(
    ('task', 'count', 'boxes'),
    [('GroundingTask', 1, [BOX]), ('DetectionTask', 2, [BOX, [10, 5, 20, 10]]), ('GroundedCaptionTask', 2, None)],
)
def test_coordinates_come_with_what_maps_them_back(task, count, boxes):
    fields = next(case[1] for case in CASES if case[0] == task)
    record = write(task, options=dict(align='corner'), **fields)
    assert (record['image_size'], record['align'], len(record['gt_boxes'])) == ((10, 20), 'corner', count)
    assert boxes is None or record['gt_boxes'] == boxes
    text = record['gt_answer']
    pixels = boxes_from_square(torch.tensor(parse_boxes(text)), record['image_size'], record['align'])
    torch.testing.assert_close(pixels, torch.tensor(record['gt_boxes'], dtype=torch.float))


def test_alignment_and_decimals_change_the_coordinates():
    fields = dict(expression='ring', box=BOX)
    assert write('GroundingTask', **fields)['gt_answer'] == CENTER
    assert write('GroundingTask', options=dict(align='corner'), **fields)['gt_answer'] == CORNER
    assert write('GroundingTask', options=dict(decimals=1), **fields)['gt_answer'] == '[0.1,0.2,0.5,0.5]'


def test_an_instruction_of_ones_own_keeps_the_placeholders():
    record = write('GroundingTask', options=dict(instruction='Where is {expression}?'), expression='he', box=BOX)
    assert texts(record)[0] == 'Where is he?'
    for instruction, found in (('Where?', r'\[\]'), ('Where is {}?', r"\[''\]"), ('{expression}{box}', "'box'")):
        with pytest.raises(ValueError, match=rf"GroundingTask: instruction=.*{found}.*\['expression'\]"):
            write('GroundingTask', options=dict(instruction=instruction))
    with pytest.raises(ValueError, match='decimals=0'):
        write('GroundingTask', options=dict(decimals=0))
    with pytest.raises(ValueError, match="align='left'"):
        write('GroundingTask', options=dict(align='left'))


def test_phrases_are_marked_in_their_caption():
    phrases = [('man', [BOX]), ('a ring', [BOX, BOX])]
    record = write('GroundedCaptionTask', caption='A woman and a man with a ring.', phrases=phrases)
    assert record['gt_answer'] == f'A woman and a <p>man</p>{CENTER} with <p>a ring</p>{CENTER[:-1]};{CENTER[1:]}.'
    with pytest.raises(RecordError, match="'man' .* '.'"):
        write('GroundedCaptionTask', caption='A man with a ring.', phrases=phrases[::-1])


@pytest.mark.parametrize('answer', ['left', 'A', 0])
def test_the_answer_may_be_a_choice_a_letter_or_an_index(answer):
    assert write('MultipleChoiceTask', question='?', choices=['left', 'right'], answer=answer)['gt_answer'] == 'A'
    with pytest.raises(RecordError, match="answer='C'"):
        write('MultipleChoiceTask', question='?', choices=['left', 'right'], answer='C')
    with pytest.raises(RecordError, match='has 0 choices'):
        write('MultipleChoiceTask', question='?', choices=[], answer=answer)


def test_a_gt_answer_of_the_record_stays():
    record = write('ShortAnswerTask', question='?', answer='two', gt_answer=['two', '2'])
    assert record['gt_answer'] == ['two', '2'] and texts(record)[1] == 'two'


@pytest.mark.parametrize(
    ('task', 'fields', 'found'),
    [
        ('TextOnlyTask', dict(question='?', answer='x'), 'text_only: .*1 images, .* 0'),
        ('LanguageModellingTask', dict(text='x'), 'language_modelling: has 1 images, .* 0'),
        ('CaptionTask', dict(caption='x', images=[]), 'caption: .*0 images, .* 1'),
        ('CaptionTask', dict(caption=' '), "answer=' '"),
        ('VQATask', dict(question=None, answer='x'), 'question=None'),
        ('GroundingTask', dict(expression='x', box=[0, 0, 22, 5]), '20 x 10'),
        ('GroundingTask', dict(expression='x', box=[3, 0, 2, 5]), 'is not a box'),
        (
            'GroundingTask',
            dict(expression='x', box=BOX, size=[20, 10]),
            r'\(20, 10\) .*\(10, 20\).*EXIF',
        ),
        ('LayoutTask', dict(labels=['a'], boxes=[BOX, BOX]), 'has 1 labels for 2 boxes'),
        ('TextSpottingTask', dict(texts=['<p>'], boxes=[BOX]), "'<p>'"),
        ('DetectionTask', dict(label='x', boxes=[]), 'list of boxes'),
        ('DetectionTask', dict(label='x', boxes=[BOX, [5, 0, 5, 5]]), 'width or height 0'),
        ('GroundingTask', dict(expression='x', box=[2, 5, 10, 5]), 'grounding: .* has width or height 0'),
        ('GroundingTask', dict(expression='x', box=['2', '0', '10', '5']), 'list of boxes'),
        ('GroundingTask', dict(expression='x', box=None), 'list of boxes'),
        ('RegionCaptionTask', dict(caption='x', box=[2, 0, 2, 5]), 'width or height 0'),
        ('LayoutTask', dict(labels=['a'], boxes=[[3, 3, 3, 3]]), 'width or height 0'),
        ('TextSpottingTask', dict(texts=['EXIT'], boxes=[[3, 3, 9, 3]]), 'width or height 0'),
        ('GroundedCaptionTask', dict(caption='a ring', phrases=[['ring', [[1, 1, 1, 5]]]]), 'width or height 0'),
        ('GroundedCaptionTask', dict(caption='a ring', phrases=5), 'GroundedCaptionTask'),
        ('LayoutTask', dict(labels=3, boxes=[BOX]), 'LayoutTask'),
        (
            'PoseTask',
            dict(box=[2, 0, 2, 5], keypoints=[[2, 1]], keypoint_names=['nose']),
            'width or height 0',
        ),
    ],
)
def test_unusable_records_are_named(task, fields, found):
    with pytest.raises(RecordError, match=rf'a\.json:7: .*{found}'):
        write(task, **fields)


def test_a_new_task_needs_a_name_a_question_and_an_answer():
    class CornerTask(TaskTemplate):
        TASK = 'corner'
        FIELDS = ('thing',)
        INSTRUCTION = 'In which corner is {thing}?'
        QUESTION = '{thing}'

        def answer(self, record):
            return 'none'

    assert texts(CornerTask()(dict(images=[IMAGE], thing='it'))) == ('In which corner is it?', 'none')
