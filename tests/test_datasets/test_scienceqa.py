"""Tests of ScienceQADataset."""

import json
import re
from pathlib import Path

import mmpretrain
import pytest
from mmengine.registry import DATASETS
from PIL import Image

from mergemix_mm.datasets import RecordError, ScienceQADataset

PROBLEM = dict(
    question='Which is farthest north?',
    choices=['Ohio', 'Maine', 'Utah'],
    answer=1,
    hint='Look at the map.',
    image='image.png',
    grade='grade2',
    subject='social science',
    split='test',
    solution='x',
)


def dataset(tmp_path, problems, splits=None, **kwargs):
    folder = tmp_path / 'images' / 'test' / '7'
    folder.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (5, 4)).save(folder / 'image.png')
    (tmp_path / 'problems.json').write_text(json.dumps(problems))
    (tmp_path / 'pid_splits.json').write_text(json.dumps(splits or dict(test=list(problems), minitest=[])))
    kwargs = dict(data_root=str(tmp_path), data_prefix=dict(img_path='images')) | kwargs
    return DATASETS.build(dict(type='ScienceQADataset', **kwargs))


def test_problem_becomes_a_multiple_choice_question(tmp_path):
    record = dataset(tmp_path, {'7': PROBLEM})[0]
    content, answer = (message['content'] for message in record['messages'])
    assert content[0] == dict(type='image')
    assert content[1]['text'] == (
        'Context: Look at the map.\nWhich is farthest north?\nA. Ohio\nB. Maine\nC. Utah\n'
        "Answer with the option's letter from the given choices directly."
    )
    assert answer == [dict(type='text', text='B')]
    assert record['images'][0].size == (5, 4)
    kept = {
        key: record[key] for key in ('gt_answer', 'question_id', 'choices', 'subject', 'grade', 'has_image', 'hint')
    }
    assert kept == dict(
        gt_answer='B',
        question_id='7',
        choices=['Ohio', 'Maine', 'Utah'],
        subject='social science',
        grade='grade2',
        has_image=True,
        hint='Look at the map.',
    )


def test_splits_and_problems_without_image(tmp_path):
    text = dict(PROBLEM, image=None, hint='', split='train')
    problems = {'7': PROBLEM, '8': text, '9': dict(text, split='val')}
    splits = dict(test=['7'], train=['8'], trainval=['8', '9'], all=['9', '7'])
    data = dataset(tmp_path, problems, splits, split='trainval')
    assert [record['question_id'] for record in (data[0], data[1])] == ['8', '9'] and not data.test_mode
    assert data[0]['images'] == [] and data[0]['messages'][0]['content'][0]['text'].startswith('Which is')
    data = dataset(tmp_path, problems, splits, split='all')
    assert data.modalities.tolist() == [False, True] and data.test_mode
    data = dataset(tmp_path, problems, splits, split='all', image_only=True)
    assert [data[index]['question_id'] for index in range(len(data))] == ['7']


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(answer=3), r'problems\.json:problem 7: answer 3 .*3 choices'),
        (dict(answer='B'), "answer 'B'"),
        (dict(image='none.png'), r'image .*images/test/7/none\.png'),
    ],
)
def test_unusable_problems_are_named(tmp_path, change, message):
    with pytest.raises(RecordError, match=message):
        dataset(tmp_path, {'7': PROBLEM | change})[0]


def test_wrong_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"split='dev'.*\['minitest', 'test'\]"):
        dataset(tmp_path, {'7': PROBLEM}, split='dev')
    with pytest.raises(ValueError, match=r"problems\.json .*\['8'\]"):
        dataset(tmp_path, {'7': PROBLEM}, dict(test=['8']))
    (tmp_path / 'problems.json').write_text('{\n"7" 1}')
    with pytest.raises(ValueError, match=r'problems\.json:2: .*column 5'):
        ScienceQADataset(data_root=str(tmp_path))


def test_no_name_of_mmpretrain_is_taken():
    own = {name for name, cls in DATASETS.module_dict.items() if cls.__module__.startswith('mergemix_mm')}
    assert {'ScienceQADataset', 'POPEDataset', 'VQAv2Dataset', 'ConversationDataset'} <= own
    source = Path(mmpretrain.__file__).parent / 'datasets'
    theirs = re.findall(r'^class (\w+)', ''.join(path.read_text() for path in source.glob('*.py')), re.MULTILINE)
    assert 'ScienceQA' in theirs and not own & set(theirs)


def test_lengths_are_those_of_hint_question_and_choices(tmp_path):
    found = dataset(tmp_path, {'7': PROBLEM, '8': dict(PROBLEM, hint=None, question='Who?')}).lengths
    assert found[0] - found[1] == len(PROBLEM['hint']) + len(PROBLEM['question']) - len('NoneWho?')
