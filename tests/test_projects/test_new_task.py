"""The project that adds a task: what the task writes, and its config."""

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import TRANSFORMS
from PIL import Image
from repository_configs import ROOT, quick_mmengine, runner_of_two_steps  # noqa: F401

from mergemix_mm.datasets import RecordError
from mergemix_mm.toy import ShapesTaskDataset, shapes_task_words
from projects.new_task.run import main

(CONFIG,) = (ROOT / 'projects' / 'new_task' / 'configs').glob('tiny-*.py')


@pytest.fixture
def config():
    """Reading it imports the task."""
    return Config.fromfile(CONFIG)


def texts(record):
    return [message['content'][-1]['text'] for message in record['messages']]


def test_the_task_asks_for_a_number(config):
    record = dict(images=[Image.new('RGB', (20, 10))], label='ring', boxes=[[0, 0, 5, 5], [5, 5, 9, 9]], source='a:1')
    task = TRANSFORMS.build(dict(type='CountingTask'))
    assert texts(task(record)) == ['How many ring are in the image?', '2']
    assert (task(record)['task'], task(record)['gt_answer']) == ('counting', '2')
    assert texts(TRANSFORMS.build(dict(type='CountingTask', instruction=None))(record)) == ['ring', '2']
    with pytest.raises(RecordError, match=r"a:1: counting: lacks \['boxes'\]"):
        task({key: value for key, value in record.items() if key != 'boxes'})


def test_it_counts_the_things_of_drawn_scenes(config):
    task, dataset = TRANSFORMS.build(dict(type='CountingTask')), ShapesTaskDataset('detection', length=40)
    for index in range(len(dataset)):
        record = dataset[index]
        number = sum(thing['shape'] == record['label'] for thing in record['things'])
        assert texts(task(record)) == [f'How many {record["label"]} are in the image?', str(number)]


def test_the_program_shows_questions_and_answers(tmp_path, capsys):
    main(['--number', '2', '--out', str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(':')[0] for line in lines] == ['0', '1'] and all(' - ' in line for line in lines)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['0.png', '1.png']


def test_every_word_is_in_the_tokenizer():
    assert {'How', 'many', 'are', 'in', 'the', 'image', '?'} <= set(shapes_task_words())


def test_the_config_trains_and_validates(config, tmp_path, monkeypatch):
    torch.manual_seed(0)
    config.train_dataloader.batch_size = config.train_dataloader.sampler.batch_size = 4
    config.val_dataloader.dataset.length = config.val_dataloader.batch_size = 4
    runner = runner_of_two_steps(config, tmp_path, monkeypatch)
    before = {name: value.clone() for name, value in runner.model.named_parameters()}
    runner.train()
    assert runner.iter == 2
    moved = {name for name, value in runner.model.named_parameters() if not torch.equal(value, before[name])}
    assert all(any(part in name for name in moved) for part in ('backbone', 'neck', 'language_model'))
    assert set(runner.val_loop.run()) == {'answer/accuracy'}
