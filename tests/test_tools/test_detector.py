"""tools/train.py and tools/test.py with a detector on images that differ in size: a kill, resuming, testing."""

import json
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

pytest.importorskip('mmdet', reason="MMDetection is missing: pip install -e '.[detection]'")

ROOT = Path(__file__).parents[2]
CONFIG = """
_base_ = '{root}/configs/transfer/tiny-dab-detr-vit_1xb8-scratch-coslr-20e_shapes.py'
shapes = dict(folder='{folder}/shapes', num_train=8, num_val=4)
train_dataloader = dict(batch_size=3, dataset=shapes)
val_dataloader = dict(batch_size=3, dataset=shapes)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file='{folder}/shapes/annotations/val.json')
test_evaluator = val_evaluator
model = dict(decoder=dict(num_layers=1))
train_cfg = dict(max_epochs=2, val_interval=1)
"""


@HOOKS.register_module()
class KillDetectorInSecondEpoch(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 4:
            raise KeyboardInterrupt


def weights(folder):
    return torch.load(folder / 'epoch_2.pth', weights_only=False)['state_dict']


@pytest.mark.slow
def test_a_detector_trains_is_killed_resumes_and_is_tested_on_images_of_different_sizes(tmp_path, run_tool):
    config = tmp_path / 'detector.py'
    config.write_text(CONFIG.format(root=ROOT, folder=tmp_path))
    run_tool('train', config, '--work-dir', tmp_path / 'whole')
    annotations = json.loads((tmp_path / 'shapes/annotations/train.json').read_text())
    assert len({(image['height'], image['width']) for image in annotations['images']}) > 4
    assert any(thing['iscrowd'] for thing in annotations['annotations'])

    killed = tmp_path / 'killed.py'
    hooks = "custom_hooks = [dict(type='StepSeedHook'), dict(type='KillDetectorInSecondEpoch')]\n"
    killed.write_text(config.read_text() + hooks)
    with pytest.raises(KeyboardInterrupt):
        run_tool('train', killed, '--work-dir', tmp_path / 'parts')
    assert not (tmp_path / 'parts/epoch_2.pth').exists()
    run_tool('train', config, '--work-dir', tmp_path / 'parts', '--resume')
    expected, found = weights(tmp_path / 'whole'), weights(tmp_path / 'parts')
    assert all(torch.equal(found[name], expected[name]) for name in expected)

    metrics = tmp_path / 'metrics.json'
    arguments = ['--work-dir', tmp_path / 'test', '--out', metrics, '--out-item', 'metrics']
    run_tool('test', config, tmp_path / 'parts/epoch_2.pth', *arguments)
    log = max((tmp_path / 'whole').glob('*/vis_data/scalars.json')).read_text().splitlines()
    trained = next(json.loads(line) for line in reversed(log) if 'coco/bbox_mAP' in line)
    tested = json.loads(metrics.read_text())
    assert (
        tested['coco/bbox_mAP'] == trained['coco/bbox_mAP']
        and tested['coco/bbox_mAP_50'] == trained['coco/bbox_mAP_50']
    )
