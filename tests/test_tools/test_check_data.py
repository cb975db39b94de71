"""Tests of tools/check_data.py, called in this process."""

import json
import re
import runpy
import sys

import pytest
import tiny_vlms
from mmengine.config import Config
from PIL import Image
from repository_configs import ROOT
from torch.utils.data import DataLoader

PROCESSOR = dict(type='ShapesProcessor')
ENCODE = dict(type='EncodeConversation', processor=PROCESSOR)


def turns(question, answer):
    return [{'from': 'human', 'value': question}, {'from': 'gpt', 'value': answer}]


def write_lines(path, records):
    path.write_text('\n'.join(map(json.dumps, records)))


@pytest.fixture
def records(tmp_path):
    """Ten records, of which four cannot be used, and images of three sizes."""
    sizes = [(48, 48), (48, 96), (64, 48)]
    for number, (height, width) in enumerate(sizes):
        tiny_vlms.random_image(height, width, number).save(tmp_path / f'{number}.png')
    (tmp_path / 'cut.png').write_bytes((tmp_path / '0.png').read_bytes()[:900])
    good = [dict(id=i, image=f'{i}.png', conversations=turns('<image>\nwhat color ?', 'red')) for i in range(3)]
    bad = [
        dict(image='none.png', conversations=turns('<image> what ?', 'red')),
        dict(image='cut.png', conversations=turns('<image> what ?', 'red'), source='web'),
        dict(conversations=turns('what ?', ''), id=3),
        dict(conversations=turns('what ?', 'red'), videos=['a.mp4']),
    ]
    long = [dict(conversations=turns('what ?', ' '.join(['red'] * 60))), dict(conversations=turns('what ?', 'red'))]
    records = [*good, *bad, *long, dict(conversations=turns(' '.join(['what'] * 60), 'red'))]
    write_lines(tmp_path / 'data.jsonl', records)
    return tmp_path


def conversations(root, **kwargs):
    return dict(type='ConversationDataset', ann_file='data.jsonl', data_root=str(root), **kwargs)


@pytest.fixture
def check(load_tool, tmp_path, capsys):
    """Write a config of these datasets and run the tool on it: its exit status and its lines."""

    def run(*arguments, scope='mmpretrain', workers=0, **datasets):
        loaders = {f'{name}_dataloader': dict(batch_size=2, dataset=value) for name, value in datasets.items()}
        path = tmp_path / 'tiny.py'
        Config(dict(custom_imports=dict(imports=['mergemix_mm']), default_scope=scope, **loaders)).dump(str(path))
        run.tool = load_tool('check_data')
        status = run.tool.main([str(path), '--workers', str(workers), *arguments])
        lines = capsys.readouterr().out.splitlines()
        # What libraries say of themselves.
        return status, [line for line in lines if 'INFO' not in line and 'OneDL' not in line]

    return run


@pytest.mark.parametrize('workers', [0, 2])
def test_every_unusable_record_is_named_with_file_and_line(check, records, workers):
    pipeline = [dict(ENCODE, max_length=50)]
    status, lines = check(workers=workers, train=conversations(records, pipeline=pipeline, on_error='skip'))
    assert status == 1
    path = re.escape(f'{records}/data.jsonl')
    for line, pattern in zip(
        lines,
        [
            rf'{path}:4: image .*none\.png does not exist',
            rf'{path}:5: image .*cut\.png cannot be read',
            rf'{path}:6: turn 2 is an empty answer',
            rf"{path}:7: has 'videos'; videos cannot be trained on",
            rf'{path}:10: all answers are cut off by max_length=50',
            r'train_dataloader\.dataset \(ConversationDataset\): 10 records read, 5 cannot be used',
            r"  on_error='skip': in training",
            r'  keys that are not trained on: id \(4\), source \(1\)',
            r'  tokens: min \d+, median \d+, max \d+$',
            r'  cut off by max_length=50: 1, of min (\d+), median \1, max \1 tokens',
            r'  images: 3, width min 48, median 48, max 96, height min 48, median 48, max 64 pixels',
            r'  records without images: 2',
            r'5 things cannot be used\.',
        ],
        strict=True,
    ):
        assert re.match(pattern, line), line


def test_usable_data_end_with_status_0(check, records):
    write_lines(records / 'data.jsonl', [dict(conversations=turns('what ?', 'red'))] * 3)
    status, lines = check(
        train=conversations(records, pipeline=[ENCODE]), val=conversations(records, pipeline=[ENCODE])
    )
    assert status == 0 and lines[-1] == 'All records can be used.'
    assert 'val_dataloader.dataset: the same as train_dataloader.dataset' in lines
    assert '  tokens: min 8, median 8, max 8' in lines


def test_only_the_splits_that_are_asked_for_are_read(check, records):
    drawn = dict(type='ShapesConversationDataset', length=5, pipeline=[dict(ENCODE, max_length=77)])
    status, lines = check('--split', 'val', train=conversations(records), val=drawn)
    assert lines[0].startswith('val_dataloader.dataset (ShapesConversationDataset): 5 records read, 0')
    assert any('images: 5, width min 48, median 48, max 48' in line for line in lines)
    assert status == 0 and not any('without images' in line for line in lines)


def test_members_of_joined_datasets_are_checked_one_by_one(check, records):
    drawn = dict(type='ShapesConversationDataset', length=3)
    mix = dict(
        type='TaskMixDataset',
        tasks=dict(own=dict(dataset=conversations(records)), drawn=dict(dataset=drawn)),
        pipeline=[ENCODE],
    )
    unified = dict(type='UnifiedDataset', gen=dict(type='ShapesGenerationDataset', length=2), und=drawn)
    joined = dict(type='ConcatDataset', datasets=[drawn, dict(drawn, seed=1)])
    status, lines = check(train=mix, val=unified, test=dict(type='RepeatDataset', times=3, dataset=joined))
    found = [line.partition(':')[0] for line in lines if ' records read' in line]
    assert status == 1
    assert sorted(found[:2]) + found[2:] == [
        'train_dataloader.dataset.tasks.drawn.dataset (ShapesConversationDataset)',
        'train_dataloader.dataset.tasks.own.dataset (ConversationDataset)',
        'val_dataloader.dataset.gen (ShapesGenerationDataset)',
        'val_dataloader.dataset.und (ShapesConversationDataset)',
        'test_dataloader.dataset.dataset.datasets.0 (ShapesConversationDataset)',
        'test_dataloader.dataset.dataset.datasets.1 (ShapesConversationDataset)',
    ]


def test_a_dataset_that_cannot_be_built_does_not_stop_the_others(check, records):
    (records / 'bad.json').write_text('[{"a": 1},')
    tasks = dict(
        bad=dict(dataset=dict(conversations(records), ann_file='bad.json')), own=dict(dataset=conversations(records))
    )
    status, lines = check(
        train=dict(type='TaskMixDataset', tasks=tasks, pipeline=[ENCODE]),
        val=dict(conversations(records), data_root='/nowhere'),
        test=dict(type='ShapesConversationDataset', length=2),
    )
    text = '\n'.join(lines)
    assert status == 1
    assert f'train_dataloader.dataset.tasks.bad.dataset: {records}/bad.json:1: malformed JSON' in text
    assert 'train_dataloader.dataset.tasks.own.dataset (ConversationDataset): 10 records read, 4 cannot' in text
    assert re.search(r"val_dataloader.dataset.data_root='/nowhere': there is no such folder .* --cfg-options", text)
    assert 'test_dataloader.dataset (ShapesConversationDataset): 2 records read, 0 cannot' in text


def test_every_image_of_a_classifier_is_decoded(check, tmp_path):
    root = tmp_path / 'train'
    (root / 'cat').mkdir(parents=True)
    for number in range(3):
        Image.effect_noise((40 + number, 30), 90).convert('RGB').save(root / 'cat' / f'{number}.jpg')
    whole = (root / 'cat' / '0.jpg').read_bytes()
    (root / 'cat' / 'cut.jpg').write_bytes(whole[: len(whole) // 2])
    (root / 'cat' / 'empty.jpg').write_bytes(b'')
    (root / 'cat' / 'text.jpg').write_text('not an image')
    pipeline = [dict(type='LoadImageFromFile'), dict(type='RandomFlip', prob=0.5), dict(type='PackInputs')]
    status, lines = check(train=dict(type='CustomDataset', data_prefix=str(root), pipeline=pipeline))
    errors = [line for line in lines if 'record ' in line and 'cat/' in line]
    assert status == 1 and len(errors) == 3
    for name, line in zip(('cut', 'empty', 'text'), errors, strict=True):
        assert f'cat/{name}.jpg' in line
    assert any('6 records read, 3 cannot be used' in line for line in lines)
    assert '  images: 3, width min 40, median 41, max 42, height min 30, median 30, max 30 pixels' in lines


def test_a_detector_is_checked_too(check, tmp_path):
    pytest.importorskip('mmdet')
    images = [dict(id=i, file_name=f'{i}.jpg', height=30, width=40) for i in range(3)]
    boxes = [dict(id=i, image_id=i, category_id=1, bbox=[1, 2, 9, 8], area=72, iscrowd=0) for i in range(3)]
    for number in range(2):
        Image.effect_noise((40, 30), 90).convert('RGB').save(tmp_path / f'{number}.jpg')
    content = dict(images=images, annotations=boxes, categories=[dict(id=1, name='thing')])
    (tmp_path / 'coco.json').write_text(json.dumps(content))
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True),
        dict(type='PackDetInputs'),
    ]
    dataset = dict(
        type='CocoDataset',
        ann_file='coco.json',
        data_root=str(tmp_path),
        data_prefix=dict(img=''),
        metainfo=dict(classes=('thing',)),
        pipeline=pipeline,
    )
    status, lines = check(scope='mmdet', train=dataset)
    assert status == 1
    assert sum('coco.json: record 2 (' in line and '2.jpg' in line for line in lines) == 1
    assert any('CocoDataset): 3 records read, 1 cannot be used' in line for line in lines)
    assert '  images: 2, width min 40, median 40, max 40, height min 30, median 30, max 30 pixels' in lines


def test_interrupting_prints_what_was_found_so_far(check, records, monkeypatch):
    original = DataLoader.__iter__

    def interrupted(self):
        yield next(original(self))
        raise KeyboardInterrupt

    monkeypatch.setattr(DataLoader, '__iter__', interrupted)
    status, lines = check(train=conversations(records), val=dict(type='ShapesConversationDataset', length=3))
    assert status == 130
    assert any('data.jsonl:4:' in line for line in lines)
    assert any('8 of 10 records read, 4 cannot be used' in line for line in lines)
    assert lines[-1] == 'Interrupted. So far, 4 things cannot be used.'


def test_a_config_without_data_is_refused(check):
    with pytest.raises(SystemExit, match='has no data loader for val, test'):
        check('--split', 'val', 'test', train=dict(type='ShapesConversationDataset'))


def test_the_program_ends_with_status_1(records, tmp_path, monkeypatch, capfd):
    path = tmp_path / 'tiny.py'
    loader = dict(batch_size=2, dataset=conversations(records, pipeline=[ENCODE]))
    Config(dict(custom_imports=dict(imports=['mergemix_mm']), train_dataloader=loader)).dump(str(path))
    monkeypatch.setattr(sys, 'argv', ['check_data.py', str(path), '--workers', '2'])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / 'tools' / 'check_data.py'), run_name='__main__')
    printed = capfd.readouterr()
    assert ended.value.code == 1
    assert 'data.jsonl:4: image' in printed.out and '10 records read, 4 cannot be used' in printed.out
    assert 'train_dataloader.dataset: 100%' in printed.err
