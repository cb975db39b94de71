"""Tests of JsonRecords."""

import gzip
import json
import pickle
import tracemalloc

import numpy as np
import pytest

from mergemix_mm.datasets.io import json_records
from mergemix_mm.datasets.io.json_records import JsonRecords, read_json
from mergemix_mm.utils.text import RecordError

RECORDS = [
    dict(id=0, text='plain', nested=dict(a=[1, 2, {}])),
    dict(id=1, text='brackets ]}{[ , and "quotes" \\ in text'),
    dict(id=2, text='naïve 漢字 \n two lines', image='a.png'),
    dict(id=3),
]
LAYOUTS = dict(
    one_line=lambda records: json.dumps(records),
    pretty=lambda records: json.dumps(records, indent=2, ensure_ascii=False),
    lines=lambda records: '\n'.join(json.dumps(record, ensure_ascii=False) for record in records) + '\n',
    blank_lines=lambda records: '\n\n  '.join(json.dumps(record) for record in records),
    windows=lambda records: '\ufeff' + json.dumps(records, indent=1).replace('\n', '\r\n'),
)


def write(tmp_path, text, name='data.json'):
    path = tmp_path / name
    path.write_bytes(text.encode('utf-8'))
    return path


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('chunk', [1 << 20, 16, 5])
def test_every_layout_gives_the_records_back(tmp_path, monkeypatch, layout, chunk):
    monkeypatch.setattr(json_records, 'CHUNK', chunk)
    records = JsonRecords(write(tmp_path, LAYOUTS[layout](RECORDS)), flag=lambda record: 'image' in record)
    assert [records[index] for index in range(len(records))] == RECORDS
    assert records[-1] == RECORDS[-1]
    assert records.flags.tolist() == [False, False, True, False]


def test_source_is_the_line_where_a_record_begins(tmp_path):
    pretty = JsonRecords(write(tmp_path, '[\n {"a":\n 1},\n\n {"b": 2}\n]'))
    assert [pretty.source(index).rsplit(':')[-1] for index in (0, 1, -1)] == ['2', '5', '5']
    lines = JsonRecords(write(tmp_path, '{"a": 1}\n{"b": 2}\n{"c": 3}'))
    assert lines.source(2) == f'{tmp_path}/data.json:3'


@pytest.mark.parametrize('chunk', [1 << 20, 16])
@pytest.mark.parametrize(
    'text, message',
    [
        ('[\n{"a": 1},\n{"b": tru}\n]', r'data\.json:3: .*column 7'),
        ('[\n{"a": 1}\n{"b": 2}\n]', r"data\.json:3: .*column 1: .*','.*'\{'"),
        ('[{"a": 1},\n{"b": 2}', r'data\.json:2: .*column 9: .*ends'),
        ('{"a": 1}\n{"b": "open\n', r'data\.json:2: .*column 12'),
        ('{"a": 1}\n\n7\n', r'data\.json:3: .*object'),
        ('[{"a": 1},]', r'data\.json:1: .*column 11: .*object'),
        ('[{"a": 1}]\n{"b": 2}', r'data\.json:2: .*column 1: .*after the array'),
        ('  \n', r'data\.json: the file is empty'),
    ],
)
def test_malformed_json_names_file_line_and_column(tmp_path, monkeypatch, text, message, chunk):
    monkeypatch.setattr(json_records, 'CHUNK', chunk)
    with pytest.raises(ValueError, match=message):
        JsonRecords(write(tmp_path, text))


def test_array_below_a_key_is_found_behind_other_values(tmp_path, monkeypatch):
    data = dict(info=dict(year=2017, nested=[[], '}']), version=4.25, questions=RECORDS, licence='x')
    for chunk in (1 << 20, 7):
        monkeypatch.setattr(json_records, 'CHUNK', chunk)
        records = JsonRecords(write(tmp_path, json.dumps(data)), key='questions')
        assert [records[index] for index in range(len(records))] == RECORDS
        with pytest.raises(ValueError, match=r"'answers' .*\['info', 'version'"):
            JsonRecords(records.path, key='answers')
    with pytest.raises(ValueError, match=r"'info' .*array"):
        JsonRecords(records.path, key='info')


def test_index_needs_25_bytes_per_record_and_parsed_records_are_not_kept(tmp_path):
    num = 100_000
    path = write(tmp_path, json.dumps([dict(id=index, text='x' * 80) for index in range(num)]))
    tracemalloc.start()
    records = JsonRecords(path)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    index = sum(array.nbytes for array in (records.starts, records.ends, records.lines, records.flags))
    assert index == 25 * num
    assert kept < index + 1_000_000
    # The parsed records would take about 50 MB.
    assert peak < 25_000_000
    assert not any(isinstance(value, (list, dict)) for value in vars(records).values())
    assert records[num - 1]['id'] == num - 1


def test_a_pickled_copy_reads_on_its_own(tmp_path):
    records = JsonRecords(write(tmp_path, LAYOUTS['lines'](RECORDS)))
    records[0]
    copy = pickle.loads(pickle.dumps(records))
    assert copy._file is None
    assert copy[2] == records[2] == RECORDS[2]


def test_forked_workers_do_not_disturb_each_other(tmp_path):
    from torch.utils.data import DataLoader

    data = [dict(id=index, text='y' * (index % 700)) for index in range(300)]
    records = JsonRecords(write(tmp_path, json.dumps(data)))
    records[0]  # opens the file in the parent
    loader = DataLoader(records, batch_size=None, num_workers=2, sampler=range(300))
    assert [record['id'] for record in loader] == list(range(300))


GOOD = b'{"a": "fine"}'
DEEP = b'{"a": ' + b'[' * 10_000 + b']' * 10_000 + b', "}]": "\\"]}"}'
BAD_RECORDS = {
    'not_utf8': (b'{"a": "\xff\xfe"}', 'the record is not UTF-8'),
    'deep': (DEEP, 'nested more than 100 deep'),
    'deep_objects': (b'{"a": ' * 10_000 + b'1' + b'}' * 10_000, 'nested more than 100 deep'),
    'rather_deep': (b'{"a": ' + b'[' * 101 + b']' * 101 + b'}', 'nested more than 100 deep'),
    'digits': (b'{"a": ' + b'7' * 5_000 + b'}', 'too many digits'),
    'nan': (b'{"a": [NaN]}', 'NaN'),
    'infinity': (b'{"a": -Infinity}', '-Infinity'),
    'overflow': (b'{"a": 1e999}', '1e999'),
    'surrogate': (b'{"a": "x\\ud83d"}', r'lone surrogate \\ud83d'),
    'surrogate_key': (b'{"\\uDC00": 1}', r'lone surrogate \\udc00'),
    'twice': (b'{"a": 1, "b": {"c": 2, "c": 3}}', "'c' comes twice"),
}


@pytest.mark.parametrize('chunk', [1 << 20, 64])
@pytest.mark.parametrize('layout', ['lines', 'array', 'windows'])
@pytest.mark.parametrize('name', BAD_RECORDS)
def test_one_bad_record_leaves_the_others_readable(tmp_path, monkeypatch, name, layout, chunk):
    bad, message = BAD_RECORDS[name]
    monkeypatch.setattr(json_records, 'CHUNK', chunk)
    path = tmp_path / 'data.jsonl'
    records = [GOOD, bad, GOOD]
    path.write_bytes(
        dict(lines=b'\n'.join(records), array=b'[' + b',\n'.join(records) + b']', windows=b'\r\n'.join(records))[layout]
    )
    records = JsonRecords(path, flag=bool)
    assert len(records) == 3 and records[0] == records[2] == dict(a='fine')
    assert records.source(2) == f'{path}:3'
    with pytest.raises(RecordError, match=message) as error:
        records[1]
    assert str(error.value).startswith(f'{path}:2: ') and len(str(error.value)) < 300
    assert records.flags[0] and records.flags[2]


def test_pairs_of_surrogates_and_many_brackets_are_fine(tmp_path):
    content = dict(emoji='\U0001f600', backslash='\\ud83d', polygons=[[1.5, 2.0]] * 300, text='[[[[{{{{' * 50)
    records = JsonRecords(write(tmp_path, json.dumps(content)))
    assert records[0] == content


def test_a_deep_record_that_is_cut_off_is_malformed(tmp_path):
    for content, message in ((b'[' * 10_000, '10001 brackets'), (b'[' * 10_000 + b'"x', 'Unterminated')):
        path = tmp_path / 'data.jsonl'
        path.write_bytes(GOOD + b'\n{"a": ' + content)
        with pytest.raises(ValueError, match=rf'data\.jsonl:2: .*{message}'):
            JsonRecords(path)


def test_deep_values_before_the_key_are_passed_over(tmp_path):
    path = tmp_path / 'coco.json'
    path.write_bytes(b'{"deep": ' + DEEP + b', "many": [' + DEEP + b', 1], "last": [{"id": 7}]}')
    assert JsonRecords(path, key='last')[0] == dict(id=7)


@pytest.mark.parametrize(
    ('content', 'kind'),
    [
        (b'PAR1\x15\x04', 'a Parquet file'),
        (gzip.compress(b'[{}]', mtime=0), 'compressed with gzip'),
        (b'PK\x03\x04\x14\0', 'a zip archive'),
        (b'BZh91AY', 'compressed with bzip2'),
        (b'\x28\xb5\x2f\xfd\0', 'compressed with zstd'),
        (b'ARROW1\0\0', 'an Arrow file'),
        (b'version https://git-lfs.github.com/spec/v1\noid sha256:0', 'a Git LFS pointer'),
        (b'<!DOCTYPE html><html>', 'HTML or XML'),
        (b'\n <?xml version="1.0"?>', 'HTML or XML'),
        ('[{"a": 1}]'.encode('utf-16'), 'in UTF-16'),
        ('[{"a": 1}]'.encode('utf-16-le'), 'in UTF-16'),
        ('{"a": 1}'.encode('utf-16-be'), 'in UTF-16'),
        ('[{"a": 1}]'.encode('utf-32'), 'in UTF-32'),
        (b'\x89PNG\r\n', 'an image'),
        (pickle.dumps([dict(a=1)]), 'a Python pickle'),
        (b'\0' * 100, 'first bytes are all 0'),
        (b'', 'the file is empty'),
        (b'\xef\xbb\xbf\n', 'the file is empty'),
    ],
)
def test_files_of_another_kind_are_named(tmp_path, content, kind):
    path = tmp_path / 'data.json'
    path.write_bytes(content)
    for read in (JsonRecords, read_json):
        with pytest.raises(ValueError, match=f'^{path}: .*{kind}') as error:
            read(path)
        assert '\n' not in str(error.value)


def test_small_files_are_read_whole_with_the_same_care(tmp_path):
    path = write(tmp_path, '\ufeff{"a":\n [1]}')
    assert read_json(path) == dict(a=[1])
    for content, message in BAD_RECORDS.values():
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf'^{path}: .*{message}'):
            read_json(path)
    path.write_bytes(b'{\n"a" 1}')
    with pytest.raises(ValueError, match=rf'^{path}:2: .*column 5'):
        read_json(path)


def test_thousands_of_records_on_one_line_are_told_apart_by_number(tmp_path):
    records = JsonRecords(write(tmp_path, json.dumps([dict(id=index) for index in range(5000)])))
    assert [record['id'] for record in records] == list(range(5000))
    assert records.source(4321).endswith('data.json:1 (record 4321)')


def test_a_file_that_changed_since_it_was_opened_is_a_record_error(tmp_path):
    path = write(tmp_path, '{"a": "one"}\n{"a": "two"}')
    records = JsonRecords(path)
    path.write_text('{"a": "longer than before"}')
    with pytest.raises(RecordError, match=r'data\.json:2: .*changed'):
        records[1]


def test_indices_follow_sequence_rules(tmp_path):
    records = JsonRecords(write(tmp_path, json.dumps(RECORDS)))
    assert len(records) == 4
    with pytest.raises(IndexError):
        records[4]
    assert records[np.int64(1)] == RECORDS[1]


def test_arrays_before_the_key_are_passed_over_without_being_held(tmp_path, monkeypatch):
    monkeypatch.setattr(json_records, 'CHUNK', 1024)
    path = tmp_path / 'coco.json'
    content = dict(
        images=[dict(id=i, name='x' * 50) for i in range(5000)], empty=[], nested=[[1], []], last=[dict(id=7)]
    )
    path.write_text(json.dumps(content))
    tracemalloc.start()
    records = JsonRecords(path, key='last')
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [records[i] for i in range(len(records))] == [dict(id=7)]
    assert peak < path.stat().st_size / 4
    path.write_text('{"images": [{"id": 1} {"id": 2}], "last": [{"id": 7}]}')
    with pytest.raises(ValueError, match=r"coco\.json:1: .*column 23: .*','"):
        JsonRecords(path, key='last')


def test_lengths_are_those_of_the_records_in_the_file(tmp_path):
    records = JsonRecords(write(tmp_path, LAYOUTS['lines'](RECORDS)))
    lines = (tmp_path / 'data.json').read_bytes().splitlines()
    assert records.lengths.tolist() == [len(line) for line in lines]
