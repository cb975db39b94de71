"""tools/analysis_tools/localization.py: boxes of three kinds of files, objects after the pipeline, and its table."""

import json

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS
from PIL import Image


@pytest.fixture(scope='module')
def tool(load_tool):
    return load_tool('analysis_tools/localization')


def write_cub(root):
    """Two images in CUB's layout, with a white bird on black: (left, top, width, height)."""
    birds, size = {'a/one.jpg': (40.0, 30.0, 60.0, 20.0), 'b/one.jpg': (10.0, 60.0, 12.0, 50.0)}, (120, 160)
    for name, (left, top, width, height) in birds.items():
        pixels = np.zeros((*size, 3), dtype=np.uint8)
        pixels[int(top) : int(top + height), int(left) : int(left + width)] = 255
        (root / 'images' / name).parent.mkdir(parents=True)
        Image.fromarray(pixels).save(root / 'images' / name, quality=100)
    names = {number: name for number, name in enumerate(birds, start=1)}
    files = {
        'images.txt': names,
        'bounding_boxes.txt': {number: ' '.join(map(str, birds[name])) for number, name in names.items()},
        'image_class_labels.txt': {1: 1, 2: 2},
        'train_test_split.txt': {1: 0, 2: 0},
    }
    for name, lines in files.items():
        (root / name).write_text(''.join(f'{key} {value}\n' for key, value in lines.items()))
    return {name: [[left, top, left + width, top + height]] for name, (left, top, width, height) in birds.items()}


def test_boxes_are_read_from_the_files_of_cub_and_from_text_and_json(tool, tmp_path):
    expected = write_cub(tmp_path)
    assert tool.read_boxes(tmp_path / 'bounding_boxes.txt') == expected
    text, content = tmp_path / 'boxes.txt', tmp_path / 'boxes.json'
    text.write_text('val/a, b.jpg,1,2,3,4\n\nval/a, b.jpg,5,6,7,8.5\n')
    assert tool.read_boxes(text) == {'val/a, b.jpg': [[1, 2, 3, 4], [5, 6, 7, 8.5]]}
    content.write_text(json.dumps({'a.jpg': [1, 2, 3, 4], 'b.jpg': [[1, 2, 3, 4], [5, 6, 7, 8]]}))
    assert tool.read_boxes(content) == {'a.jpg': [[1, 2, 3, 4]], 'b.jpg': [[1, 2, 3, 4], [5, 6, 7, 8]]}


@pytest.mark.parametrize(
    ('name', 'text', 'message'),
    [
        ('boxes.txt', 'a.jpg,1,2,3,4\na.jpg,1,2,x,4\n', r"boxes.txt, line 2: .*'x'.* must be four numbers"),
        ('boxes.txt', 'a.jpg,3,2,1,4\n', 'line 1: .* is not a box: x2 <= x1'),
        ('boxes.txt', '7 1 2 3 4\n', 'there is no file .*images.txt'),
        ('boxes.json', '{"a.jpg": [1, 2, 3]}', 'boxes.json: a.jpg: .* must be four numbers'),
        ('boxes.json', '[1]', 'must map names of images to boxes'),
        ('boxes.json', '{', 'not JSON'),
    ],
)
def test_files_of_another_form_are_errors_that_name_the_line(tool, tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(SystemExit, match=message):
        tool.read_boxes(tmp_path / name)


def test_objects_pass_through_the_pipeline_of_their_images(tool, tmp_path):
    boxes = write_cub(tmp_path)
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='ResizeEdge', scale=90, edge='short', backend='pillow', interpolation='bicubic'),
        dict(type='CenterCrop', crop_size=80),
        dict(type='PackInputs'),
    ]
    cfg = dict(type='CUB', data_root=str(tmp_path), split='test', pipeline=pipeline)
    images = tool.ObjectImages(DATASETS.build(cfg | dict(_scope_='mmpretrain')), boxes)
    for number in range(2):
        packed, (mask,) = images[number]
        assert mask.shape == (80, 80)
        # The bird is white: what the mask covers is what can be seen of it after resizing and cropping.
        assert float(((packed['inputs'][0] > 127) != mask).float().mean()) < 0.005
    assert bool(images[0][1][0].any()) and not bool(images[1][1][0].any())  # The second one is cropped away.
    with pytest.raises(SystemExit, match='none for the image .*a/one.jpg'):
        tool.ObjectImages(images.dataset, {'one.png': [[1, 2, 3, 4]]})[0]


@pytest.fixture
def checkpoint(config, tmp_path):
    cfg = Config.fromfile(config)
    torch.manual_seed(0)
    path = tmp_path / 'weights.pth'
    torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), path)
    return path


def test_every_layer_and_kind_is_measured_beside_a_map_without_saliency(tool, config, checkpoint, tmp_path, capsys):
    found = tool.main([str(config), str(checkpoint), '-o', str(tmp_path / 'out')])
    rows = {(row['layer'], row['saliency']): row for row in found['rows']}
    kinds = ('attention', 'value_norm', 'mean', 'received')
    assert list(rows) == [(layer, kind) for layer in (1, 2) for kind in kinds] + [(None, 'none (uniform)')]
    uniform = rows[None, 'none (uniform)']
    assert uniform['mass_on_object'][0] == pytest.approx(uniform['area_of_object'], abs=1e-6)
    assert 0.2 < uniform['area_of_object'] < 0.6 and uniform['object_in_top20'] is None
    assert rows[1, 'attention']['mass_on_object'] == rows[1, 'mean']['mass_on_object']
    for row in rows.values():
        assert 0 <= row['top1_localization'][0] <= row['box_accuracy'][0] <= 1
    assert found['images'] == 39 and json.loads((tmp_path / 'out/weights.json').read_text())['images'] == 39
    assert capsys.readouterr().out.count('\n|') == 11


def test_the_threshold_and_the_layers_can_be_given(tool, config, checkpoint, tmp_path):
    command = [str(config), str(checkpoint), '-o', str(tmp_path), '--num-images', '4']
    found = tool.main([*command, '--threshold', '0.4', '--layers', '2', '--saliency', 'mean', '--num-merge', '0'])
    assert [(row['layer'], row['threshold']) for row in found['rows']] == [(2, 0.4), (None, None)]
    with pytest.raises(SystemExit, match=r'--layers 3: layers that can score are \[1, 2\]'):
        tool.main([*command, '--layers', '3'])
