"""Tests of ModalitySampler."""

import numpy as np
import pytest
import torch
from mmengine.registry import DATA_SAMPLERS
from mmengine.runner import Runner
from mmengine.runner.loops import _InfiniteDataloaderIterator

from mergemix_mm.datasets import ModalitySampler

MODULE = 'mergemix_mm.datasets.mixtures.modality_sampler'


class Records(torch.utils.data.Dataset):
    def __init__(self, num_images, num_texts):
        self.modalities = np.random.default_rng(0).permutation([True] * num_images + [False] * num_texts)

    def __len__(self):
        return len(self.modalities)

    def __getitem__(self, index):
        return index


def samplers(monkeypatch, dataset, world_size=1, **kwargs):
    """The sampler of every rank."""
    found = []
    for rank in range(world_size):
        monkeypatch.setattr(f'{MODULE}.get_dist_info', lambda rank=rank: (rank, world_size))
        found.append(DATA_SAMPLERS.build(dict(type='ModalitySampler', dataset=dataset, seed=3, **kwargs)))
    return found


def steps(sampler):
    """[steps, batch_size] indices of a rank."""
    return np.array(list(sampler)).reshape(-1, sampler.batch_size)


@pytest.mark.parametrize('shuffle', [True, False])
@pytest.mark.parametrize('round_up', [True, False])
@pytest.mark.parametrize('world_size', [1, 3])
def test_all_ranks_of_a_step_have_one_modality(monkeypatch, world_size, round_up, shuffle):
    dataset = Records(41, 17)
    ranks = samplers(monkeypatch, dataset, world_size, batch_size=4, round_up=round_up, shuffle=shuffle)
    for epoch in range(3):
        for sampler in ranks:
            sampler.set_epoch(epoch)
        all_steps = np.concatenate([steps(sampler) for sampler in ranks], axis=1)
        assert all(len(set(dataset.modalities[step])) == 1 for step in all_steps)
        assert all(len(list(sampler)) == len(sampler) == all_steps.shape[0] * 4 for sampler in ranks)
        size = 4 * world_size
        expected = [-(-count // size) if round_up else count // size for count in (17, 41)]
        by_modality = [sum(dataset.modalities[step[0]] == modality for step in all_steps) for modality in (False, True)]
        assert by_modality == expected


def test_every_record_comes_once_and_some_twice_to_fill_the_last_batches(monkeypatch):
    (sampler,) = samplers(monkeypatch, Records(10, 5), batch_size=4)
    counts = np.bincount(list(sampler), minlength=15)
    assert counts.min() == 1 and counts.max() == 2 and counts.sum() == 20
    (sampler,) = samplers(monkeypatch, Records(10, 5), batch_size=4, round_up=False)
    counts = np.bincount(list(sampler), minlength=15)
    assert counts.max() == 1 and counts.sum() == 12


def test_ranks_share_no_record_before_the_filling(monkeypatch):
    ranks = samplers(monkeypatch, Records(24, 12), 3, batch_size=2)
    assert sorted(index for sampler in ranks for index in sampler) == list(range(36))


def test_order_depends_on_seed_and_epoch_alone(monkeypatch):
    dataset = Records(30, 20)
    (one,), (two,) = samplers(monkeypatch, dataset, batch_size=4), samplers(monkeypatch, dataset, batch_size=4)
    list(one)
    np.random.seed(5)
    two.set_epoch(2)
    assert list(one) != list(two)
    one.set_epoch(2)
    assert list(one) == list(two) == list(two)
    other = ModalitySampler(dataset, batch_size=4, seed=4)
    other.set_epoch(2)
    assert list(other) != list(one)


def test_modalities_are_mixed_over_the_epoch(monkeypatch):
    dataset = Records(200, 200)
    (sampler,) = samplers(monkeypatch, dataset, batch_size=4)
    kinds = dataset.modalities[steps(sampler)[:, 0]]
    assert 30 < (kinds[1:] != kinds[:-1]).sum() < 70


def test_without_shuffling_batches_follow_the_file(monkeypatch):
    dataset = Records(6, 6)
    dataset.modalities = np.array([True, False] * 6)
    (sampler,) = samplers(monkeypatch, dataset, batch_size=3, shuffle=False)
    assert steps(sampler).tolist() == [[0, 2, 4], [1, 3, 5], [6, 8, 10], [7, 9, 11]]


def loader_of(dataset, **kwargs):
    return Runner.build_dataloader(
        dict(batch_size=4, dataset=dataset, sampler=dict(type='ModalitySampler', batch_size=4), **kwargs), seed=7
    )


def test_a_runner_builds_it_and_every_batch_has_one_modality():
    dataset = Records(21, 10)
    batches = list(loader_of(dataset, num_workers=1))
    assert len(batches) == 9
    assert all(len(set(dataset.modalities[list(batch)])) == 1 for batch in batches)


def test_endless_iteration_goes_on_with_the_next_epoch_and_is_the_same_again(monkeypatch):
    monkeypatch.setattr('mmengine.runner.loops.time.sleep', lambda seconds: None)
    dataset = Records(21, 10)
    streams = []
    for _ in range(2):
        endless = _InfiniteDataloaderIterator(loader_of(dataset))
        streams.append([tuple(map(int, next(endless))) for _ in range(27)])
    assert streams[0] == streams[1]
    epochs = [streams[0][start : start + 9] for start in (0, 9, 18)]
    assert len({tuple(epoch) for epoch in epochs}) == 3
    for number, epoch in enumerate(epochs):
        sampler = ModalitySampler(dataset, batch_size=4, seed=7)
        sampler.set_epoch(number)
        assert [index for batch in epoch for index in batch] == list(sampler)


def test_one_modality_alone(monkeypatch):
    for dataset in (Records(9, 0), Records(0, 9)):
        (sampler,) = samplers(monkeypatch, dataset, batch_size=4)
        assert set(sampler) == set(range(9)) and len(sampler) == 12


def test_bad_arguments_name_the_key(monkeypatch):
    with pytest.raises(ValueError, match="list has no 'modalities'"):
        ModalitySampler([1, 2], batch_size=1)
    with pytest.raises(ValueError, match=r"batch_size=0 must be the data loader's"):
        ModalitySampler(Records(3, 3), batch_size=0)
    with pytest.raises(ValueError, match='6 records fill no step of 4 samples on 1 ranks; use round_up=True'):
        ModalitySampler(Records(3, 3), batch_size=4, seed=0, round_up=False)
