"""The plan of a config as a table, and one line for what cannot be planned."""

import re

import pytest
from repository_configs import CONFIGS

from mergemix_mm.engine.launch import LaunchError

DIGITS = str(CONFIGS / 'mergemix/vit-tiny_1xb32-mergemix-coslr-30e_digits.py')
JANUS = str(CONFIGS / 'aia/tiny-janus_1xb32-aia-coslr-400i_shapes.py')


@pytest.fixture
def tool(load_tool):
    return load_tool('analysis_tools/plan_memory')


def rows(text):
    return [[cell.strip() for cell in line.split('|')[1:-1]] for line in text.splitlines() if line.startswith('|')]


def test_a_plan_says_what_was_simulated_and_which_way_fits(tool, capsys):
    tool.main([DIGITS, '--gpus', '4', '--gpu-memory', '2.05', '--cfg-options', 'train_dataloader.batch_size=256'])
    text = capsys.readouterr().out
    assert 'images: 256 images of 32 x 32 pixels on each GPU' in text
    assert 'precision: that of the weights; 4 GPUs of 2.05 GiB' in text
    header, _, *ways = rows(text)
    assert header == ['GiB on each GPU', 'weights', 'gradients', 'optimizer', 'step', 'total', 'host', 'fits']
    assert [way[0] for way in ways] == ['DDP', 'FSDP2', 'FSDP2, CPU offload']
    for way in ways:
        # 2 GiB are reserved, and a step of 256 digits holds more than 0.05.
        assert way[-1] == 'no' and float(way[5]) == pytest.approx(2 + sum(map(float, way[1:5])), abs=0.21)
    assert [bool(re.fullmatch(r'\d+\.\d', way[6])) for way in ways] == [False, False, True]


def test_the_length_of_texts_is_an_option_and_both_tasks_are_named(tool, capsys):
    tool.main([JANUS, '--text-tokens', '10', '--cfg-options', 'train_dataloader.batch_size=2'])
    text = capsys.readouterr().out
    assert 'und: 2 samples of 74 tokens' in text and 'gen: 2 samples of 74 tokens' in text
    assert [way[0] for way in rows(text)[2:]] == ['one GPU', 'FSDP2', 'FSDP2, CPU offload']
    assert all(way[-1] == 'yes' for way in rows(text)[2:])


@pytest.mark.parametrize(
    'arguments, match',
    [
        ([DIGITS, '--gpus', '0'], '--gpus 0 must be at least 1'),
        ([DIGITS, '--gpu-memory', '-1'], '--gpu-memory -1.0 must be above 0'),
        ([DIGITS, '--gpu-memory', 'nan'], '--gpu-memory nan must be above 0'),
        ([JANUS, '--text-tokens', '1'], '--text-tokens 1 must be at least 2'),
    ],
)
def test_options_out_of_range_are_refused(tool, capsys, arguments, match):
    with pytest.raises(SystemExit):
        tool.main(arguments)
    assert match in capsys.readouterr().err


@pytest.mark.parametrize(
    'arguments, match',
    [
        (['nothing.py'], 'CONFIG.*nothing.py'),
        ([str(CONFIGS / 'simpo/llava-v1.5-7b_8xb16_pope.py')], 'CONFIG has no train_dataloader'),
        (
            [DIGITS, '--cfg-options', 'model.backbone.arch=gigantic'],
            'CONFIG: the model cannot be built or run: .*gigantic',
        ),
        ([str(CONFIGS / 'simpo/llava-v1.5-7b_8xb16-sft-coslr-1e_llava-mix665k.py')], 'projector-coslr.*=FILE.json'),
        ([str(CONFIGS / 'transfer/tiny-dab-detr-vit_1xb8-scratch-coslr-20e_shapes.py')], "model.type='DABDETR'"),
    ],
)
def test_what_cannot_be_planned_is_said_in_one_line(tool, monkeypatch, arguments, match):
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    with pytest.raises(LaunchError, match=match) as found:
        tool.main(arguments)
    assert '\n' not in str(found.value)
