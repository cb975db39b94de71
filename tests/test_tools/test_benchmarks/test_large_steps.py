"""The benchmark of full-size steps: tiny runs, full sizes on the meta device, and what it finds wrong."""

import json

import pytest
import torch


@pytest.fixture
def large(load):
    return load('large_steps')


def check_rows(rows, model, arms):
    """All arms of a model were measured, on 2 samples of 4 image, 4 prompt and 4 answer tokens."""
    assert [(row['model'], row['batch'], row['arm']) for row in rows] == [(model, *arm) for arm in arms]
    for row in rows:
        assert row['above_gib'] > 0 and row['peak_gib'] is None and row['tokens'] == 24
        assert row['tokens_per_second'] == pytest.approx(24 / row['times'][0])
    assert rows[0]['ratio'] == 1


def test_all_arms_of_a_janus_run_in_bfloat16_and_are_written(large, tmp_path, capsys):
    from mergemix_mm.functional.interaction import BACKENDS

    path = tmp_path / 'steps.json'
    results = large.main(['--quick', '--models', 'janus', '--dtype', 'bfloat16', '--output', str(path)])
    assert results['problems'] == []
    backends = [f'AIA, {backend}' for backend in BACKENDS if backend != 'auto']
    arms = ["transformers' loop", 'next tokens alone', *backends]
    expected = [(batch, arm) for batch in ('generation', 'understanding') for arm in arms]
    check_rows(results['rows'], 'Janus-Pro-1B, all weights', expected)
    assert json.loads(path.read_text())['rows'] == json.loads(json.dumps(results['rows']))
    assert '| understanding | next tokens alone ' in capsys.readouterr().out


def test_an_arm_that_fails_is_named_and_takes_no_other_along(large, monkeypatch, tmp_path):
    def fails(*_):
        raise RuntimeError('out of\nmemory')

    monkeypatch.setattr(large, 'release_llava_losses', fails)
    path = tmp_path / 'steps.json'
    with pytest.raises(SystemExit) as stopped:
        large.main(['--quick', '--models', 'llava', '--dtype', 'bfloat16', '--output', str(path)])
    (problem,) = str(stopped.value).splitlines()[1:]
    assert problem.endswith('scheme of the release, MergeMix: RuntimeError: out of memory')
    *others, failed = json.loads(path.read_text())['rows']
    assert 'times' not in failed and failed['error'] == 'RuntimeError: out of memory'
    ours = [f'SFT + SimPO, {name}' for name in ('MergeMix', 'swap', 'MergeMix, detach_loser=True')]
    arms = ["transformers' loop", 'SFT', *ours]
    check_rows(others, 'LLaVA-1.5-7B, LoRA', [('conversations', arm) for arm in arms])


@pytest.mark.parametrize(
    ('change', 'problem'),
    [
        (dict(losses=dict(loss_sft=2.1)), "loss_sft is 2.1, that of transformers' loop 2.0"),
        (dict(losses=dict(loss_sft=float('nan'))), 'nan'),
        (dict(gradient_norm=0.0), 'norm of the gradients 0.0'),
        (dict(gradient_norm=1.2), 'norm of the gradients is 1.2'),
    ],
)
def test_numbers_that_disagree_or_are_not_finite_are_problems(large, change, problem):
    group = large.Group('LLaVA', 'conversations', {}, None, 24, ('loss_sft',))
    right = dict(model='LLaVA', batch='conversations', losses=dict(loss_sft=2.0), gradient_norm=1.0)
    rows = [dict(right, arm=large.LIBRARY), dict(right, arm=large.SFT, losses=dict(loss_sft=2.001, logp=-2.0))]
    assert large.problems_of(group, rows, 'bfloat16') == []
    problems = large.problems_of(group, [rows[0], rows[1] | change], 'bfloat16')
    assert problems and all('LLaVA, conversations, SFT' in one for one in problems) and problem in problems[0]


def test_a_loser_like_its_winner_is_refused(large):
    args = large.parse_args(['--quick'])
    model = large.recipe('llava', args)
    tuner = large.build_llava(model['vlm'], dict(type='SwapImages'))
    batch = large.random_conversations(model['vlm']['config'], 2, 4, 4)
    large.check_losers(tuner, batch)
    batch['pixel_values'][1] = batch['pixel_values'][0]
    with pytest.raises(RuntimeError, match='winner and loser'):
        large.check_losers(tuner, batch)


@pytest.mark.parametrize(
    ('name', 'build', 'millions', 'trained'),
    [
        # llava-hf/llava-1.5-7b-hf: 7,063 M; LoRA of rank 128 in 7 layers of 32 blocks: 320 M; a copy of the projector.
        ('llava', 'build_llava', 7063.4 + 319.8 + 21.0, 319.8 + 21.0),
        ('janus', 'build_janus', 2076.6, 1701.1),
    ],
)
def test_full_sizes_have_as_many_weights_as_the_released_models(large, name, build, millions, trained):
    model = large.recipe(name, large.parse_args(['--device', 'cuda', '--dtype', 'bfloat16']))
    with torch.device('meta'):
        tuner = getattr(large, build)(model['vlm'])
    sizes = [(parameter.numel() / 1e6, parameter.requires_grad) for parameter in tuner.parameters()]
    assert sum(size for size, _ in sizes) == pytest.approx(millions, abs=0.1)
    assert sum(size for size, trains in sizes if trains) == pytest.approx(trained, abs=0.1)
    assert {tensor.device.type for tensor in (*tuner.parameters(), *tuner.buffers())} == {'meta'}
    layers = tuner.vlm.family.language_model.modules()
    assert all(layer.gradient_checkpointing for layer in layers if hasattr(layer, 'gradient_checkpointing'))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--device', 'cuda', '--batch-size', '1'], '--batch-size 1 must be at least 2'),
        ([], '--device cpu needs --quick'),
    ],
)
def test_a_batch_of_one_and_full_sizes_on_a_cpu_are_refused(large, options, message, capsys):
    with pytest.raises(SystemExit):
        large.parse_args(options)
    assert message in capsys.readouterr().err
