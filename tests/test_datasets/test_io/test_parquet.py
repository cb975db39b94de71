"""Tests of TableRecords, and of the datasets that read Parquet files and saved datasets."""

import io
import os
import pickle
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from mergemix_mm.datasets import ConversationDataset, RecordError, TaskRecordDataset, TextToImageDataset
from mergemix_mm.datasets.io import parquet as table_records
from mergemix_mm.datasets.io.fields import has_images
from mergemix_mm.datasets.io.parquet import TableRecords, rows_with_images


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp('cache')
    monkeypatch.setenv('XDG_CACHE_HOME', str(folder))
    return folder / 'mergemix_mm' / 'tables'


def png(side, colour=90):
    buffer = io.BytesIO()
    Image.new('RGB', (side, side + 1), (colour, 0, 0)).save(buffer, 'PNG')
    return buffer.getvalue()


def image(side):
    return dict(bytes=png(side), path=None)


def turns(question, answer):
    return [{'from': 'human', 'value': question}, {'from': 'gpt', 'value': answer}]


def rows(num, start=0):
    """Every third one is text only."""
    return [
        dict(
            id=start + number,
            image=None if number % 3 == 2 else image(4 + number % 5),
            conversations=turns('Hi' if number % 3 == 2 else '<image>\nWhat?', f'    answer {start + number}'),
        )
        for number in range(num)
    ]


def write(path, content, **kwargs):
    pq.write_table(pa.Table.from_pylist(content), path, **kwargs)
    return path


def conversations(path, **kwargs):
    return ConversationDataset(str(path), **kwargs)


def test_a_parquet_file_is_a_conversation_dataset(tmp_path):
    path = write(tmp_path / 'train.parquet', rows(7), row_group_size=3)
    data = ConversationDataset('train.parquet', data_root=str(tmp_path))
    assert len(data) == 7 and data.modalities.tolist() == [True, True, False, True, True, False, True]
    record = data[4]
    assert [one.size for one in record['images']] == [(8, 9)] and record['images'][0].getpixel((0, 0)) == (90, 0, 0)
    assert record['messages'][-1]['content'][0]['text'] == '    answer 4'
    assert record['source'] == f'{path}: row 4' and record['id'] == 4
    assert record['img_path'][0].startswith(f'<{len(png(8))} bytes')
    assert data[2]['images'] == [] and [data[-1]['id'], data[0]['id']] == [6, 0]


def save(tmp_path, content, **kwargs):
    datasets = pytest.importorskip('datasets')
    datasets.disable_progress_bars()
    folder = tmp_path / 'saved'
    datasets.Dataset.from_list(content, **kwargs).save_to_disk(folder, num_shards=2)
    return folder


def test_a_folder_of_save_to_disk_is_a_conversation_dataset(tmp_path):
    datasets = pytest.importorskip('datasets')
    features = datasets.Features(
        id=datasets.Value('int64'),
        image=datasets.Image(),
        conversations=[{'from': datasets.Value('string'), 'value': datasets.Value('string')}],
    )
    folder = save(tmp_path, rows(9), features=features)
    data = conversations(folder)
    assert len(data) == 9 and data.modalities.tolist() == [True, True, False] * 3
    assert [data[index]['id'] for index in range(9)] == list(range(9))
    assert data[7]['images'][0].size == (6, 7) and data[7]['source'] == f'{folder}: row 7'


def test_a_dataset_dict_needs_the_name_of_a_split(tmp_path):
    datasets = pytest.importorskip('datasets')
    datasets.disable_progress_bars()
    part = datasets.Dataset.from_list(rows(3))
    datasets.DatasetDict(train=part, test=part.select([0])).save_to_disk(tmp_path / 'both')
    with pytest.raises(ValueError, match=r"\['test', 'train'\].*both/train"):
        TableRecords(tmp_path / 'both')
    assert len(TableRecords(tmp_path / 'both' / 'train')) == 3


def test_sequences_of_datasets_are_turns(tmp_path):
    """`datasets` writes a sequence of objects as an object of lists."""
    content = [dict(conversations={'from': ['human', 'gpt'], 'value': ['<image>Q', 'A']}, images=[image(4)])]
    data = conversations(write(tmp_path / 'a.parquet', content))
    assert [message['role'] for message in data[0]['messages']] == ['user', 'assistant'] and data.modalities.all()
    cauldron = [dict(texts=[dict(user='Q', assistant='A', source='web')], images=[image(4), image(5)])]
    data = conversations(write(tmp_path / 'b.parquet', cauldron))
    assert [one.size for one in data[0]['images']] == [(4, 5), (5, 6)]
    assert data.records.other_keys == {'texts[].source': 1}


def test_several_files_by_folder_and_pattern(tmp_path):
    for number in range(3):
        write(tmp_path / f'train-{number}-of-3.parquet', rows(4, start=4 * number))
    for path in (tmp_path, tmp_path / 'train-*.parquet', tmp_path / '**' / '*.parquet'):
        data = conversations(path)
        assert [data[index]['id'] for index in range(len(data))] == list(range(12))
        assert data[9]['source'] == f'{tmp_path}/train-2-of-3.parquet: row 1'
    write(tmp_path / 'test-0-of-1.parquet', rows(1))
    with pytest.raises(ValueError, match=r"\['test', 'train'\].*train\*"):
        conversations(tmp_path)
    assert len(conversations(tmp_path / 'train-*.parquet')) == 12


def test_what_is_not_there_or_something_else_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='none.parquet'):
        TableRecords(tmp_path / 'none.parquet')
    for path in (tmp_path, tmp_path / '*.parquet'):
        with pytest.raises(FileNotFoundError, match='no Parquet file'):
            TableRecords(path)
    whole = write(tmp_path / 'whole.parquet', rows(3)).read_bytes()
    for content, message in [
        (b'', 'empty'),
        (b'[{"a": 1}]', 'something else'),
        (b'version https://git-lfs.github.com/spec/v1\n', 'a Git LFS pointer'),
        (whole[: len(whole) // 2], 'Parquet'),
        (whole[:-8] + b'\xff\xff\xff\x7fPAR1', 'Parquet'),
    ]:
        path = tmp_path / 'bad.parquet'
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf'^{path}: .*{message}') as error:
            TableRecords(path)
        assert '\n' not in str(error.value)


def test_a_damaged_row_group_is_an_error_of_its_rows(tmp_path):
    content = [dict(prompt='x' * 999 + str(number), completion=os.urandom(999).hex()) for number in range(6)]
    path = write(
        tmp_path / 'data.parquet',
        content,
        row_group_size=2,
        compression='gzip',
        use_dictionary=False,
        write_statistics=False,
    )
    start = pq.ParquetFile(path).metadata.row_group(1).column(1).data_page_offset
    damaged = bytearray(path.read_bytes())
    damaged[start + 60 : start + 300] = b'\xff' * 240
    path.write_bytes(damaged)
    data = conversations(path, on_error='skip')
    with pytest.raises(RecordError, match=rf'^{path}: row 2: '):
        data.records[2]
    assert data[1]['source'].endswith('row 1') and data[2]['source'].endswith('row 4') and data.num_skipped == 2


def test_text_that_is_not_utf8_is_an_error_of_its_row(tmp_path):
    texts = pa.Array.from_buffers(
        pa.utf8(), 2, [None, pa.py_buffer(np.array([0, 2, 4], np.int32)), pa.py_buffer(b'ok\xff\xfe')]
    )
    table = pa.table(dict(prompt=texts, completion=['A', 'B']))
    pq.write_table(table, tmp_path / 'data.parquet')
    data = conversations(tmp_path / 'data.parquet')
    assert data[0]['messages'][0]['content'][0]['text'] == 'ok'
    with pytest.raises(RecordError, match='row 1: .*utf-?8'):
        data[1]


def test_a_saved_dataset_that_is_cut_off_or_damaged_is_refused(tmp_path):
    folder = save(tmp_path, rows(8))
    file = sorted(folder.glob('*.arrow'))[0]
    whole = file.read_bytes()
    for content in (whole[:-100], whole[: len(whole) // 2], b'', b'something'):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=rf'^{file}: .* Arrow') as error:
            TableRecords(folder)
        assert '\n' not in str(error.value)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=file.name):
        TableRecords(folder)
    (folder / 'state.json').write_text('{"_data_files": [{"filename": "../../etc/passwd"}]}')
    with pytest.raises(ValueError, match=r'state\.json: .*_data_files'):
        TableRecords(folder)


LAYOUTS = dict(
    struct=[dict(image=image(4)), dict(image=None), dict(image=dict(bytes=None, path='a.png'))],
    empty_struct=[dict(image=dict(bytes=None, path=None)), dict(image=image(4)), dict(image=None)],
    all=[dict(image=image(4))] * 3,
    none=[dict(image=None)] * 3,
    paths=[dict(image='a.png'), dict(image=''), dict(image=None)],
    only_paths=[dict(image=dict(bytes=None, path='a.png'))] * 2 + [dict(image=None)],
    bytes=[dict(image=png(3)), dict(image=b''), dict(image=None)],
    lists=[dict(images=[image(4), image(5)]), dict(images=[]), dict(images=None), dict(images=[None])],
    lists_of_empty=[dict(images=[dict(bytes=None, path=None)]), dict(images=[image(4)])],
    lists_of_paths=[dict(images=['a.png', '']), dict(images=[]), dict(images=[''])],
    parts=[
        dict(messages=[dict(role='user', content=[dict(type='image', text=None), dict(type='text', text='Q')])]),
        dict(messages=[dict(role='user', content=[dict(type='text', text='Q')])]),
        dict(messages=[]),
        dict(messages=None),
    ],
    untyped_parts=[
        dict(prompt=[dict(role='user', content=[dict(image=image(4), text=None), dict(image=None, text='Q')])]),
        dict(prompt=[dict(role='user', content=[dict(image=None, text='Q')])]),
    ],
)


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('large', [False, True])
def test_flags_are_those_of_the_rows(tmp_path, monkeypatch, layout, large):
    content = LAYOUTS[layout] * 3
    monkeypatch.setattr(table_records, 'LARGE_ROWS', 1 if large else 10_000)
    records = TableRecords(write(tmp_path / 'data.parquet', content, row_group_size=4))
    read = [records[index] for index in range(len(records))]
    assert records.flags.tolist() == [has_images(row) for row in read] == [has_images(row) for row in content]
    assert rows_with_images(pa.Table.from_pylist(content).slice(1)).tolist() == records.flags.tolist()[1:]


def test_images_are_not_read_for_the_flags_where_the_footer_tells(tmp_path, monkeypatch):
    path = write(tmp_path / 'data.parquet', rows(9), row_group_size=3)
    columns = []
    original = table_records._ParquetFile.batches
    monkeypatch.setattr(
        table_records._ParquetFile,
        'batches',
        lambda self, file, number, names: columns.extend(names) or original(self, file, number, names),
    )
    assert TableRecords(path).flags.tolist() == [True, True, False] * 3
    assert columns == ['image.path'] * 3
    write(path, [row for row in rows(9) if row['image']])
    assert TableRecords(path).flags.all() and len(columns) == 3


def test_only_one_row_group_is_held(tmp_path):
    content = [dict(prompt='Q', completion='x' * 1000 + str(number)) for number in range(4000)]
    records = TableRecords(write(tmp_path / 'data.parquet', content, row_group_size=100, compression='none'))
    before = pa.total_allocated_bytes()
    for index in np.random.default_rng(0).permutation(4000)[:200].tolist():
        assert records[index]['completion'].endswith(f'x{index}')
        assert pa.total_allocated_bytes() - before < 1_000_000
    assert records.files[0].opened()['table'].num_rows == 100


def test_a_file_of_one_large_row_group_is_copied_once_and_mapped(tmp_path, monkeypatch, cache):
    monkeypatch.setattr(table_records, 'LARGE_ROWS', 1000)
    content = [dict(prompt='Q', completion='x' * 1000 + str(number)) for number in range(4000)]
    path = write(tmp_path / 'data.parquet', content)
    before = pa.total_allocated_bytes()
    records = TableRecords(path)
    (copy,) = cache.iterdir()
    for index in np.random.default_rng(0).permutation(4000)[:1500].tolist():
        assert records[index]['completion'].endswith(f'x{index}')
    assert pa.total_allocated_bytes() - before < 100_000
    assert max(batch.num_rows for batch in records.files[0].opened()['batches']) <= 1000
    assert records.source(7) == f'{path}: row 7'
    time = copy.stat().st_mtime_ns
    assert len(TableRecords(path)) == 4000 and copy.stat().st_mtime_ns == time
    write(path, content[:2000])
    assert len(TableRecords(path)) == 2000 and len(list(cache.iterdir())) == 2


def test_files_may_be_pickled_and_read_by_forked_workers(tmp_path):
    write(tmp_path / 'a.parquet', rows(40), row_group_size=7)
    for path in (tmp_path / 'a.parquet', save(tmp_path, rows(40))):
        data = conversations(path, pipeline=[lambda record: record['id']])
        assert data[0] == 0
        loader = DataLoader(data, batch_size=None, num_workers=2)
        assert [int(one) for one in loader] == list(range(40))
        copy = pickle.loads(pickle.dumps(data.records))
        assert copy.files[-1]._opened is None and copy[33]['id'] == 33


def test_an_arrow_file_with_offsets_that_lead_elsewhere_is_no_crash(tmp_path):
    folder = save(tmp_path, [dict(prompt=f'Question {number}', completion='A') for number in range(8)])
    file = sorted(folder.glob('*.arrow'))[0]
    whole = bytearray(file.read_bytes())
    place = whole.index(b'Question 0Question 1')
    offsets = whole.rindex(np.array([0, 10, 20], np.int32).tobytes(), 0, place)
    whole[offsets + 8 : offsets + 12] = np.int32(2_000_000_000).tobytes()
    file.write_bytes(whole)
    with pytest.raises(ValueError, match=f'^{file}: .* Arrow'):
        TableRecords(folder)


def test_prompts_and_tasks_are_read_from_tables_too(tmp_path):
    write(
        tmp_path / 'a.parquet', [dict(caption='a ring', image=image(4), score=0.5), dict(caption='x', image=image(5))]
    )
    data = TextToImageDataset('a.parquet', data_root=str(tmp_path))
    assert (data[0]['prompt'], data[0]['images'][0].size, data[0]['score']) == ('a ring', (4, 5), 0.5)
    assert data.records.other_keys == {'score': 2}
    data = TaskRecordDataset('a.parquet', data_root=str(tmp_path))
    assert (data[1]['caption'], data[1]['images'][0].size) == ('x', (5, 6))


def test_a_refused_column_names_file_and_row(tmp_path):
    content = [dict(row, video=None if number else 'a.mp4') for number, row in enumerate(rows(2))]
    path = write(tmp_path / 'a.parquet', content)
    data = conversations(path)
    assert data[1]['id'] == 1
    with pytest.raises(RecordError, match=rf"^{path}: row 0: has 'video'"):
        data[0]


MEMORY = """
import sys
import numpy as np
from mergemix_mm.datasets.io.parquet import TableRecords
def resident():
    return int(next(line for line in open('/proc/self/status') if line.startswith('VmRSS')).split()[1]) / 1024
start = resident()
records = TableRecords(sys.argv[1])
peak = resident()
for number, index in enumerate(np.random.default_rng(0).integers(0, len(records), int(sys.argv[2]))):
    assert records[int(index)]['id'] == index
    peak = max(peak, resident()) if number % 200 == 0 else peak
print(len(records), round(start), round(peak - start, 1))
"""


def test_pages_of_an_arrow_file_are_given_back_after_so_many_bytes_and_not_before(tmp_path, monkeypatch):
    records = TableRecords(save(tmp_path, [dict(prompt=f'Question {number}', completion='A') for number in range(8)]))
    opened, given_back = records.files[0].opened(), []
    opened['pages'] = SimpleNamespace(madvise=given_back.append)
    monkeypatch.setattr(table_records, 'BYTES_PER_RELEASE', 3 * table_records.BYTES_AROUND_ROW)
    counts = []
    for _ in range(9):
        records[0]
        counts.append(len(given_back))
    # The first reading of a batch counts its bytes, which are few here; each other one the pages around a row.
    assert counts == [0, 0, 0, 1, 1, 1, 1, 2, 2]


@pytest.mark.slow
def test_the_memory_of_a_million_rows_is_flat(tmp_path):
    """300 MB of text, in one row group, of which 20,000 rows are read in random order."""
    path = tmp_path / 'large.parquet'
    ids = np.arange(1_000_000)
    text = pa.array(['word ' * 60]).take(pa.array(np.zeros(len(ids), int)))
    pq.write_table(pa.table(dict(id=ids, completion=text)), path)
    found = subprocess.run(
        [sys.executable, '-c', MEMORY, str(path), '20000'], check=True, capture_output=True, text=True, env=os.environ
    )
    num, start, growth = map(float, found.stdout.split()[-3:])
    print(f'{num:.0f} rows: {start:.0f} MB before, at most {growth:.0f} MB more')
    assert num == 1_000_000 and growth < 150


def test_without_pyarrow_the_way_out_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / 'a.parquet', rows(1))
    monkeypatch.setitem(sys.modules, 'pyarrow', None)
    with pytest.raises(ImportError, match='pip install pyarrow'):
        TableRecords(path)


@pytest.mark.parametrize('large', [False, True])
def test_lengths_are_the_bytes_of_all_texts_but_those_that_name_images(tmp_path, monkeypatch, large):
    parts = [
        [dict(type='image', path='a/long/path.png', text=None), dict(type='text', path=None, text='Where?')],
        [dict(type='text', path=None, text='At h\u00f6me')],
    ]
    content = [
        dict(image=None, messages=[dict(role='user', content=part) for part in parts], note='12'),
        dict(image=image(5), messages=[], note=None),
        dict(image=None, messages=None, note='x'),
    ]
    if large:  # Rows are then read from a copy in Arrow's format.
        monkeypatch.setattr(table_records, 'LARGE_ROWS', 1)
    records = TableRecords(write(tmp_path / 'train.parquet', content))
    texts = ['user', 'image', 'text', 'Where?', 'user', 'text', 'At hxxme', '12']
    assert records.lengths.tolist() == [sum(map(len, texts)), 0, 1]
    monkeypatch.setattr(records.files[0], 'row', None)
    assert len(ConversationDataset(str(tmp_path / 'train.parquet')).lengths) == 3
