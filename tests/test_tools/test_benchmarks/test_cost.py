"""Programs that time: each runs with --quick, writes what it returns, and prints a table."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
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


def test_peers_compute_the_loss_of_this_package_and_random_batches_compute_more_tokens(run):
    results, written, printed = run('peers', '--peers', 'transformers')
    assert list(results) == ['sft', 'lengths'] and written['parts'] == results
    assert list(results['sft']['times']) == ['mergemix_mm', 'transformers'] and '| transformers ' in printed
    work = results['lengths']['work']
    assert work['mergemix_mm, packed'] == 1 <= work['mergemix_mm, grouped'] < work['mergemix_mm, random']
    assert work['transformers, random'] == work['mergemix_mm, random']


def test_a_peer_with_another_loss_stops_the_comparison(load):
    arms = dict(mergemix_mm=lambda: torch.tensor(1.0), trl=lambda: torch.tensor(1.01))
    with pytest.raises(AssertionError, match='loss of trl: 1.010000, of mergemix_mm: 1.000000'):
        load('peers').check_losses(arms)


def test_trl_has_the_same_losses_and_takes_more_memory_from_the_hidden_states_on(run):
    pytest.importorskip('trl')
    results, _, printed = run('peers', '--peers', 'trl', '--parts', 'sft', 'pairs', 'head')
    assert all(list(part['times']) == ['mergemix_mm', 'trl'] for part in results.values())
    memory = results['head']['memory']
    assert memory['mergemix_mm'] < memory['trl'] and printed.count('| trl ') == 3


def test_batches_of_drawn_lengths_hold_all_samples_and_sorting_spares_padding(load):
    lengths, program = load('lib.lengths'), load('peers')
    args = program.parse_args(['--quick', '--peers', 'transformers'])
    samples = lengths.random_samples(
        load('lib.steps').small_llava(**load('lib.steps').TINY_LLAVA), lengths.draw_records(64, args)
    )
    work = {order: lengths.to_batches(samples, 8, order == 'grouped') for order in ('random', 'grouped')}
    used = [sum(int(batch['attention_mask'].sum()) for batch in batches) for batches in work.values()]
    assert used[0] == used[1] == sum(len(sample['input_ids']) for sample in samples)
    random, grouped = map(lengths.tokens_per_useful_token, work.values())
    assert grouped < 1.2 < 1.3 < random


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
        ('peers', ['--peers', 'transformers', '--parts', 'head'], '--parts head compares with trl only'),
        ('peers', ['--image-tokens', '576'], '--image-tokens 576: an image of 224 pixels has 196'),
    ],
)
def test_options_that_cannot_be_measured_are_refused(load, capsys, name, options, message):
    with pytest.raises(SystemExit):
        load(name).parse_args(options)
    assert message in capsys.readouterr().err


def test_padding(run):
    results, written, printed = run('padding')
    assert written['arms'] == results and '| padded, group_by_length ' in printed
    assert 1.6 < results['padded, one modality']['tokens'] < 2.1
    assert 1 <= results['padded, group_by_length']['tokens'] < 1.15
    packed = results['packed, group_by_length']
    assert packed['tokens'] == packed['pairs'] == packed['work'] == 1 <= packed['slowest'] < 1.05
    # Sixteen samples in one row: a mask over all of them has 16 times as many pairs, and causal attention half of them.
    assert results['one row with a dense mask']['pairs'] > 16 and results['packed, one modality']['mask_mb'] == 0


def test_padding_counts_what_batches_cost(load):
    tokens = np.array([[[2, 4], [4, 4]]])  # One step of two ranks.
    found = load('padding').count(tokens, 'padded')
    assert found['tokens'] == 16 / 14 and found['largest'] == 8 and found['pairs'] == (32 + 32) / (10 + 16)
    assert load('padding').count(tokens, 'dense')['pairs'] == (36 + 64) / (10 + 16)
    assert load('padding').count(tokens, 'packed')['slowest'] == pytest.approx(8 / 7, rel=1e-3)


def test_data_throughput(run):
    results, written, printed = run('data_throughput')
    ways = {'padded', 'packed', 'one row with a dense mask'}
    assert written['steps'] == results['steps'] and results['steps'].keys() == results['memory'].keys() == ways
    assert len(set(results['conversations'])) == 2
    for parts in results['steps'].values():
        whole = parts.pop('whole step')
        assert sum(parts.values()) == pytest.approx(whole) and min(parts.values()) >= 0
    assert results['stages']['whole sample'] > 0 and results['loaders'].keys() == {'0'}
    assert '| template and tokens ' in printed and '| worker processes ' in printed


def test_record_memory(run):
    results, written, printed = run('record_memory')
    assert written['lists'] == results and '200 records' in printed and '| JSON lines ' in printed
    assert len(results) == 3 and all(one['read'] > 0 and one['open'] > 0 for one in results.values())
    json_lines, *tables = (one['file'] for one in results.values())
    assert all(json_lines > one for one in tables)
    # The order of an epoch holds several arrays of int64, whatever the list is.
    orders = [one['order'] for one in results.values()]
    assert min(orders) > 5 * 8 and max(orders) < 1.1 * min(orders)
