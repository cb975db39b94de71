"""Images of records: read as a viewer shows them, and every image that cannot be read is an unusable record."""

import base64
import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from mergemix_mm.datasets import ConversationDataset, RecordError, TaskRecordDataset, TextToImageDataset


def stored(image, kind='PNG', **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def bomb(width=60000, height=60000):
    def chunk(name, content):
        return struct.pack('>I', len(content)) + name + content + struct.pack('>I', zlib.crc32(name + content))

    header = chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 1, 0, 0, 0, 0))
    return b'\x89PNG\r\n\x1a\n' + header + chunk(b'IDAT', zlib.compress(b'\0' * 10**6)) + chunk(b'IEND', b'')


def damaged_avif():
    content = stored(Image.effect_noise((64, 64), 90).convert('RGB'), 'AVIF')
    return content[: len(content) // 2]


BROKEN = {
    'eps.jpg': (lambda: stored(Image.new('RGB', (4, 4)), 'EPS'), 'it is PostScript'),
    'damaged.avif': (damaged_avif, 'cannot be read: .+'),
    'bomb.png': (bomb, '60000 x 60000 pixels, more than max_pixels=100000000|MAX_IMAGE_PIXELS'),
    'empty.jpg': (lambda: b'', r'it is empty \(0 bytes\)'),
    'page.jpg': (lambda: b'<html>404</html>', 'it is a web page'),
    'cut.jpg': (lambda: stored(Image.effect_noise((64, 64), 90), 'JPEG')[:900], 'truncated'),
    'nan.tif': (lambda: stored(Image.fromarray(np.array([[0, np.nan]], np.float32)), 'TIFF'), 'NaN or infinity'),
}


@pytest.fixture
def root(tmp_path):
    Image.new('RGB', (1, 1), 'red').save(tmp_path / 'good.png')
    for name, (content, _) in BROKEN.items():
        (tmp_path / name).write_bytes(content())
    return tmp_path


def tasks(root, *images, **options):
    (root / 'tasks.jsonl').write_text('\n'.join(json.dumps(dict(image=image)) for image in images))
    return TaskRecordDataset('tasks.jsonl', data_root=str(root), **options)


@pytest.mark.parametrize('name', BROKEN)
def test_an_image_that_cannot_be_read_names_the_record_or_is_skipped(root, name):
    with pytest.raises(RecordError, match=rf'tasks\.jsonl:2: image .*{name} .*({BROKEN[name][1]})') as caught:
        tasks(root, 'good.png', name)[1]
    assert '\n' not in str(caught.value)
    data = tasks(root, 'good.png', name, on_error='skip')
    assert data[1]['img_path'] == ['good.png'] and data.num_skipped == 1


def test_a_damaged_data_url_is_an_unusable_record_without_its_payload(root):
    payload = base64.b64encode(np.random.default_rng(0).bytes(3000)).decode()
    url = f'data:image/png;base64,{payload}'
    for image in (url, url[:-3] + '!!!', payload):
        with pytest.raises(RecordError, match=r'tasks\.jsonl:2: image ') as caught:
            tasks(root, 'good.png', image)[1]
        assert payload[:40] not in str(caught.value) and len(str(caught.value)) < 400
    assert tasks(root, 'good.png', url, on_error='skip')[1]['img_path'] == ['good.png']


def test_data_urls_are_read_and_leave_no_payload_in_the_record(root):
    url = 'data:image/png;base64,' + base64.b64encode((root / 'good.png').read_bytes()).decode()
    said = [{'from': 'human', 'value': '<image>What?'}, {'from': 'gpt', 'value': 'Red.'}]
    (root / 'talk.json').write_text(json.dumps([dict(image=url, conversations=said)]))
    (root / 'text.json').write_text(json.dumps([dict(image=url, prompt='red')]))
    sets = (
        tasks(root, url),
        ConversationDataset('talk.json', data_root=str(root)),
        TextToImageDataset('text.json', data_root=str(root)),
    )
    for data in sets:
        record = data[0]
        assert record['images'][0].getpixel((0, 0)) == (255, 0, 0)
        assert record['img_path'][0].startswith(f'data:image/png;base64,... ({len(url)} characters, ')
        record.pop('images')
        assert url[-30:] not in repr(record)


def test_images_by_absolute_path_file_url_and_prefix(root):
    (root / 'images').mkdir()
    Image.new('RGB', (1, 1), 'lime').save(root / 'images/good.png')
    data = tasks(
        root, 'good.png', str(root / 'good.png'), f'file://{root}/good.png', data_prefix=dict(img_path='images')
    )
    assert [data[i]['images'][0].getpixel((0, 0)) for i in range(3)] == [(0, 255, 0), (255, 0, 0), (255, 0, 0)]


def test_the_background_and_the_limit_are_options(root):
    Image.new('LA', (3, 2), (0, 0)).save(root / 'clear.png')
    for options, colour in ((dict(), (255,) * 3), (dict(background='black'), (0,) * 3)):
        assert tasks(root, 'clear.png', **options)[0]['images'][0].getpixel((0, 0)) == colour
    assert tasks(root, 'clear.png', max_pixels=6)[0]['images'][0].size == (3, 2)
    with pytest.raises(RecordError, match='3 x 2 pixels, more than max_pixels=5'):
        tasks(root, 'clear.png', max_pixels=5)[0]
    for options, found in ((dict(background='blurred'), "background='blurred'"), (dict(max_pixels=0), 'max_pixels=0')):
        with pytest.raises(ValueError, match=f'TaskRecordDataset: {found}'):
            tasks(root, 'clear.png', **options)
