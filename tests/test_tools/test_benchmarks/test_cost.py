"""Programs that time: each runs with --quick, writes what it returns, and prints a table."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file


@pytest.fixture
def run(load, tmp_path, capsys):
    """Run a program with --quick: what it returns, what it writes, what it prints."""

    def run(name, *options):
        path = tmp_path / 'results.json'
        results = load(name).main(['--quick', '--threads', '1', *options, '--output', str(path)])
        return results, json.loads(path.read_text()), capsys.readouterr().out

    return run


def test_step_cost(run):
    results, written, printed = run('step_cost', '--parts', 'steps', 'scoring', 'memory')
    rows = {row['arm']: row for row in results['steps']}
    ours = ['MergeMix, layer 2', 'MergeMix, layer 3']
    assert list(rows) == ['no mixing', 'Mixup', 'CutMix', 'ResizeMix', *ours]
    assert rows['CutMix']['ratio'] == 1
    assert [name for name, row in rows.items() if row['scoring_seconds'] is not None] == ours
    assert [row['passes'] for row in rows.values()] == [1, 1, 1, 1, 2, 2]
    assert [row['patches'] for row in results['scoring_memory']] == [64, 256, 1024]
    assert all(row['mergemix_mb'] < row['release_mb'] for row in results['scoring_memory'])
    assert written['steps'] == results['steps'] and '| CutMix ' in printed
    encoders = {row['arm'].split(',')[0]: row['ratio'] for row in results['scoring']}
    assert list(encoders) == ['VisionTransformer', 'ViTEVA02 (rotary positions)'] and len(results['scoring']) == 3
    assert results['scoring'][0]['ratio'] == 1 and '| / merged |' in printed


def test_step_cost_counts_the_passes_of_every_scheme_and_takes_every_registered_mixer(run):
    results, *_ = run('step_cost', '--parts', 'schemes', 'rivals', '--rounds', '1', '--clock', 'processor')
    assert [row['passes'] for row in results['schemes']] == [1, 2, 2, 3, 3, 3, 3]
    measured = [row['arm'] for row in results['rivals']]
    assert {'Mixup', 'CutMix', 'ResizeMix', 'MergeMix'} <= set(measured)
    assert not {'SalientBlur', 'SwapImages'} & set(measured)
    mixed_alone = {row['arm'] for row in results['rivals'] if row['mixing_seconds'] is not None}
    assert mixed_alone == {row['arm'] for row in results['rivals'] if row['passes'] == 1}


def test_step_cost_measures_one_part(run):
    results, written, printed = run('step_cost', '--parts', 'scoring')
    assert len(results['scoring']) == 3 and not results['steps'] and not results['scoring_memory']
    assert written['scoring'] == results['scoring'] and '| scoring (s) |' in printed and '| CutMix' not in printed


def test_tome_throughput(run):
    results, written, printed = run('tome_throughput')
    rows = results['models']
    assert [row['merged'] for row in rows] == [0, 0, 19, 32] and rows[0]['speed_up'] == 1
    assert written['models'] == rows and ' 19 of 64 |' in printed


@pytest.mark.parametrize(
    ('name', 'keys', 'arms'),
    [
        ('aia_step', ['gen', 'und'], ['next tokens alone', 'AIA, fused', 'AIA, attention maps']),
        (
            'interaction_cost',
            ['layer, L = 16', 'layer, L = 32', 'model of 2 layers, L = 32'],
            ['sdpa, not recorded', 'fused intensity', 'log-sum-exp', 'attention maps'],
        ),
    ],
)
def test_cost_of_aia_covers_every_way(run, name, keys, arms):
    results, written, printed = run(name)
    assert list(results) == keys and written['results'] == results
    for measured in results.values():
        assert list(measured['times']) == arms and min(measured['memory'].values()) > 0
    assert all(f'| {arm} ' in printed for arm in arms)


def test_tuning_step(run, load):
    benchmark = load('tuning_step')
    results, written, printed = run('tuning_step')
    arms = ['SFT', *(f'SFT + SimPO, {mixer}' for mixer in benchmark.MIXERS)]
    assert list(results['times']) == [*arms, benchmark.DETACHED, benchmark.RELEASE, benchmark.TOWER_ONLY]
    assert written['times'] == results['times'] and '| SFT + SimPO, swap ' in printed


def test_answer_head(run):
    results, written, printed = run('answer_head')
    assert [(row['trained'], row['pairs']) for row in results] == [(True, 1), (True, 4), (False, 1), (False, 4)]
    assert all(row['memory']['answers'] < row['memory']['full'] for row in results)
    assert written['heads'] == results and '| frozen  |' in printed


def test_view_encoding(run):
    results, written, printed = run('view_encoding')
    assert list(results['batching']) == ['2/1', '3/1'] and len(results['skipping']) == 6
    assert written['skipping'] == results['skipping'] and ' 3 of 5 |' in printed


def test_weight_mix_leaves_only_its_numbers(run, load, tmp_path, monkeypatch):
    # A thread instead of a process, which would import everything again in each of three arms.
    monkeypatch.setattr(load('weight_mix'), 'ProcessPoolExecutor', lambda *_: ThreadPoolExecutor(1))
    results, written, printed = run('weight_mix', '--dir', str(tmp_path))
    assert results['largest_mb'] == 2000 * 256 * 2 / 2**20
    assert all(len(results[arm]['seconds']) == 1 and results[arm]['memory'][0] > 50 for arm in ('copy', 'mix'))
    assert results['mix']['seconds'][0] > results['nothing']['seconds'][0]
    assert written['arms']['mix'] == results['mix'] and '| mix_weights ' in printed
    assert [file.name for file in tmp_path.iterdir()] == ['results.json']


def test_checkpoints_are_four_shards_of_the_size_and_the_arms_write_one_of_them(load, tmp_path):
    benchmark = load('weight_mix')
    args = benchmark.parse_args(['--quick'])
    for seed, name in enumerate(('real', 'syn')):
        benchmark.make_checkpoint(tmp_path / name, args, seed)
    weights = benchmark.StoredWeights(tmp_path / 'real')
    assert len(weights.files) == 4
    assert 0 <= weights.nbytes - args.size * 2**30 < 256 * 256 * 2  # Less than a matrix above.
    name = weights.files[0].path.name
    first = [load_file(tmp_path / part / name)['layers.0.weight'].float() for part in ('real', 'syn')]
    assert first[0].shape == (2000, 256) and not torch.equal(*first)
    benchmark.copy(tmp_path)
    assert (tmp_path / 'out' / name).read_bytes() == (tmp_path / 'real' / name).read_bytes()
    benchmark.mix(tmp_path)
    mixed = load_file(tmp_path / 'out' / name)['layers.0.weight']
    assert torch.equal(mixed, (sum(first) / 2).bfloat16())


def test_the_table_of_mixing_compares_memory_with_the_bare_process_and_times_with_the_copy(load, cells):
    measured = dict(
        nothing=dict(seconds=[0, 0], processor=[0, 0], memory=[100, 110]),
        copy=dict(seconds=[2.0, 4.0], processor=[1.0, 1.0], memory=[120, 126]),
        mix=dict(seconds=[3.0, 4.0], processor=[5.0, 6.0], memory=[170, 160]),
    )
    assert cells(load('weight_mix').table(measured))[2:] == [
        ['both read, one written', '16', '3.0', '1.0', '1.00', '1.00 - 1.00'],
        ['mix_weights', '60', '3.5', '5.5', '1.25', '1.00 - 1.50'],
    ]


@pytest.mark.parametrize(
    ('name', 'options', 'message'),
    [
        ('aia_step', ['--length', '600'], '--length 600 must hold 576 image tokens'),
        ('tuning_step', ['--batch-size', '1'], '--batch-size 1'),
        ('step_cost', ['--batch-size', '1'], '--batch-size 1'),
        ('interaction_cost', ['--prompt', '600'], '--prompt 600'),
    ],
)
def test_options_that_cannot_be_measured_are_refused(load, capsys, name, options, message):
    with pytest.raises(SystemExit):
        load(name).parse_args(options)
    assert message in capsys.readouterr().err
