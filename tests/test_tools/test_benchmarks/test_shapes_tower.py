"""Tests of tools/benchmarks/shapes_tower.py: the labels it trains on, the colours it hides, the folder it saves."""

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPVisionModel

from mergemix_mm.toy import ShapesConversationDataset, shapes_processor

pytestmark = pytest.mark.slow


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / 'tools' / 'benchmarks'))
    threads = torch.get_num_threads()
    yield importlib.import_module('shapes_tower')
    torch.set_num_threads(threads)


@pytest.fixture
def reading(tool):
    return importlib.import_module('lib.tower')


def test_images_are_those_of_the_processor_and_labels_those_of_the_scene(reading):
    images, colors, shapes, masks = next(reading.batches('val', 1, 4, 48, seed=3))
    dataset = ShapesConversationDataset('val', length=4, seed=3)
    processor = shapes_processor().image_processor
    for i in range(4):
        record = dataset.get_data_info(i)
        expected = processor(record['images'], return_tensors='pt')['pixel_values'][0]
        torch.testing.assert_close(images[i], expected, rtol=0, atol=1e-5)
        np.testing.assert_array_equal(masks[i], record['gt_mask'])
        things = {thing['cell']: (thing['color'], thing['shape']) for thing in record['things']}
        for cell in range(9):
            found = int(colors[i, cell]), int(shapes[i, cell])
            if divmod(cell, 3) in things:
                assert (reading.COLORS[found[0] - 1], reading.SHAPES[found[1] - 1]) == things[divmod(cell, 3)]
            else:
                assert found == (0, 0)


def test_mixed_channels_stay_within_the_range_of_each_pixel(reading):
    torch.manual_seed(0)
    images = torch.rand(8, 3, 4, 4)
    mixed = reading.mix_channels(images)
    assert (mixed <= images.amax(1, keepdim=True) + 1e-6).all() and (mixed >= images.amin(1, keepdim=True) - 1e-6).all()
    assert (mixed - images).abs().mean() > 0.05


def test_shape_heads_never_see_true_colours(reading):
    torch.manual_seed(0)
    tower, heads = reading.CLIPVisionModel(reading.tower_config()), reading.AttributeHeads(96)
    images, colors, shapes, _ = next(reading.batches('train', 1, 6, 48))
    output = tower(images)
    loss = heads.loss(output, colors, shapes, 4)
    other_colors, other_shapes = colors.clone(), shapes.clone()
    other_colors[4:], other_shapes[:4] = 0, 0
    assert heads.loss(output, other_colors, other_shapes, 4) == loss
    other_shapes[4:] = 0
    assert heads.loss(output, colors, other_shapes, 4) != loss


def test_quick_run_saves_a_tower_for_plain_transformers(tool, reading, tmp_path):
    results = tool.main(['--quick', '--threads', '1', '--save', str(tmp_path), '--output', str(tmp_path / 'a.json')])
    assert [row['layer'] for row in results['saliency']] == [2, 3, 4] and (tmp_path / 'a.json').is_file()
    loaded = CLIPVisionModel.from_pretrained(tmp_path)
    tower, _ = reading.pretrain_tower(3)
    for (name, one), two in zip(loaded.state_dict().items(), tower.state_dict().values(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0, msg=name)


def test_a_short_training_reads_colours(tool, reading):
    tower, heads = reading.pretrain_tower(40)
    assert tool.measure(tower, heads, 'train', 64)['color'] > 0.5
