"""The table of plans for many GPUs, and options that cannot be planned."""

import re

import pytest
from repository_configs import CONFIGS

from mergemix_mm.engine.launch import LaunchError

SFT = str(CONFIGS / 'simpo/tiny-llava_1xb64-sft-coslr-300i_shapes.py')
OPTIONS = ['--text-tokens', '20', '--cfg-options', 'auto_scale_lr.base_batch_size=64', 'train_dataloader.batch_size=8']


@pytest.fixture
def tool(load_tool):
    return load_tool('analysis_tools/plan_scale')


def test_a_plan_has_a_line_for_each_number_of_gpus(tool, capsys):
    tool.main([SFT, '--gpus', '2', '4', '--gpu-memory', '2.01', *OPTIONS])
    name, _, header, _, *lines = capsys.readouterr().out.strip().splitlines()
    assert re.fullmatch(r'tiny-llava_1xb64-sft-coslr-300i_shapes: \S+ GFLOP for each sample', name)
    assert 'sent (GB) | calls |' in header
    cells = [[cell.strip() for cell in line.split('|')[1:-1]] for line in lines]
    assert [row[:4] for row in cells] == [['2', '8 x 4', '64', '300'], ['4', '8 x 2', '64', '300']]
    assert all(row[5].strip('~').startswith('2.') for row in cells)  # 2 GiB are reserved.


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--gpus', '1'], '--gpus 1 must be at least 2; plan_memory.py plans one GPU'),
        (['--utilisation', '1.5'], r'--utilisation 1.5 must be in \(0, 1\]'),
        (['--network', '0'], '--network 0 must be above 0'),
        (['--text-tokens', '1'], '--text-tokens 1 must be at least 2'),
    ],
)
def test_options_out_of_range_are_refused(tool, capsys, options, message):
    with pytest.raises(SystemExit):
        tool.main([SFT, *options])
    assert re.search(message, capsys.readouterr().err)


def test_a_config_that_does_not_say_its_batch_is_refused_in_one_line(tool):
    with pytest.raises(LaunchError, match=r'no auto_scale_lr\.base_batch_size') as found:
        tool.main([SFT])
    assert '\n' not in str(found.value)
