"""Tests of ConversationDataset and of what all record datasets share."""

import base64
import json
import pickle

import numpy as np
import pytest
from mmengine.registry import DATASETS
from PIL import Image
from torch.utils.data import DataLoader

from mergemix_mm.datasets import ConversationDataset, RecordError


def turns(question, answer):
    return [{'from': 'human', 'value': question}, {'from': 'gpt', 'value': answer}]


@pytest.fixture
def root(tmp_path):
    """Two good images and three bad ones."""
    folder = tmp_path / 'images'
    folder.mkdir()
    for number in range(2):
        Image.new('RGB' if number else 'L', (4 + number, 6), 90).save(folder / f'good{number}.png')
    whole = (folder / 'good1.png').read_bytes()
    Image.effect_noise((64, 64), 90).save(folder / 'cut.jpg')
    (folder / 'cut.jpg').write_bytes((folder / 'cut.jpg').read_bytes()[:500])
    (folder / 'empty.png').write_bytes(b'')
    (folder / 'broken.png').write_bytes(whole[:30] + b'\0' * 9 + whole[39:])
    return tmp_path


def dataset(root, records, name='data.jsonl', **kwargs):
    (root / name).write_text('\n'.join(json.dumps(record) for record in records))
    kwargs = dict(data_prefix=dict(img_path='images')) | kwargs
    return DATASETS.build(dict(type='ConversationDataset', ann_file=name, data_root=str(root), **kwargs))


def image_record(name, **kwargs):
    return dict(image=name, conversations=turns('<image>\nWhat?', 'It is a thing.'), **kwargs)


TEXT = dict(conversations=turns('Hi', 'Hello'), id='text')


def test_a_record_holds_messages_images_source_and_the_other_keys(root):
    data = dataset(root, [TEXT, image_record('good0.png', id='one', category='x')])
    record = data[1]
    image = dict(type='image')
    assert record['messages'] == [
        dict(role='user', content=[image, dict(type='text', text='What?')]),
        dict(role='assistant', content=[dict(type='text', text='It is a thing.')]),
    ]
    assert [(image.size, image.mode) for image in record['images']] == [((4, 6), 'RGB')]
    assert record['source'] == f'{root}/data.jsonl:2'
    assert (record['id'], record['category'], record['img_path']) == ('one', 'x', ['good0.png'])
    assert data[0]['images'] == [] and len(data) == 2
    assert data.modalities.tolist() == [False, True] and data.modalities.dtype == bool


def test_images_are_in_the_order_of_their_placeholders(root):
    data = dataset(root, [dict(images=['good1.png', 'good0.png'], conversations=turns('<image><image>Which?', 'This'))])
    assert [image.size for image in data[0]['images']] == [(5, 6), (4, 6)]


def test_rejected_images_are_loaded_like_images(root):
    record = dict(image_record('good1.png'), rejected_images=['good0.png'])
    found = dataset(root, [record])[0]
    assert [image.size for image in found['images']] == [(5, 6)]
    assert [image.size for image in found['rejected_images']] == [(4, 6)]
    assert found['rejected'] == found['messages']


def test_absolute_paths_need_no_prefix(root):
    data = dataset(root, [image_record(f'file://{root}/images/good0.png')], data_prefix=None)
    assert data[0]['images'][0].size == (4, 6)


@pytest.mark.parametrize(
    'record, message',
    [
        (image_record('none.png'), r'images/none\.png .*data_root and data_prefix'),
        (image_record('broken.png'), r'broken\.png'),
        (image_record('https://x.org/a.png'), r'https://x\.org/a\.png is a web address'),
        (dict(conversations=[{'from': 'alien', 'value': 'x'}]), "'alien'"),
        (dict(conversations=turns('<image> <image>', 'x'), image='good0.png'), '2 image placeholders, but 1 images'),
        (dict(conversations=7), 'found 7'),
    ],
)
def test_an_unusable_record_names_file_and_line(root, record, message):
    data = dataset(root, [TEXT, record])
    data[0]
    with pytest.raises(RecordError, match=rf'^{root}/data\.jsonl:2: .*{message}'):
        data[1]


def test_skipping_takes_the_next_usable_record_of_the_modality_and_counts(root, caplog):
    good = [image_record('good0.png', id=0), image_record('good1.png', id=1)]
    records = [good[0], image_record('none.png'), TEXT, image_record('cut.jpg'), good[1], dict(TEXT, conversations=[])]
    data = dataset(root, records, on_error='skip')
    assert data.num_skipped == 0
    assert [data[index]['id'] for index in range(5)] == [0, 1, 'text', 1, 1]
    assert data.num_skipped == 2
    assert data[5]['id'] == 'text'  # beginning again at the start of the file
    assert data.num_skipped == 3
    assert [data[index]['id'] for index in range(6)] == [0, 1, 'text', 1, 1, 'text']
    assert data.num_skipped == 3


def test_skipping_does_not_depend_on_what_was_read_before(root):
    records = [image_record('none.png'), image_record('empty.png'), image_record('good0.png', id=0), TEXT]
    forwards, backwards = (dataset(root, records, on_error='skip') for _ in range(2))
    first = [forwards[index]['id'] for index in range(4)]
    assert first == [backwards[index]['id'] for index in reversed(range(4))][::-1] == [0, 0, 0, 'text']


def test_skipped_records_are_warned_about_first_by_text_then_by_total(root, monkeypatch):
    lines = []
    monkeypatch.setattr(
        'mergemix_mm.datasets.base.print_log', lambda text, **kwargs: lines.append((text, kwargs['level']))
    )
    data = dataset(root, [image_record(f'none{index}.png') for index in range(12)] + [image_record('good0.png')],
                   on_error='skip')  # fmt: skip
    data[0]
    texts = [text for text, level in lines if level == 30]
    assert len(texts) == len(lines) == 6
    assert 'data.jsonl:1: image' in texts[0] and '1 so far' in texts[0]
    assert 'data.jsonl:5: image' in texts[4] and 'only counted' in texts[4]
    assert 'ConversationDataset: 10 of 13' in texts[5]
    assert data.num_skipped == 12


def test_nothing_usable_is_an_error(root):
    data = dataset(root, [image_record('none.png'), image_record('empty.png'), TEXT], on_error='skip')
    for _ in range(2):
        with pytest.raises(RecordError, match='with images .*2 failed'):
            data[1]
    assert data[2]['id'] == 'text'


def test_record_errors_of_the_pipeline_are_treated_alike_and_others_are_not(root):
    def refuse_short(record):
        if record['id'] == 0:
            raise RecordError(f'{record["source"]}: too short')
        return record['id']

    records = [dict(TEXT, id=0), dict(TEXT, id=1)]
    data = dataset(root, records, on_error='skip', pipeline=[refuse_short])
    assert data[0] == 1 and data.num_skipped == 1
    with pytest.raises(RecordError, match=r'data\.jsonl:1: too short'):
        dataset(root, records, pipeline=[refuse_short])[0]
    with pytest.raises(RecordError, match=r'data\.jsonl:2: .*None'):
        dataset(root, records, pipeline=[lambda record: None])[1]
    with pytest.raises(ZeroDivisionError):
        dataset(root, records, on_error='skip', pipeline=[lambda record: 1 / 0])[0]


def test_workers_share_the_count(root):
    records = [image_record('none.png' if index % 3 else 'good0.png', id=index) for index in range(12)]
    data = dataset(root, records, on_error='skip', pipeline=[lambda record: record['id']])
    found = [int(one) for one in DataLoader(data, batch_size=None, num_workers=2)]
    assert found == [0, 3, 3, 3, 6, 6, 6, 9, 9, 9, 0, 0]
    assert data.num_skipped == 8


def test_a_pickled_copy_yields_the_same(root):
    data = dataset(root, [image_record('none.png'), image_record('good0.png', id=0)], on_error='skip')
    data[0]
    copy = pickle.loads(pickle.dumps(data))
    assert copy.num_skipped == 1 and copy[0]['id'] == 0


def test_evaluation_never_replaces_records_and_may_end_with_a_question(root):
    with pytest.raises(ValueError, match=r"on_error='skip'.*test_mode=True"):
        dataset(root, [TEXT], on_error='skip', test_mode=True)
    question = dict(conversations=turns('Hi', 'x')[:1], gt_answer='Hello')
    assert dataset(root, [question], test_mode=True)[0]['gt_answer'] == 'Hello'


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(on_error='ignore'), "on_error='ignore'"),
        (dict(data_prefix=dict(img='x')), r"data_prefix has \['img'\]"),
    ],
)
def test_bad_arguments_name_the_key(root, kwargs, message):
    with pytest.raises(ValueError, match=message):
        dataset(root, [TEXT], **kwargs)


def test_missing_empty_and_malformed_files(root):
    with pytest.raises(FileNotFoundError, match=r'none\.json'):
        ConversationDataset('none.json', data_root=str(root))
    (root / 'empty.json').write_text('[]')
    with pytest.raises(ValueError, match='empty.json'):
        ConversationDataset('empty.json', data_root=str(root))
    (root / 'bad.json').write_text('[\n{"conversations": []},\n{"a" 1}]')
    for on_error in ('raise', 'skip'):
        with pytest.raises(ValueError, match=r'bad\.json:3: .*column 6'):
            ConversationDataset('bad.json', data_root=str(root), on_error=on_error)


def test_modalities_come_from_the_index_alone(root):
    data = dataset(root, [image_record('none.png'), TEXT, dict(TEXT, images=[])])
    np.testing.assert_array_equal(data.modalities, [True, False, False])


def test_keys_that_mean_nothing_are_counted_and_named_once(root, monkeypatch):
    lines = []
    monkeypatch.setattr('mergemix_mm.datasets.io.records.print_log', lambda text, **kwargs: lines.append(text))
    records = [dict(TEXT, **{'quelle é': 1, '漢': 2, 'loss_type': 'x'}), dict(TEXT, 漢=3, videos=[], system='S')]
    data = dataset(root, records)
    assert data.records.other_keys == {'id': 2, '漢': 2, 'quelle é': 1, 'loss_type': 1}
    assert len(lines) == 1 and 'id (2), 漢 (2)' in lines[0]
    (root / 'raw.jsonl').write_text(json.dumps(records[0], ensure_ascii=False))
    assert '漢' in ConversationDataset('raw.jsonl', data_root=str(root)).records.other_keys
    assert data[1]['漢'] == 3 and 'videos' not in data[1] and 'system' not in data[1]


@pytest.mark.parametrize('value', ['data:image/png;base64,{}', dict(bytes='{}', path=None)])
def test_images_inside_the_file_are_read_and_never_quoted(root, value):
    payload = base64.b64encode((root / 'images' / 'good1.png').read_bytes()).decode()

    def image(text):
        return json.loads(json.dumps(value).replace('{}', text))

    record = dataset(root, [dict(image_record('x'), image=image(payload))])[0]
    assert record['images'][0].size == (5, 6) and payload not in str(record['img_path'])
    for broken in (payload[:60], 'QUJD' * 30_000, '!!!' * 50):
        with pytest.raises(RecordError, match=rf'^{root}/data\.jsonl:1: image ') as error:
            dataset(root, [dict(image_record('x'), image=image(broken))])[0]
        assert len(str(error.value)) < 500 and broken[-40:] not in str(error.value)


def test_an_error_in_a_worker_is_one_line(root):
    data = dataset(root, [image_record('none.png')])
    with pytest.raises(RecordError) as error:
        list(DataLoader(data, batch_size=None, num_workers=1))
    assert str(error.value) == (
        f'{root}/data.jsonl:1: image {root}/images/none.png does not exist; look at data_root and '
        'data_prefix=dict(img_path=...)'
    )


@pytest.mark.parametrize(
    'line',
    ['{"id": ' + '9' * 5000 + '}', '{"a": ' + '[' * 10_000 + ']' * 10_000 + '}', '{"a": "\\ud800"}', '{"a": NaN}'],
)
def test_a_record_that_cannot_be_parsed_is_skipped_like_others(root, line):
    (root / 'data.jsonl').write_text(line + '\n' + json.dumps(dict(TEXT, id=1)))
    data = ConversationDataset('data.jsonl', data_root=str(root), on_error='skip')
    assert data[0]['id'] == 1 and data.num_skipped == 1
    with pytest.raises(RecordError, match=r'data\.jsonl:1: '):
        ConversationDataset('data.jsonl', data_root=str(root))[0]


def test_a_record_never_reaches_a_registry(root, monkeypatch):
    monkeypatch.chdir(root)
    evil = dict(type='os.system', command='touch ran')
    records = [
        dict(type='os.system', command='touch ran', _scope_='os', conversations=turns('a', 'b'), meta=evil),
        dict(image=evil, conversations=turns('a', 'b')),
        dict(images=[evil], conversations=turns('a', 'b')),
        dict(messages=[dict(role='user', content=[evil]), dict(role='assistant', content=evil)]),
        dict(conversations=[evil, evil], pipeline=[evil], dataset=evil),
    ]
    found = dataset(root, records)
    for index in range(len(records)):
        try:
            found[index]
        except RecordError:
            continue
        assert index == 0  # Beside its conversation, which is good.
    assert not (root / 'ran').exists()
