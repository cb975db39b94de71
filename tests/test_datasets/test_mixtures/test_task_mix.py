"""Tests of TaskMixDataset."""

from collections import Counter

import numpy as np
import pytest
from mmengine.registry import DATASETS
from mmengine.runner import Runner

from mergemix_mm.datasets import TaskMixDataset


class Records:
    """Samples that know their task and index; the first ones have images."""

    def __init__(self, name, num_images, num_texts=0):
        self.name = name
        self.modalities = np.arange(num_images + num_texts) < num_images
        self.metainfo = {'first': name, name: 1}

    def __len__(self):
        return len(self.modalities)

    def __getitem__(self, index):
        return f'{self.name}{index}'

    def get_data_info(self, index):
        return dict(source=f'{self.name}[{index}]')


def mix(weights=None, **sizes):
    sizes = sizes or dict(vqa=(4, 0), chat=(1, 3), text=(0, 2))
    tasks = {name: dict(dataset=Records(name, *size)) for name, size in sizes.items()}
    for name, weight in (weights or {}).items():
        tasks[name]['weight'] = weight
    return TaskMixDataset(tasks)


def test_tasks_come_one_after_the_other():
    dataset = mix()
    assert len(dataset) == 10
    assert [dataset[index] for index in (0, 3, 4, 7, 8, 9, -1, -10)] == [
        *('vqa0', 'vqa3', 'chat0', 'chat3', 'text0', 'text1', 'text1', 'vqa0')
    ]
    assert dataset.get_data_info(5) == dict(source='chat[1]')
    with pytest.raises(IndexError):
        dataset[10]


def test_groups_are_the_modalities_that_there_are():
    dataset = mix()
    assert dataset.tasks.tolist() == [0] * 4 + [1] * 4 + [2] * 2
    assert dataset.groups.tolist() == [1] * 4 + [1, 0, 0, 0] + [0] * 2
    assert mix(vqa=(3, 0)).groups.tolist() == mix(text=(0, 3)).groups.tolist() == [0, 0, 0]


def test_without_weights_tasks_and_groups_have_the_shares_of_their_records():
    dataset = mix()
    np.testing.assert_allclose(dataset.weights, [0.4, 0.4, 0.2])
    np.testing.assert_allclose(dataset.shares, [0.5, 0.5])


def test_a_task_of_both_modalities_splits_its_weight_by_its_records():
    dataset = mix(dict(vqa=3, chat=4, text=1))
    np.testing.assert_allclose(dataset.weights, [3 / 8, 4 / 8, 1 / 8])
    np.testing.assert_allclose(dataset.shares, [3 / 8 + 1 / 8, 3 / 8 + 1 / 8])
    np.testing.assert_allclose(mix(dict(vqa=1, chat=4, text=3)).shares, [3 / 4, 1 / 4])


def test_metainfo_of_all_datasets():
    assert mix().metainfo == dict(first='vqa', vqa=1, chat=1, text=1)


def test_a_config_builds_it_with_the_pipeline_of_each_task():
    shapes = dict(type='ShapesConversationDataset', length=3, image_size=24)
    tasks = dict(
        a=dict(dataset=shapes, weight=1), b=dict(dataset=dict(shapes, pipeline=[lambda record: 'b']), weight=2)
    )
    dataset = DATASETS.build(dict(type='TaskMixDataset', tasks=tasks))
    assert dataset[0]['source'] == 'ShapesConversationDataset[0]' and dataset[5] == 'b'
    assert 'answers' in dataset.metainfo


def test_a_common_pipeline_comes_behind_that_of_each_task():
    shapes = dict(type='ShapesConversationDataset', length=3, image_size=24)
    tasks = dict(a=dict(dataset=shapes), b=dict(dataset=dict(shapes, pipeline=[lambda record: ['b']])))
    dataset = TaskMixDataset(tasks, pipeline=[lambda found: (type(found), len(found))])
    assert dataset[0] == (dict, 7) and dataset[3] == (list, 1)
    assert 'pipeline' not in shapes
    with pytest.raises(ValueError, match=r'tasks\.vqa.*config'):
        TaskMixDataset(dict(vqa=dict(dataset=Records('vqa', 1))), pipeline=[dict])


@pytest.mark.parametrize('weights', [dict(vqa=1), dict(vqa=1, chat=1, text=0), dict(vqa=1, chat=-1, text=1)])
def test_weights_are_all_positive_or_none_is_given(weights):
    with pytest.raises(ValueError, match='TaskMixDataset: the weights are .*above 0'):
        mix(weights)


def test_bad_tasks_are_named():
    with pytest.raises(ValueError, match='tasks is empty'):
        TaskMixDataset({})
    with pytest.raises(ValueError, match=r"tasks\.vqa has \['dataset', 'ratio'\]"):
        TaskMixDataset(dict(vqa=dict(dataset=Records('vqa', 1), ratio=1)))
    with pytest.raises(ValueError, match=r"tasks\.vqa has \['weight'\]"):
        TaskMixDataset(dict(vqa=dict(weight=1)))
    with pytest.raises(ValueError, match=r'tasks\.text has no record'):
        mix(vqa=(1, 0), text=(0, 0))
    with pytest.raises(ValueError, match=r'list of tasks\.vqa has no modalities'):
        TaskMixDataset(dict(vqa=dict(dataset=[1, 2])))


def test_a_runner_builds_loaders_of_encoded_tasks():
    processor = dict(type='SphinxProcessor', tokenizer=dict(type='ShapesTaskTokenizer'), view_tokens=4, image_size=24)
    tasks = dict(vqa='ShortAnswerTask', grounding='GroundingTask', text_only='TextOnlyTask')
    mixed = {
        task: dict(
            weight=weight,
            dataset=dict(
                type='ShapesTaskDataset',
                task=task,
                length=12,
                image_size=24,
                pipeline=[dict(type=tasks[task]), dict(type='EncodeConversation', processor=processor)],
            ),
        )
        for task, weight in dict(vqa=1, grounding=3, text_only=2).items()
    }
    config = dict(
        batch_size=4,
        num_workers=0,
        collate_fn=dict(type='ConversationCollate'),
        sampler=dict(type='TaskMixSampler', batch_size=4),
        dataset=dict(type='TaskMixDataset', tasks=mixed),
    )
    found = Counter()
    for batch in Runner.build_dataloader(config, seed=0):
        inputs, samples = batch['inputs'], batch['data_samples']
        names = {sample.task for sample in samples}
        assert ('pixel_values' in inputs) == (names != {'text_only'}) and (len(names) == 1 or 'text_only' not in names)
        assert (inputs['labels'] != -100).any(1).all()
        assert all(len(sample.gt_boxes) == 1 for sample in samples if sample.task == 'grounding')
        found.update(sample.task for sample in samples)
    assert found == dict(short_answer=12, grounding=36, text_only=24)
