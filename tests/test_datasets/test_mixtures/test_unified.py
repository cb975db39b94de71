"""Tests of UnifiedDataset with its sampler and collate: one task per step, on all ranks, at the ratio."""

from collections import Counter

import numpy as np
import pytest
import tiny_vlms
import torch
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from mmpretrain.structures import DataSample

from mergemix_mm.datasets import ModalitySampler, UnifiedDataset

MODULE = 'mergemix_mm.datasets.mixtures.samplers'


class Records(torch.utils.data.Dataset):
    """Samples that know their task and index; of understanding, every fourth is of text only."""

    def __init__(self, task, length):
        self.own, self.length = task, length
        self.modalities = np.arange(length) % 4 > 0

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return dict(inputs=dict(index=index), data_samples=self.own)

    def get_data_info(self, index):
        return dict(source=f'{self.own}[{index}]')


def unified(num_gen=12, num_und=20, **kwargs):
    return UnifiedDataset(Records('gen', num_gen), Records('und', num_und), **kwargs)


def steps(monkeypatch, dataset, world_size=1, epoch=0, **kwargs):
    """[steps, ranks * batch_size] indices."""
    found = []
    for rank in range(world_size):
        monkeypatch.setattr(f'{MODULE}.get_dist_info', lambda rank=rank: (rank, world_size))
        sampler = ModalitySampler(dataset, seed=3, **kwargs)
        sampler.set_epoch(epoch)
        found.append(np.array(list(sampler)).reshape(-1, sampler.batch_size))
        assert found[-1].size == len(sampler)
    return np.concatenate(found, axis=1)


def test_generation_comes_first_and_samples_name_their_task():
    dataset = unified()
    assert len(dataset) == 32
    assert dataset[11] == dict(inputs=dict(index=11, task='gen'), data_samples='gen')
    assert dataset[12] == dict(inputs=dict(index=0, task='und'), data_samples='und')
    assert dataset[-1]['inputs']['index'] == 19 and dataset.get_data_info(13)['source'] == 'und[1]'
    with pytest.raises(IndexError):
        dataset[32]


def test_groups_are_tasks_and_modalities():
    dataset = unified(ratio=dict(gen=1, und=3))
    assert dataset.groups.tolist() == [0] * 12 + [1, 2, 2, 2] * 5
    np.testing.assert_allclose(dataset.shares, [0.25, 0.75 / 4, 0.75 * 3 / 4])
    dataset.datasets['und'].modalities[:] = True
    assert dataset.groups.tolist() == [0] * 12 + [1] * 20
    np.testing.assert_allclose(dataset.shares, [0.25, 0.75])


@pytest.mark.parametrize('world_size', [1, 2])
@pytest.mark.parametrize('ratio', [None, dict(gen=2, und=1), dict(gen=1, und=4)])
def test_steps_have_one_task_and_modality_on_all_ranks_at_the_ratio(monkeypatch, ratio, world_size):
    dataset = unified(40, 320, ratio=ratio)
    for epoch in range(2):
        found = steps(monkeypatch, dataset, world_size, epoch, batch_size=4)
        groups = dataset.groups[found]
        assert (groups == groups[:, :1]).all()
        counts = Counter(groups[:, 0].tolist())
        ratio = ratio or dict(gen=1, und=1)
        und = counts[1] + counts[2]
        assert counts[0] * ratio['und'] == und * ratio['gen']
        assert counts[2] == 3 * counts[1]
        assert set(found.ravel().tolist()) == set(range(360))
        # Just so long that the larger task is used up.
        assert und == 320 // 4 // world_size or counts[0] == 40 // 4 // world_size


def test_records_that_come_again_come_in_another_order(monkeypatch):
    dataset = unified(8, 64)
    dataset.datasets['und'].modalities[:] = True
    found = steps(monkeypatch, dataset, batch_size=4)
    gen = found[found[:, 0] < 8]
    assert len(gen) == 16 and set(Counter(gen.ravel().tolist()).values()) == {8}
    assert len({tuple(sorted(step)) for step in gen.tolist()}) > 4


def test_records_that_come_again_for_part_of_an_epoch_make_no_batch_twice(monkeypatch):
    found = steps(monkeypatch, unified(400, 664), batch_size=4)
    gen = found[found[:, 0] < 400]
    assert len(gen) > 160 and len({tuple(sorted(step)) for step in gen.tolist()}) == len(gen)
    assert set(Counter(gen.ravel().tolist()).values()) == {1, 2}


def test_tasks_alternate_without_order(monkeypatch):
    tasks = steps(monkeypatch, unified(400, 400), batch_size=4)[:, 0] < 400
    assert len(tasks) == 200 and 60 < (tasks[1:] != tasks[:-1]).sum() < 140


def test_skipping_continues_where_an_uninterrupted_run_would(monkeypatch):
    dataset = unified(12, 40)
    sampler = ModalitySampler(dataset, batch_size=4, seed=3)
    stream = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        stream += list(sampler)
    for num_steps in (0, 3, len(sampler) // 4, len(sampler) // 4 + 2):
        resumed = ModalitySampler(dataset, batch_size=4, seed=3)
        resumed.skip(num_steps * 4)
        found = list(resumed)
        resumed.set_epoch(1)
        assert found + list(resumed) == stream[num_steps * 4 :][: len(found) + len(sampler)]


def test_bad_ratios_are_refused():
    for ratio in (dict(gen=1), dict(gen=1, und=0), dict(gen=1, und=1, other=1)):
        with pytest.raises(ValueError, match=r'UnifiedDataset: ratio='):
            unified(ratio=ratio)


@pytest.fixture(scope='module')
def loader_config():
    processor = tiny_vlms.tiny_processor('janus')
    gen = dict(type='ShapesGenerationDataset', length=12, image_size=24)
    und = dict(type='ShapesConversationDataset', length=30, image_size=24)
    encode = dict(type='EncodeGeneration', processor=processor, image_size=8)
    return dict(
        batch_size=4,
        num_workers=0,
        collate_fn=dict(type='UnifiedCollate'),
        sampler=dict(type='ModalitySampler', batch_size=4),
        dataset=dict(
            type='UnifiedDataset',
            gen=dict(gen, pipeline=[encode]),
            und=dict(und, pipeline=[dict(type='EncodeConversation', processor=processor)]),
        ),
    )


def test_a_runner_builds_loaders_of_batches_of_one_task(loader_config):
    loader = Runner.build_dataloader(loader_config, seed=0)
    tasks = Counter()
    for batch in loader:
        inputs, samples = batch['inputs'], batch['data_samples']
        tasks[inputs['task']] += 1
        assert len(samples) == 4 and all(isinstance(sample, DataSample) for sample in samples)
        if inputs['task'] == 'gen':
            assert set(inputs) == {'input_ids', 'attention_mask', 'target_images', 'task'}
            assert inputs['target_images'].shape == (4, 3, 8, 8) and samples[0].gt_color in samples[0].prompt
        else:
            assert (inputs['labels'] != -100).any(1).all() and inputs['pixel_values'].shape == (4, 3, 28, 28)
    assert tasks == dict(gen=8, und=8)


def test_metainfo_of_both_datasets(loader_config):
    dataset = DATASETS.build(loader_config['dataset'])
    assert {'palette', 'columns', 'answers'} <= set(dataset.metainfo)


def test_lengths_are_those_of_both_datasets():
    dataset = unified(2, 3)
    dataset.datasets['gen'].lengths, dataset.datasets['und'].lengths = np.array([5, 6]), np.array([1, 2, 3])
    assert dataset.lengths.tolist() == [5, 6, 1, 2, 3]
