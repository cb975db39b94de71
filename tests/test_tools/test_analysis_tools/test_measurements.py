"""The tools that measure a classifier: occlusion, attacks, merged inference; one table and one file of numbers each."""

import json

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from PIL import Image

from mergemix_mm.engine.launch import LaunchError
from mergemix_mm.evaluation.metrics import CalibrationError


@pytest.fixture
def files(config, tmp_path):
    """Two configs that differ in the batch size, and a checkpoint for both; 39 digits of 4 x 4 patches."""
    text = config.read_text().replace('mean=[0, 0, 0]', 'mean=[80, 70, 60]')
    config.write_text(text)
    (tmp_path / 'other.py').write_text(text.replace('batch_size=18', 'batch_size=40'))
    torch.manual_seed(0)
    model = MODELS.build({**Config.fromfile(config).model, '_scope_': 'mmpretrain'})
    for weight in model.parameters():  # Otherwise all scores are the same.
        weight.data += 0.3 * torch.randn_like(weight)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'weights.pth')
    return [str(config), str(tmp_path / 'weights.pth'), str(tmp_path / 'other.py'), str(tmp_path / 'weights.pth')]


@pytest.fixture
def measure(load_tool, tmp_path, capsys):
    """Run a tool on the CPU -> the rows of its table, the content of its JSON file, and its folder."""

    def run(name, *arguments):
        tool = load_tool(f'analysis_tools/{name}')
        content = tool.main([*arguments, '--device', 'cpu', '-o', str(tmp_path / 'out')])
        (numbers,) = (tmp_path / 'out').glob('*.json')
        assert json.loads(numbers.read_text()) == json.loads(json.dumps(content))
        printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith('|')]
        assert numbers.with_suffix('.md').read_text().splitlines() == printed
        return [[cell.strip() for cell in line.split('|')[1:-1]] for line in printed], content, numbers.parent

    return run


def test_every_classifier_sees_the_same_hidden_patches_whatever_its_batch_size(files, measure):
    rows, content, folder = measure('occlusion_robustness', *files)
    assert rows[0][:4] == ['model', 'merged tokens', 'hidden', '0%'] and len(rows) == 2 + 2 * 2 * 3
    assert content['hidden_patches'] == [0, 1, 3, 4, 6, 8, 9, 11, 12, 14] and content['images'] == 39
    results = {(row['model'], row['merged_tokens'], row['order']): row['top1'] for row in content['results']}
    for merged in (0, 8):
        for order in ('random', 'salient', 'background'):
            assert results['tiny', merged, order] == results['other', merged, order]
    # The same images at 0%, others after that.
    assert len({values[0] for (_, merged, _), values in results.items() if merged == 0}) == 1
    assert len({tuple(values) for (_, merged, _), values in results.items() if merged == 0}) == 3
    assert results['tiny', 0, 'random'] != results['tiny', 8, 'random']
    assert Image.open(folder / 'occlusion.png').width > 1000


def test_patches_are_hidden_by_attention_or_by_the_seed(files, load_tool):
    tool = load_tool('analysis_tools/occlusion_robustness')
    (classifier,) = tool.load_classifiers(tool.parse_args([*files[:2], '--device', 'cpu']))
    first, grid, labels = tool.priorities(classifier, ['random', 'salient', 'background'], 0)
    again, other = (tool.priorities(classifier, ['random'], seed)[0]['random'] for seed in (0, 1))
    assert grid == (4, 4) and labels.shape == (39,) and first['random'].shape == (39, 16)
    assert torch.equal(first['random'], again) and not torch.equal(again, other)
    assert torch.equal(first['background'], -first['salient'])
    images, _ = next(classifier.batches())
    encoder = tool.build_vision_encoder(classifier.model.backbone)
    expected = tool.score_patches(encoder, images, num_merge=0, layer=2).saliency
    torch.testing.assert_close(first['salient'][:18], expected)


def test_other_test_images_are_refused(files, measure, tmp_path):
    other = tmp_path / 'other.py'
    other.write_text(other.read_text().replace("split='test', test_ratio=0.02", "split='test', test_ratio=0.03"))
    with pytest.raises(LaunchError, match='of other: its test images are not those of the first classifier'):
        measure('occlusion_robustness', *files, '--orders', 'random')


def test_attacks_lower_the_accuracy_and_with_epsilon_zero_leave_it(files, measure):
    rows, content, _ = measure('adversarial_robustness', *files[:2], '--eps', '0', '--steps', '1')
    assert rows[0] == ['model', 'merged tokens', 'clean [%]', 'FGSM [%]', 'PGD [%]']
    assert all(len(set(row['top1'].values())) == 1 for row in content['results']) and content['images'] == 39
    rows, content, _ = measure('adversarial_robustness', *files, '--eps', '40', '--step-size', '20', '--steps', '3')
    for row in content['results']:
        assert row['top1']['PGD'] <= row['top1']['FGSM'] <= row['top1']['clean'] and row['top1']['clean'] > 0
    first, second = (row['top1'] for row in content['results'] if not row['merged_tokens'])
    assert first['FGSM'] == second['FGSM']  # PGD draws its starts, which depend on the batches.


def test_attacked_pixels_stay_within_epsilon_and_0_to_255_and_raise_the_loss(files, load_tool):
    tool = load_tool('analysis_tools/adversarial_robustness')
    args = tool.parse_args([*files[:2], '--device', 'cpu'])
    (classifier,) = tool.load_classifiers(args)
    images, labels = next(classifier.batches())
    mean, std = torch.tensor([80.0, 70, 60]).view(3, 1, 1), 255
    pixels = images * std + mean
    losses = []
    with classifier.merging(True):
        attacked = tool.attack(classifier, images, labels, args, torch.Generator().manual_seed(0))
        for found in (images, attacked['FGSM'], attacked['PGD']):
            moved = found * std + mean
            assert (moved - pixels).abs().max() <= 8.001 and moved.min() >= -0.001 and moved.max() <= 255.001
            losses.append(torch.nn.functional.cross_entropy(classifier.logits(found), labels))
    # Black pixels lie at the end of their range: they can only become lighter.
    assert losses[0] < losses[1] <= losses[2] and (pixels == 0).any()


def test_images_that_the_pipeline_normalises_cannot_be_attacked(files, measure, config):
    text = config.read_text()
    config.write_text(
        text.replace('0.02, pipeline=[', "0.02, pipeline=[dict(type='Normalize', mean=[9] * 3, std=[9] * 3), ")
    )
    with pytest.raises(LaunchError, match=r'of tiny: its pixels are in \[-.*normalise in data_preprocessor'):
        measure('adversarial_robustness', *files[:2])


def test_merged_inference_gives_accuracy_calibration_and_operations_of_both_columns(files, measure, load_tool):
    rows, content, folder = measure('merged_inference', *files[:2], '--bins', '5')
    assert [row[:2] for row in rows[2:]] == [['tiny', '0'], ['tiny', '8']]
    plain, merged = content['results']
    tool = load_tool('analysis_tools/merged_inference')
    (classifier,) = tool.load_classifiers(tool.parse_args([*files[:2], '--device', 'cpu']))
    metric, right = CalibrationError(bins=5), 0
    with torch.no_grad(), classifier.merging(False):
        for images, labels in classifier.batches():
            scores = classifier.logits(images).softmax(1)
            metric.process(None, [dict(pred_score=score, gt_label=label) for score, label in zip(scores, labels)])
            right += int((scores.argmax(1) == labels).sum())
    expected = metric.compute_metrics(metric.results)
    assert plain['ece'] == pytest.approx(expected['ece']) and plain['top1'] == pytest.approx(100 * right / 39)
    assert plain['overconfidence'] == pytest.approx(expected['overconfidence']) and plain['ece'] != merged['ece']
    assert merged['gflops'] < plain['gflops'] < plain['gflops_with_attention']
    assert Image.open(folder / 'merged_inference.png').width > 900
