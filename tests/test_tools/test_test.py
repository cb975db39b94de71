"""tools/test.py: metrics and predictions of a checkpoint."""

import json
import pickle

import pytest

pytestmark = pytest.mark.slow


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


def test_cfg_options_name_the_keys_of_the_model_with_tta_as_well(config, load_tool):
    tool = load_tool('test')
    options = ['--cfg-options', 'model.head.num_classes=11', 'work_dir=there']
    args = tool.parse_args([str(config), 'checkpoint.pth', '--tta', '--work-dir', 'here', *options])
    cfg = tool.merge_args(tool.launch.load_config(args.config), args)
    assert cfg.work_dir == 'there' and cfg.load_from == 'checkpoint.pth'
    assert cfg.model.type == 'mmpretrain.AverageClsScoreTTA' and cfg.model.module.head.num_classes == 11
    (views,) = cfg.test_dataloader.dataset.pipeline
    assert views.type == 'TestTimeAug' and [flip.prob for flip in views.transforms[0]] == [1, 0]


def test_tta_of_the_config_comes_first(config, load_tool):
    config.write_text(config.read_text() + "tta_model, tta_pipeline = dict(type='Mine'), [dict(type='Views')]\n")
    tool = load_tool('test')
    args = tool.parse_args([str(config), 'checkpoint.pth', '--tta'])
    cfg = tool.merge_args(tool.launch.load_config(args.config), args)
    assert cfg.model.type == 'Mine' and cfg.model.module.type == 'MixupClassifier'
    assert cfg.test_dataloader.dataset.pipeline == [dict(type='Views')]


def test_none_tests_the_weights_that_a_model_comes_with(config, load_tool):
    tool = load_tool('test')
    cfg = tool.launch.load_config(config)
    with pytest.raises(SystemExit, match=r"'none' .*no model\.vlm\.pretrained"):
        tool.merge_args(cfg, tool.parse_args([str(config), 'none']))
    cfg.model = dict(type='VLMTuner', vlm=dict(pretrained='folder'))
    assert tool.merge_args(cfg, tool.parse_args([str(config), 'none'])).load_from is None


def test_out_item_without_out_is_refused(run_tool, capsys):
    with pytest.raises(SystemExit):
        run_tool('test', 'config.py', 'checkpoint.pth', '--out-item', 'metrics')
    assert '--out-item needs --out' in capsys.readouterr().err


def test_showing_needs_a_visualization_hook(config, run_tool):
    with pytest.raises(SystemExit, match=r'default_hooks\.visualization'):
        run_tool('test', config, 'checkpoint.pth', '--show-dir', 'somewhere')
