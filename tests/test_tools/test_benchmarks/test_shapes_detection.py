"""The benchmark of detectors on drawn shapes: what its classifiers see, what a detector starts from, that it runs."""

import pytest
import torch

pytest.importorskip('mmdet', reason="MMDetection is missing: pip install -e '.[detection]'")

from mergemix_mm.missing_ops import INSTALL, has_ops

needs_ops = pytest.mark.skipif(not has_ops(), reason=f'Mask R-CNN needs the compiled ops of onedl-mmcv: {INSTALL}')


def test_the_classifiers_see_every_shape_and_never_the_images_of_the_test(load):
    training = load('lib.detection')
    data, again, test = (training.draw_crops(60, seed) for seed in (0, 0, 2**31))
    assert torch.equal(data.images, again.images) and torch.equal(data.labels, again.labels)
    assert data.images.shape == (60, 3, 48, 48) and sorted(set(data.labels.tolist())) == list(range(6))
    assert not any(torch.equal(image, other) for image in data.images for other in test.images[:5])


@needs_ops
@pytest.mark.parametrize('name', ['ViT', 'ConvNeXt'])
def test_a_frozen_encoder_arrives_in_the_detector_and_stays_as_it_is(load, tmp_path, name):
    training = load('lib.detection')
    encoder = training.build_classifier(name, None, seed=3).backbone
    torch.save(encoder.state_dict(), tmp_path / 'encoder.pth')
    model = training.build_detector([(name, tmp_path / 'encoder.pth')], mixed=True)
    dataset = training.open_dataset(tmp_path / 'shapes', 'train', num_train=4, num_val=2)
    neck = model.neck[0].projection[0].weight.detach().clone()
    training.train_detector(model, dataset, steps=2, seed=0, batch_size=2)
    found = model.backbone.branches[0].encoder.state_dict()
    assert all(torch.equal(found[key], value) for key, value in encoder.state_dict().items() if key != 'pos_embed')
    assert not torch.equal(model.neck[0].projection[0].weight, neck)


@needs_ops
def test_a_backbone_that_merges_nothing_finds_what_the_plain_one_finds(load):
    training = load('lib.detection')
    plain = training.build_detector([], mixed=False)
    merged, images = training.build_detector([], mixed=False, num_merge=0.5), torch.randn(1, 3, 96, 96)
    merged.load_state_dict(plain.state_dict())
    plain.eval(), merged.eval()
    with torch.no_grad():
        assert not torch.allclose(merged.extract_feat(images)[2], plain.extract_feat(images)[2], atol=1e-2)
        merged.backbone.num_merge = 0
        torch.testing.assert_close(merged.extract_feat(images)[2], plain.extract_feat(images)[2], atol=1e-4, rtol=1e-4)


@needs_ops
def test_runs_are_paired_stored_and_not_repeated(load, tmp_path, monkeypatch, capsys):
    benchmark, output = load('shapes_detection'), tmp_path / 'runs.json'
    arms = ('trained plainly', 'frozen ViT')
    monkeypatch.setattr(benchmark, 'ARMS', {name: benchmark.ARMS[name] for name in arms})
    runs = benchmark.main(['--quick', '--output', str(output)])
    assert set(runs) == {f'{arm}/{seed}' for arm in arms for seed in (0, 1)}
    assert set(runs['trained plainly/0']) - set(runs['frozen ViT/0']) == {
        f'{key}_merged_{share}' for key in ('bbox', 'segm') for share in (30, 50)
    }
    shown = capsys.readouterr().out
    assert '| backbone, neck, RPN ' in shown and 'box mAP %, 30% merged' in shown
    monkeypatch.setattr(benchmark, 'run_detector', None)
    assert benchmark.main(['--quick', '--output', str(output)]) == runs
