"""Drawn shapes in COCO's format: what the files hold, that they repeat, and that half a set never appears."""

import json
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from mergemix_mm.datasets import shapes_coco, write_shapes_coco
from mergemix_mm.toy.shapes_drawing import PALETTE
from mergemix_mm.toy.shapes_scene import SHAPES

SMALL = dict(num_train=5, num_val=3, image_size=48)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    target = tmp_path_factory.mktemp('drawn') / 'shapes'
    write_shapes_coco(target, num_train=60, num_val=3, image_size=64, varied=False)
    return target


@pytest.fixture(scope='module')
def varied(tmp_path_factory):
    target = tmp_path_factory.mktemp('drawn') / 'varied'
    write_shapes_coco(target, num_train=64, num_val=8, image_size=64)
    return target


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob('*')) if path.is_file()}


def test_layout_is_that_of_coco(folder):
    coco = COCO(folder / 'annotations/train.json')
    assert [category['name'] for category in coco.loadCats(coco.getCatIds())] == list(SHAPES)
    assert len(coco.getImgIds()) == 60 and len(COCO(folder / 'annotations/val.json').getImgIds()) == 3
    for image in coco.loadImgs(coco.getImgIds()):
        pixels = np.asarray(Image.open(folder / 'train' / image['file_name']))
        assert pixels.shape == (image['height'], image['width'], 3) == (64, 64, 3)
        assert 1 <= len(coco.getAnnIds(image['id'])) <= 6


def test_boxes_are_tight_around_the_masks_and_masks_do_not_overlap(folder):
    coco = COCO(folder / 'annotations/train.json')
    for image in coco.getImgIds():
        covered = np.zeros((64, 64), dtype=int)
        for annotation in coco.loadAnns(coco.getAnnIds(image)):
            mask = coco.annToMask(annotation)
            x, y, width, height = annotation['bbox']
            inside = mask[y : y + height, x : x + width]
            assert inside.sum() == mask.sum() == annotation['area'] > 0
            assert all(inside[edge].any() for edge in (0, -1, np.s_[:, 0], np.s_[:, -1]))
            covered += mask
        assert covered.max() == 1


def test_masks_lie_on_the_pixels_of_one_colour(folder):
    coco = COCO(folder / 'annotations/train.json')
    colors = np.array(list(PALETTE.values())) / np.linalg.norm(list(PALETTE.values()), axis=1, keepdims=True)
    for annotation in coco.loadAnns(coco.getAnnIds())[:40]:
        name = coco.loadImgs(annotation['image_id'])[0]['file_name']
        pixels = np.asarray(Image.open(folder / 'train' / name))[coco.annToMask(annotation) == 1] / 255
        likeness = (pixels / np.linalg.norm(pixels, axis=1, keepdims=True)) @ colors.T
        found = np.bincount(likeness.argmax(axis=1), minlength=len(colors))
        assert found.max() >= 0.8 * len(pixels)


def test_images_of_a_varied_set_differ_in_size_and_say_so(varied):
    for split, number in (('train', 64), ('val', 8)):
        coco = COCO(varied / f'annotations/{split}.json')
        sizes = []
        for image in coco.loadImgs(coco.getImgIds()):
            with Image.open(varied / split / image['file_name']) as file:
                assert file.size == (image['width'], image['height'])
                assert file.mode == ('L' if image['id'] % 8 == 2 else 'RGB')
            assert min(file.size) >= 24 and max(file.size) <= 64
            sizes.append(file.size)
        assert len(set(sizes)) > 0.7 * number
        assert (
            min(width / height for width, height in sizes) < 0.8
            and max(width / height for width, height in sizes) > 1.25
        )


def test_a_varied_set_holds_images_with_nothing_with_crowds_and_with_things_cut_by_the_border(varied):
    coco = COCO(varied / 'annotations/train.json')
    shown = {index: coco.loadAnns(coco.getAnnIds(index)) for index in coco.getImgIds()}
    assert {index for index, things in shown.items() if not things} == set(range(3, 64, 8))
    crowds = {index: [thing['iscrowd'] for thing in things] for index, things in shown.items() if index % 8 == 1}
    assert all(flags[0] == 1 and sum(flags) == 1 for flags in crowds.values()) and [1] in crowds.values()
    assert not any(thing['iscrowd'] for index, things in shown.items() if index % 8 != 1 for thing in things)
    overhanging = 0
    for index, things in shown.items():
        image = coco.loadImgs(index)[0]
        for thing in things:
            counts = thing['segmentation']['counts']
            assert isinstance(counts, list if thing['iscrowd'] else str)
            mask = coco.annToMask(thing)
            assert mask.shape == (image['height'], image['width']) and mask.sum() == thing['area'] > 0
            x, y, width, height = thing['bbox']
            rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
            assert (x, y) == (columns[0], rows[0])
            for start, length, last, end in ((x, width, columns[-1], 'width'), (y, height, rows[-1], 'height')):
                over = 0.4 if last + 1 == image[end] else 0
                assert start + length == pytest.approx(last + 1 + over)
                overhanging += over > 0
    assert overhanging >= 6


def test_all_shapes_and_three_sizes_appear(folder):
    annotations = json.loads((folder / 'annotations/train.json').read_text())['annotations']
    assert {annotation['category_id'] for annotation in annotations} == set(range(1, len(SHAPES) + 1))
    sides = np.array([max(annotation['bbox'][2:]) for annotation in annotations])
    # Diameters are 64 to 88 % of a cell of 32, 21.3 and 16 pixels; crosses and rings may lose a pixel at an end.
    assert (sides > 19).any() and ((sides > 14.1) & (sides < 20.5)).any() and (sides < 13).any()


def test_the_same_numbers_give_the_same_files_and_others_give_others(tmp_path):
    np.random.seed(1)
    for name, more in (('a', {}), ('b', {}), ('seed', dict(seed=1)), ('longer', dict(num_train=6))):
        write_shapes_coco(tmp_path / name, **SMALL | more)
    a, b, seed, longer = (contents(tmp_path / name) for name in ('a', 'b', 'seed', 'longer'))
    assert a == b
    assert not any(a[name] == seed[name] for name in a)
    assert all(a[name] == longer[name] for name in a if name.suffix == '.png')
    assert len(set(a.values())) == len(a)  # Also between the splits.


def test_a_set_that_is_there_is_left_alone(tmp_path, monkeypatch):
    write_shapes_coco(tmp_path / 'set', **SMALL)
    monkeypatch.setattr(shapes_coco, 'draw_shapes', None)
    before = os.stat(tmp_path / 'set/annotations/val.json').st_mtime_ns
    write_shapes_coco(tmp_path / 'set', **SMALL)
    assert os.stat(tmp_path / 'set/annotations/val.json').st_mtime_ns == before


def test_an_interrupted_drawing_leaves_nothing(tmp_path, monkeypatch):
    draw, calls = shapes_coco.draw_shapes, []

    def interrupted(size, rng, **kwargs):
        calls.append(size)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return draw(size, rng, **kwargs)

    monkeypatch.setattr(shapes_coco, 'draw_shapes', interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_shapes_coco(tmp_path / 'set', **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_several_that_draw_at_once_end_with_one_set(tmp_path):
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(write_shapes_coco, tmp_path / 'set', **SMALL) for _ in range(4)]:
            done.result()
    write_shapes_coco(tmp_path / 'alone', **SMALL)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['alone', 'set']
    assert contents(tmp_path / 'set') == contents(tmp_path / 'alone')


def test_another_set_or_other_files_are_never_overwritten(tmp_path):
    write_shapes_coco(tmp_path / 'set', **SMALL)
    with pytest.raises(FileExistsError, match=r"'num_train': 5.*not with.*'num_train': 6.*name another folder"):
        write_shapes_coco(tmp_path / 'set', **SMALL | dict(num_train=6))
    with pytest.raises(FileExistsError, match=r"'varied': True.*not with.*'varied': False.*name another folder"):
        write_shapes_coco(tmp_path / 'set', **SMALL, varied=False)
    path = tmp_path / 'set/annotations/val.json'
    content = json.loads(path.read_text())
    del content['info']['settings']['varied']  # As the first versions wrote it.
    path.write_text(json.dumps(content))
    for varied in (True, False):
        with pytest.raises(FileExistsError, match=r"'seed': 0}, not with .*'varied'"):
            write_shapes_coco(tmp_path / 'set', **SMALL, varied=varied)
    (tmp_path / 'mine').mkdir()
    with pytest.raises(FileExistsError, match='mine exists and is no set of drawn shapes'):
        write_shapes_coco(tmp_path / 'mine', **SMALL)


@pytest.mark.parametrize(('key', 'value'), [('num_train', 0), ('num_val', 1.5), ('image_size', 16), ('seed', -1)])
def test_numbers_outside_their_range_are_errors(tmp_path, key, value):
    with pytest.raises(ValueError, match='varied=1 must be True or False'):
        write_shapes_coco(tmp_path / 'set', **SMALL, varied=1)
    with pytest.raises(ValueError, match=f'{key}={value} must be an integer of at least'):
        write_shapes_coco(tmp_path / 'set', **SMALL | {key: value})
    assert list(tmp_path.iterdir()) == []
