"""tools/test.py: metrics and predictions of a checkpoint."""

import json
import pickle

import pytest


@pytest.fixture
def trained(config, tmp_path, run_tool):
    """Config, checkpoint and the accuracy that training logged for it."""
    run_tool('train', config, '--work-dir', tmp_path / 'work')
    lines = next((tmp_path / 'work').glob('*/vis_data/scalars.json')).read_text().splitlines()
    accuracy = [record['accuracy/top1'] for record in map(json.loads, lines) if 'accuracy/top1' in record][-1]
    return config, tmp_path / 'work' / 'epoch_2.pth', accuracy


def test_metrics_equal_those_of_the_training_and_predictions_are_written(trained, tmp_path, run_tool):
    config, checkpoint, accuracy = trained
    test = ('test', config, checkpoint, '--work-dir', tmp_path / 'test')
    run_tool(*test, '--out', tmp_path / 'metrics.json', '--out-item', 'metrics')
    assert json.loads((tmp_path / 'metrics.json').read_text())['accuracy/top1'] == pytest.approx(accuracy)
    run_tool(*test, '--tta', '--out', tmp_path / 'predictions.pkl')
    predictions = pickle.loads((tmp_path / 'predictions.pkl').read_bytes())
    assert len(predictions) > 10
    assert all(sample['pred_score'].sum().item() == pytest.approx(1, abs=1e-4) for sample in predictions)


def test_out_item_without_out_is_refused(run_tool, capsys):
    with pytest.raises(SystemExit):
        run_tool('test', 'config.py', 'checkpoint.pth', '--out-item', 'metrics')
    assert '--out-item needs --out' in capsys.readouterr().err


def test_showing_needs_a_visualization_hook(config, run_tool):
    with pytest.raises(SystemExit, match=r'default_hooks\.visualization'):
        run_tool('test', config, 'checkpoint.pth', '--show-dir', 'somewhere')
