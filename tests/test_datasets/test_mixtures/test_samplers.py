"""Tests of ModalitySampler and TaskMixSampler: shares, order, resuming, and the same kind on every rank."""

import json
import tracemalloc
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.registry import DATA_SAMPLERS
from mmengine.runner import Runner
from mmengine.runner.loops import _InfiniteDataloaderIterator
from PIL import Image

from mergemix_mm.datasets import (
    ConversationDataset,
    ModalitySampler,
    TaskMixDataset,
    TaskMixSampler,
    UnifiedDataset,
)

MODULE = 'mergemix_mm.datasets.mixtures.samplers'


class Records(torch.utils.data.Dataset):
    def __init__(self, num_images, num_texts=0):
        self.modalities = np.random.default_rng(0).permutation([True] * num_images + [False] * num_texts)
        self.loaded = 0

    def __len__(self):
        return len(self.modalities)

    def __getitem__(self, index):
        self.loaded += 1
        return int(index)


def samplers(monkeypatch, dataset, world_size=1, **kwargs):
    """The sampler of every rank."""
    found = []
    for rank in range(world_size):
        monkeypatch.setattr(f'{MODULE}.get_dist_info', lambda rank=rank: (rank, world_size))
        kind = 'TaskMixSampler' if isinstance(dataset, TaskMixDataset) else 'ModalitySampler'
        found.append(DATA_SAMPLERS.build({'type': kind, 'dataset': dataset, 'seed': 3, **kwargs}))
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
    with pytest.raises(ValueError, match=r'batch_size=0'):
        ModalitySampler(Records(3, 3), batch_size=0)
    with pytest.raises(ValueError, match='6 records .* 4 samples on 1 ranks.*round_up=True'):
        ModalitySampler(Records(3, 3), batch_size=4, seed=0, round_up=False)


def mix(sizes, weights=None):
    names = 'abcdefgh'[: len(sizes)]
    weights = weights or [None] * len(sizes)
    return TaskMixDataset(
        {name: dict(dataset=Records(*size), weight=weight) for name, size, weight in zip(names, sizes, weights)}
    )


def with_lengths(mixed):
    for number, part in enumerate(mixed.datasets):
        part.lengths = np.random.default_rng(number).integers(1, 1000, len(part))
    return mixed


def mixed_steps(ranks, epoch=0):
    """[steps, ranks, batch_size] indices."""
    found = []
    for sampler in ranks:
        sampler.set_epoch(epoch)
        found.append(np.array(list(sampler)).reshape(-1, sampler.batch_size))
        assert found[-1].size == len(sampler)
    return np.stack(found, axis=1)


@pytest.mark.parametrize('world_size', [1, 2])
def test_tasks_have_exactly_their_shares_over_an_epoch(monkeypatch, world_size):
    dataset = mix([(120, 0), (40, 0), (0, 80)], [3, 1, 4])
    ranks = samplers(monkeypatch, dataset, world_size, batch_size=4)
    for epoch in range(2):
        found = mixed_steps(ranks, epoch).ravel()
        assert np.bincount(dataset.tasks[found]).tolist() == [120, 40, 160]
        # Of the text task, every record comes twice.
        assert np.bincount(found, minlength=240).tolist() == [1] * 160 + [2] * 80


def test_without_weights_every_record_comes_once(monkeypatch):
    found = mixed_steps(samplers(monkeypatch, mix([(24, 8), (16, 0), (0, 16)]), 2, batch_size=4))
    assert sorted(found.ravel().tolist()) == list(range(64))


def test_a_task_of_both_modalities_splits_its_share_by_its_records(monkeypatch):
    dataset = mix([(30, 10), (60, 0), (0, 20)], [2, 1, 1])
    (sampler,) = samplers(monkeypatch, dataset, batch_size=5)
    # Image-text: 2/4 * 30/40 of the first task and 1/4; text only: 2/4 * 10/40 and 1/4.
    portions = np.array([[1 / 8, 0, 1 / 4], [3 / 8, 1 / 4, 0]])
    np.testing.assert_allclose(sampler.quotas / sampler.quotas.sum(), portions)
    # 60 records at a quarter of the samples: 240 of them.
    assert sampler.quotas.sum() == 240 == len(sampler)
    found = mixed_steps([sampler]).ravel()
    cells = Counter(zip(dataset.groups[found].tolist(), dataset.tasks[found].tolist()))
    assert cells == {(0, 0): 30, (0, 2): 60, (1, 0): 90, (1, 1): 60}


@given(
    st.lists(
        st.tuples(st.integers(0, 40), st.integers(0, 40), st.floats(0.05, 20)).filter(lambda task: task[0] + task[1]),
        min_size=1,
        max_size=5,
    ),
    st.integers(1, 7),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_any_mix_keeps_its_shares_and_uses_every_record(tasks, batch_size, weighted):
    dataset = mix([task[:2] for task in tasks], [task[2] for task in tasks] if weighted else None)
    sampler = TaskMixSampler(dataset, batch_size, seed=1)
    order = np.array(list(sampler))
    groups = dataset.groups[order].reshape(-1, batch_size)
    assert (groups == groups[:, :1]).all()
    assert np.bincount(order, minlength=len(dataset)).min() >= 1

    num_steps = np.bincount(groups[:, 0])
    assert (num_steps - dataset.shares * (num_steps / dataset.shares).min() < 1 + 1e-6).all()
    cells = np.zeros(sampler.quotas.shape, int)
    np.add.at(cells, (dataset.groups[order], dataset.tasks[order]), 1)
    assert (cells == sampler.quotas).all()
    exact = sampler.portions * (num_steps * batch_size)[:, None]
    assert np.abs(cells - exact).max() < 1
    # No record comes two times more often than another one of its task and modality.
    for group, task in zip(*np.nonzero(cells)):
        times = np.bincount(order, minlength=len(dataset))[(dataset.groups == group) & (dataset.tasks == task)]
        assert times.max() - times.min() <= 1


@pytest.mark.parametrize('world_size', [1, 2, 3])
def test_all_ranks_of_a_step_have_one_modality_and_records_of_their_own(monkeypatch, world_size):
    dataset = mix([(96, 12), (48, 12), (0, 48)])
    ranks = samplers(monkeypatch, dataset, world_size, batch_size=4)
    for epoch in range(3):
        found = mixed_steps(ranks, epoch)
        groups = dataset.groups[found].reshape(len(found), -1)
        assert (groups == groups[:, :1]).all()
        assert set(groups[:, 0].tolist()) == {0, 1}
        assert all(len(set(step)) == step.size for step in found.reshape(len(found), -1))
        assert len(set(found.ravel().tolist())) == found.size


def test_tasks_are_mixed_within_batches_and_modalities_over_the_epoch(monkeypatch):
    dataset = mix([(400, 0), (400, 0), (0, 800)])
    found = mixed_steps(samplers(monkeypatch, dataset, batch_size=8))[:, 0]
    groups, tasks = dataset.groups[found[:, 0]], dataset.tasks[found]
    assert 60 < (groups[1:] != groups[:-1]).sum() < 140
    with_images = tasks[groups == 1]
    assert len(with_images) == 100 and (with_images == 0).sum() == 400
    assert sum(len(set(batch)) == 2 for batch in with_images.tolist()) > 90
    # As often at the beginning of the epoch as at its end, and of a batch.
    assert 150 < (with_images[:50] == 0).sum() < 250 and 150 < (with_images[:, :4] == 0).sum() < 250


def test_a_record_comes_twice_in_a_step_only_where_one_pass_meets_the_next(monkeypatch):
    dataset = mix([(40, 0), (160, 0)], [1, 1])
    found = mixed_steps(samplers(monkeypatch, dataset, 2, batch_size=8)).reshape(-1, 16)
    assert np.bincount(found[found < 40]).tolist() == [4] * 40
    assert sum(len(set(step)) < 16 for step in found.tolist()) <= 3
    small = [tuple(sorted(index for index in step if index < 40)) for step in found.tolist()]
    assert len(set(small)) == len(small) == 20


def test_order_of_a_mix_depends_on_seed_and_epoch_alone(monkeypatch):
    dataset = mix([(40, 4), (20, 0), (0, 30)], [1, 2, 1])
    one, two = (samplers(monkeypatch, dataset, batch_size=4)[0] for _ in range(2))
    list(one)
    np.random.seed(5)
    two.set_epoch(2)
    assert list(one) != list(two)
    one.set_epoch(2)
    assert list(one) == list(two)
    (other,) = samplers(monkeypatch, dataset, batch_size=4, seed=4)
    other.set_epoch(2)
    assert list(other) != list(one)


@pytest.mark.parametrize(('world_size', 'grouped'), [(1, False), (2, False), (2, True)])
def test_a_resumed_run_goes_on_where_it_ended_and_loads_nothing_before(monkeypatch, world_size, grouped):
    monkeypatch.setattr('mmengine.runner.loops.time.sleep', lambda seconds: None)
    dataset = with_lengths(mix([(40, 4), (20, 0), (0, 30)], [1, 2, 1]))
    sampler = dict(type='TaskMixSampler', batch_size=4, group_by_length=grouped)
    loader = dict(batch_size=4, num_workers=0, sampler=sampler, dataset=dataset)
    for rank in range(world_size):
        monkeypatch.setattr(f'{MODULE}.get_dist_info', lambda rank=rank: (rank, world_size))
        per_epoch = len(TaskMixSampler(dataset, 4, seed=7)) // 4
        endless = _InfiniteDataloaderIterator(Runner.build_dataloader(loader, seed=7))
        stream = [next(endless) for _ in range(3 * per_epoch)]
        for skipped in (1, per_epoch - 1, per_epoch, 2 * per_epoch + 3):
            resumed = _InfiniteDataloaderIterator(Runner.build_dataloader(loader, seed=7))
            resumed.skip_iter(skipped)
            parts = resumed._dataloader.dataset.datasets
            assert sum(part.loaded for part in parts) == 0
            rest = [next(resumed) for _ in range(3 * per_epoch - skipped)]
            assert rest == stream[skipped:]
            assert sum(part.loaded for part in parts) == 4 * len(rest)


def test_memory_grows_with_the_samples_of_an_epoch_alone():
    peaks = []
    for size in (20_000, 80_000):
        dataset = mix([(size, 0), (size // 2, size // 2), (0, size)], [2, 1, 1])
        tracemalloc.start()
        sampler = TaskMixSampler(dataset, batch_size=8, seed=0)
        iter(sampler)
        peaks.append(tracemalloc.get_traced_memory()[1] / len(sampler))
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0] and peaks[1] < 200


def test_a_dataset_without_tasks_is_refused():
    for dataset in (Records(4), [1, 2]):
        with pytest.raises(ValueError, match="TaskMixSampler: .*'tasks'.*TaskMixDataset"):
            TaskMixSampler(dataset, batch_size=1)
    with pytest.raises(ValueError, match='batch_size=0'):
        TaskMixSampler(mix([(2, 0)]), batch_size=0)


def test_modality_sampler_takes_a_mix_without_regard_to_the_tasks(monkeypatch):
    dataset = mix([(40, 0), (0, 80)], [1, 1])
    found = np.array(list(ModalitySampler(dataset, batch_size=4, seed=0))).reshape(-1, 4)
    assert np.bincount(dataset.groups[found[:, 0]]).tolist() == [20, 20]


def lengthy(num_images, num_texts=0):
    """Records whose lengths differ by up to 40 times."""
    dataset = Records(num_images, num_texts)
    dataset.lengths = np.exp(np.random.default_rng(1).uniform(0, np.log(40), len(dataset)) + 4).astype(int)
    return dataset


def padding(lengths, batches):
    """Tokens that padded batches compute, over useful ones."""
    found = lengths[batches]
    return (found.max(axis=-1) * found.shape[-1]).sum() / found.sum()


@pytest.mark.parametrize('world_size', [1, 3])
def test_grouped_steps_have_similar_lengths_and_the_same_records_on_equally_long_ranks(monkeypatch, world_size):
    dataset = lengthy(900, 300)
    found = {}
    for grouped in (False, True):
        ranks = samplers(monkeypatch, dataset, world_size, batch_size=4, group_by_length=grouped)
        found[grouped] = np.stack([steps(sampler) for sampler in ranks], axis=1)
        assert all(len(list(sampler)) == len(sampler) == found[grouped][:, 0].size for sampler in ranks)
    counts = {grouped: np.bincount(order.ravel(), minlength=1200) for grouped, order in found.items()}
    assert (counts[True] == counts[False]).all()
    assert padding(dataset.lengths, found[False]) > 1.8 and padding(dataset.lengths, found[True]) < 1.15
    kinds = dataset.modalities[found[True]].reshape(len(found[True]), -1)
    assert (kinds == kinds[:, :1]).all()
    tokens = dataset.lengths[found[True]].sum(axis=2)
    assert (tokens.max(axis=1) / tokens.mean(axis=1)).mean() < 1.1
    # Long and short steps are mixed over the epoch.
    assert abs(np.corrcoef(np.arange(len(tokens)), tokens.sum(axis=1))[0, 1]) < 0.2


def test_grouped_order_depends_on_seed_and_epoch_and_is_resumed_within_an_epoch(monkeypatch):
    (one,), (two,) = (samplers(monkeypatch, lengthy(90, 30), batch_size=4, group_by_length=True) for _ in range(2))
    first = list(one)
    assert first == list(two)
    one.set_epoch(1)
    second = list(one)
    assert second != first and sorted(second) != second
    two.skip(len(one) + 20)
    assert list(two) == second[20:]


def test_a_task_mix_grouped_by_length_keeps_its_shares(monkeypatch):
    dataset = with_lengths(mix([(120, 0), (40, 0), (0, 80)], [3, 1, 4]))
    ranks = samplers(monkeypatch, dataset, 2, batch_size=4, group_by_length=True)
    found = mixed_steps(ranks)
    assert np.bincount(dataset.tasks[found.ravel()]).tolist() == [120, 40, 160]
    assert padding(dataset.lengths, found) < 1.2
    assert (dataset.groups[found].reshape(len(found), -1).std(axis=1) == 0).all()


def test_lengths_are_asked_for_where_they_are_missing():
    with pytest.raises(ValueError, match="ModalitySampler: group_by_length=True needs 'lengths' of Records"):
        ModalitySampler(Records(4), batch_size=1, group_by_length=True)
    for lengths in (3, [1, 2, 3], ['a', 'b', 'c', 'd'], [1, 2, 3, None]):
        dataset = Records(4)
        dataset.lengths = lengths
        with pytest.raises(ValueError, match="group_by_length=True needs 'lengths' of Records .*one number per record"):
            ModalitySampler(dataset, batch_size=1, group_by_length=True)
    dataset = with_lengths(mix([(4, 0), (4, 0)]))
    del dataset.datasets[1].lengths
    with pytest.raises(ValueError, match="TaskMixSampler: group_by_length=True needs 'lengths' of TaskMixDataset"):
        TaskMixSampler(dataset, batch_size=1, group_by_length=True)


def test_datasets_that_hide_their_modalities_are_refused_with_a_way_out():
    inner = [Records(4), Records(4)]
    with pytest.raises(ValueError, match="ConcatDataset has no 'modalities'.*TaskMixDataset"):
        ModalitySampler(torch.utils.data.ConcatDataset(inner), batch_size=1)
    with pytest.raises(ValueError, match='TaskMixDataset of tasks.b has no modalities'):
        TaskMixDataset(dict(a=dict(dataset=inner[0]), b=dict(dataset=mix([(4, 0)]))))
    with pytest.raises(ValueError, match='und=TaskMixDataset has no modalities'):
        UnifiedDataset(inner[0], mix([(4, 0)]))


@pytest.mark.parametrize('grouped', [False, True])
def test_fewer_records_than_a_step_takes_are_repeated_on_all_ranks(monkeypatch, grouped):
    dataset = lengthy(3, 1)
    found = np.stack([steps(one) for one in samplers(monkeypatch, dataset, 3, batch_size=2, group_by_length=grouped)])
    assert found.shape == (3, 2, 2)
    counts = np.bincount(found.ravel(), minlength=4)
    assert sorted(counts[dataset.modalities]) == [2, 2, 2] and counts[~dataset.modalities] == 6


def test_a_file_with_other_scripts_and_missing_images_is_grouped_read_and_resumed(tmp_path, monkeypatch):
    Image.new('RGB', (4, 4)).save(tmp_path / 'there.png')
    words, records = ['red', 'красный', '赤い', '🟥', 'é'], []
    for number in range(40):
        answer = ' '.join(words[number % 5 :] * (1 + 7 * number % 40))
        turns = [{'from': 'human', 'value': 'Qué?'}, {'from': 'gpt', 'value': answer}]
        if number % 4:  # The image of every eighth record is missing, and every fourth record has none.
            turns[0]['value'] = '<image>\n' + turns[0]['value']
        image = dict(image='gone.png' if number % 8 == 3 else 'there.png') if number % 4 else {}
        records.append(json.dumps(dict(id=number, **image, conversations=turns), ensure_ascii=number % 2 == 0))
    (tmp_path / 'mix.json').write_text(f'[{", ".join(records)}]', encoding='utf-8')
    data = ConversationDataset('mix.json', data_root=str(tmp_path), on_error='skip')
    ranks = samplers(monkeypatch, data, 2, batch_size=2, group_by_length=True)
    order = np.stack([steps(sampler) for sampler in ranks], axis=1)
    assert order.shape == (11, 2, 2) and set(order.ravel()) == set(range(40))
    read = np.array([data[int(index)]['id'] for index in order.ravel()]).reshape(order.shape)
    assert (data.modalities[read] == data.modalities[order]).all() and data.num_skipped == 5
    assert ((read == order) | (order % 8 == 3)).all()
    assert padding(data.lengths, order) < 1.25
    ranks[1].skip(2 * 5)
    assert (steps(ranks[1]) == order[5:, 1]).all()
