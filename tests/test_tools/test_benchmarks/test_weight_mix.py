"""Tests of tools/benchmarks/weight_mix.py: its checkpoints, its table, and that it runs with --quick."""

import importlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

TOOLS = Path(__file__).parents[3] / 'tools' / 'benchmarks'


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    threads = torch.get_num_threads()
    yield importlib.import_module('weight_mix')
    torch.set_num_threads(threads)


def test_checkpoints_are_four_shards_of_the_size_and_the_arms_write_one_of_them(benchmark, tmp_path):
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
    assert torch.equal(
        load_file(tmp_path / 'out' / name)['layers.0.weight'].float(), (sum(first) / 2).bfloat16().float()
    )


def test_the_table_holds_peaks_above_the_bare_process_and_times_against_the_copy(benchmark):
    measured = dict(
        nothing=dict(seconds=[0, 0], processor=[0, 0], memory=[100, 110]),
        copy=dict(seconds=[2.0, 4.0], processor=[1.0, 1.0], memory=[120, 126]),
        mix=dict(seconds=[3.0, 4.0], processor=[5.0, 6.0], memory=[170, 160]),
    )
    rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in benchmark.table(measured).splitlines()]
    assert rows[2] == ['both read, one written', '16', '3.0', '1.0', '1.00', '1.00 - 1.00']
    assert rows[3] == ['mix_weights', '60', '3.5', '5.5', '1.25', '1.00 - 1.50']


def test_it_runs_quickly_and_leaves_only_its_numbers(benchmark, tmp_path, capsys):
    path = tmp_path / 'mix.json'
    results = benchmark.main(['--quick', '--threads', '1', '--dir', str(tmp_path), '--output', str(path)])
    assert results['largest_mb'] == 2000 * 256 * 2 / 2**20
    for arm in ('nothing', 'copy', 'mix'):
        assert len(results[arm]['seconds']) == 1 and results[arm]['memory'][0] > 50
    assert results['mix']['seconds'][0] > results['nothing']['seconds'][0]
    assert json.loads(path.read_text())['arms']['mix'] == results['mix']
    assert [file.name for file in tmp_path.iterdir()] == ['mix.json']
    assert '| mix_weights ' in capsys.readouterr().out
