"""Errors that end a tool with one message: unreadable images, bad records, full disks; and whether the advice works."""

import errno
import io
import re

import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config
from mmengine.registry import init_default_scope as use_scope
from mmpretrain.datasets import CustomDataset
from PIL import Image
from torch.utils.data import DataLoader

from mergemix_mm.engine.launch import LaunchError, explain_corrupt_images, explain_stops
from mergemix_mm.utils.text import DataError

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8))


def stored(kind):
    buffer = io.BytesIO()
    PICTURE.save(buffer, kind)
    return buffer.getvalue()


def write(path, kind):
    jpeg, png = stored('JPEG'), stored('PNG')
    contents = dict(
        empty=b'',
        zeros=b'\0' * 500,
        text=b'just words',
        page=b'<html>404</html>',
        cut_jpeg=jpeg[: len(jpeg) // 2],
        cut_header=jpeg[:100],
        cut_png=png[: len(png) // 2],
        forbidden=jpeg,
    )
    path.unlink()
    if kind in contents:
        path.write_bytes(contents[kind])
    elif kind == 'folder':
        path.mkdir()


KINDS = {
    'empty': r'it is empty \(0 bytes\)',
    'zeros': 'first bytes are all 0',
    'text': 'it is text, not an image',
    'page': 'it is a web page',
    'cut_jpeg': 'truncated',
    'cut_header': 'Truncated|damaged',
    'cut_png': 'truncated',
    'folder': 'is a folder, not a file',
    'missing': 'does not exist',
    'forbidden': 'Permission denied',
}


def dataset(folder, test_mode=False, **loader):
    use_scope('mmpretrain')
    pipeline = [dict(type='LoadImageFromFile', **loader), dict(type='Resize', scale=8), dict(type='PackInputs')]
    return CustomDataset(data_root=str(folder), pipeline=pipeline, test_mode=test_mode, max_refetch=50)


@pytest.fixture(params=KINDS)
def broken(request, tmp_path, monkeypatch):
    """A folder of four images, the last of which cannot be read; its path; and what is said about it."""
    (tmp_path / 'class').mkdir()
    paths = [tmp_path / f'class/{number}.jpg' for number in range(4)]
    for path in paths:
        PICTURE.save(path)
    data = dataset(tmp_path)
    write(paths[-1], request.param)
    if request.param == 'forbidden':  # Root may read everything.
        real = open

        def refuse(file, *args, **kwargs):
            if str(file) == str(paths[-1]):
                raise PermissionError(13, 'Permission denied', str(file))
            return real(file, *args, **kwargs)

        monkeypatch.setattr('builtins.open', refuse)
    return data, paths[-1], KINDS[request.param]


@pytest.mark.parametrize('num_workers', [0, 1])
def test_a_file_that_is_no_image_ends_in_one_line_with_its_name(broken, num_workers):
    data, path, found = broken
    if num_workers and found not in (KINDS['empty'], KINDS['text'], KINDS['missing']):
        pytest.skip('A process costs seconds; three of the errors are brought home by one.')
    with pytest.raises(LaunchError) as caught, explain_corrupt_images('train', 'val'):
        list(DataLoader(data, batch_size=2, num_workers=num_workers, collate_fn=list))
    message = str(caught.value)
    assert re.search(rf'^{path}: .*({found})', message) and '\n' not in message
    assert 'ignore_empty=True) in train_dataloader.dataset.pipeline' in message


def test_the_advice_to_skip_it_works_for_every_kind(broken, tmp_path):
    data, path, _ = broken
    with pytest.raises(LaunchError) as caught, explain_corrupt_images('train'):
        data[3]
    advice = re.search(r"dict\(type='LoadImageFromFile', (.*?)\) in", str(caught.value))[1]
    data.pipeline.transforms[0] = LoadImageFromFile(**eval(f'dict({advice})'))
    with explain_corrupt_images('train'):
        batches = list(DataLoader(data, batch_size=2, collate_fn=list))
    paths = [sample['data_samples'].img_path for batch in batches for sample in batch]
    assert len(paths) == 4 and str(path) not in paths


def test_evaluation_is_not_told_to_skip(broken):
    """With ``ignore_empty`` a dataset in test mode would stop with another error."""
    data, path, _ = broken
    data.test_mode = True
    remedy = 'Restore it, or take it out of the annotations$'
    with pytest.raises(LaunchError, match=remedy) as caught, explain_corrupt_images('test'):
        data[3]
    assert str(caught.value).startswith(f'{path}: ')


def test_an_image_that_only_opencv_cannot_read_gets_the_advice_of_its_own(tmp_path):
    (tmp_path / 'class').mkdir()
    path = tmp_path / 'class/0.jpg'
    PICTURE.save(path, 'JPEG')
    data = dataset(tmp_path)
    PICTURE.convert('RGB').save(path, 'MPO')
    data.pipeline.transforms[0].imdecode_backend = 'nothing'
    remedy = r"ValueError: .*imdecode_backend='pillow'\) may read it"
    with pytest.raises(LaunchError, match=remedy), explain_corrupt_images('train'):
        data[0]


def test_other_errors_and_the_transform_stay_as_they_are(tmp_path):
    before = LoadImageFromFile.transform
    with pytest.raises(ValueError, match='^another$'), explain_corrupt_images('train'):
        raise ValueError('another')
    with pytest.raises(KeyError, match='img_path'), explain_corrupt_images('train'):
        LoadImageFromFile().transform({})
    assert LoadImageFromFile.transform is before


def test_a_record_that_cannot_be_used_ends_a_tool_with_one_line():
    with pytest.raises(LaunchError) as caught, explain_corrupt_images('train'):
        raise DataError('data.json:3: turn 2 is an empty answer')
    assert str(caught.value) == (
        'data.json:3: turn 2 is an empty answer. List all such records with tools/check_data.py, and repair them, or '
        "pass over them with on_error='skip' of the dataset"
    )
    with pytest.raises(LaunchError) as caught, explain_corrupt_images('test'):
        raise DataError('data.json:3: malformed JSON.')
    assert 'skip' not in str(caught.value) and 'JSON. List' in str(caught.value)


def test_a_run_that_cannot_go_on_says_so_in_one_line(tmp_path):
    cfg = Config(dict(work_dir=str(tmp_path)))
    with (
        pytest.raises(LaunchError, match=f'cannot write {tmp_path}: No space left on device, .* GB free'),
        explain_stops(cfg),
    ):
        raise OSError(errno.ENOSPC, 'No space left on device')
    with pytest.raises(LaunchError, match='the loss is NaN'), explain_stops(cfg):
        raise FloatingPointError('the loss is NaN')
    for other in (ValueError('other'), PermissionError(errno.EACCES, 'denied', 'data/image.jpg')):
        with pytest.raises(type(other)), explain_stops(cfg):
            raise other
