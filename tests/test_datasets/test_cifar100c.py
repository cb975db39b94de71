"""CIFAR-100-C on files of its layout: which image a sample holds, and the accuracy for each corruption."""

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS
from mmpretrain.structures import DataSample

from mergemix_mm.datasets import CIFAR100C
from mergemix_mm.datasets.cifar100c import CORRUPTIONS
from mergemix_mm.evaluation import CorruptionError
from mergemix_mm.paths import config_path

LABELS = [7, 99, 0]


@pytest.fixture
def folder(tmp_path):
    """Three images at each severity, whose pixels tell the file, the severity and the image; two corruptions."""
    for number, name in enumerate(('fog', 'snow')):
        rows = [100 * number + 10 * severity + row for severity in range(1, 6) for row in range(3)]
        images = np.broadcast_to(np.array(rows, dtype=np.uint8)[:, None, None, None], (15, 4, 5, 3))
        np.save(tmp_path / f'{name}.npy', images)
    np.save(tmp_path / 'labels.npy', np.array(LABELS * 5))
    return tmp_path


def test_samples_are_those_of_the_corruptions_and_severities(folder):
    dataset = CIFAR100C(str(folder), corruptions=['snow', 'fog'], severities=[5, 2])
    assert len(dataset) == 12 and len(dataset.metainfo['classes']) == 100
    found = [dataset[index] for index in range(12)]
    assert [int(one['img'][0, 0, 0]) for one in found] == [*range(150, 153), *range(120, 123), 50, 51, 52, 20, 21, 22]
    assert [one['gt_label'] for one in found] == LABELS * 4
    assert (found[3]['corruption'], found[3]['severity'], found[3]['img_shape']) == ('snow', 2, (4, 5))
    found[0]['img'][:] = 0  # Memory of its own, which transforms may write to.
    assert dataset[0]['img'].min() == 150


def test_corruption_and_severity_reach_the_metric_through_the_pipeline_of_the_config(folder):
    cfg = Config.fromfile(config_path('_base_/datasets/cifar100-c.py')).test_dataloader.dataset
    cfg.update(data_root=str(folder), corruptions=['fog', 'snow'], _scope_='mmpretrain')
    dataset = DATASETS.build(cfg)
    packed = dataset[0]
    assert packed['inputs'].shape == (3, 224, 224) and packed['data_samples'].corruption == 'fog'
    metric = CorruptionError()
    for index in range(30):
        sample = dataset[index]['data_samples']
        # Right for all of fog; for snow only at severity 1.
        right = sample.corruption == 'fog' or sample.severity == 1
        metric.process(None, [sample.set_pred_label(sample.gt_label if right else sample.gt_label + 1).to_dict()])
    assert metric.evaluate(30) == pytest.approx(
        {
            'corruption/mean_error': 40,
            'corruption/mean_top1': 60,
            'corruption/top1_fog': 100,
            'corruption/top1_snow': 20,
        }
    )


def test_all_corruptions_of_the_benchmark_are_read_and_a_missing_file_is_named(folder):
    with pytest.raises(FileNotFoundError, match=r'there is no file .*gaussian_noise\.npy; unpack CIFAR-100-C\.tar'):
        CIFAR100C(str(folder))
    assert len(CORRUPTIONS) == 15
    (folder / 'labels.npy').unlink()
    with pytest.raises(FileNotFoundError, match=r'labels\.npy'):
        CIFAR100C(str(folder), corruptions=['fog'])


@pytest.mark.parametrize(
    ('options', 'match'),
    [
        (dict(corruptions=['rain']), r"corruptions=\['rain'\] must be a list with some of \['brightness'"),
        (dict(corruptions='fog'), "corruptions='fog' must be a list"),
        (dict(severities=[0]), r'severities=\[0\] must be a list with some of \[1, 2, 3, 4, 5\]'),
    ],
)
def test_unknown_corruptions_and_severities_are_refused(folder, options, match):
    with pytest.raises(ValueError, match=match):
        CIFAR100C(str(folder), **options)


@pytest.mark.parametrize(
    ('name', 'content', 'match'),
    [
        ('fog', np.zeros((15, 4, 5, 3)), r'fog\.npy holds float64 \[15, 4, 5, 3\], where .* uint8 \[15, height'),
        ('fog', np.zeros((12, 4, 5, 3), np.uint8), r'fog\.npy holds uint8 \[12, 4, 5, 3\]'),
        ('labels', np.zeros(14, np.int64), r'labels\.npy has the shape \[14\]'),
        ('fog', np.array([None] * 15), r'fog\.npy is not a NumPy file that can be read'),
    ],
    ids=['floats', 'too few', 'labels', 'pickled'],
)
def test_other_layouts_are_refused(folder, name, content, match):
    np.save(folder / f'{name}.npy', content, allow_pickle=True)
    with pytest.raises(ValueError, match=match):
        CIFAR100C(str(folder), corruptions=['fog'])


def test_the_metric_says_how_the_corruption_reaches_it():
    sample = DataSample().set_gt_label(0).set_pred_label(0)
    with pytest.raises(KeyError, match="meta_keys=.'corruption', 'severity'."):
        CorruptionError().process(None, [sample.to_dict()])
