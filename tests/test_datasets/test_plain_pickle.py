"""Tests of reading pickles without running anything in them."""

import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest

from mergemix_mm.datasets.plain_pickle import load_plain_pickle

DATA = [dict(ref_id=7, sent='a red ring', box=(1.5, 2, None), done=True, raw=b'\x80', kinds={'a', 'b'}), frozenset({1})]


def written(folder, data, protocol=None):
    path = folder / 'data.p'
    path.write_bytes(data if isinstance(data, bytes) else pickle.dumps(data, protocol))
    return path


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_of_every_protocol_is_read(tmp_path, protocol):
    assert load_plain_pickle(written(tmp_path, DATA, protocol)) == DATA


@pytest.mark.parametrize('protocol', [0, 2, pickle.HIGHEST_PROTOCOL])
@pytest.mark.parametrize(
    'value', [np.int64(-5), np.uint8(255), np.float32(0.5), np.float64(1e300), np.bool_(True), np.dtype('>i4').type(7)]
)
def test_numpy_scalars_become_plain_numbers(tmp_path, value, protocol):
    (found,) = load_plain_pickle(written(tmp_path, [value], protocol))
    assert found == value.item() and type(found) is type(value.item())


def test_pickles_of_python_2_are_read(tmp_path):
    # {u'sent': 'ring', 'ids': [numpy.int64(3)]}, protocol 2.
    scalar = b'cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nU\x02i8K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xff'
    scalar += b'J\xff\xff\xff\xffK\x00tbU\x08\x03\x00\x00\x00\x00\x00\x00\x00\x86R'
    data = b'\x80\x02}(X\x04\x00\x00\x00sentU\x04ringU\x03ids](' + scalar + b'eu.'
    assert load_plain_pickle(written(tmp_path, data)) == dict(sent='ring', ids=[3])


class Runs:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
def test_what_could_run_code_is_refused_and_not_run(tmp_path, protocol):
    target = tmp_path / 'made'
    for call in (Runs(os.mkdir, str(target)), Runs(eval, f'open({str(target)!r}, "w")'), Runs(getattr, 'a', 'upper')):
        with pytest.raises(ValueError, match=r'data\.p: not a pickle of plain data \(it refers to .*\..*JSON instead'):
            load_plain_pickle(written(tmp_path, [call], protocol))
        assert not target.exists()


@pytest.mark.parametrize('value', [OrderedDict(a=1), np.zeros(3), np.datetime64('2020'), np.str_('a'), 1j, range(3)])
def test_everything_else_is_refused(tmp_path, value):
    with pytest.raises(ValueError, match='not a pickle of plain data'):
        load_plain_pickle(written(tmp_path, [value]))


def test_objects_within_numpy_scalars_are_refused(tmp_path):
    data = b"cnumpy._core.multiarray\nscalar\n(cnumpy\ndtype\n(S'O8'\nI0\nI1\ntRS'abcdefgh'\ntR."
    with pytest.raises(ValueError, match=r"numpy scalars may be numbers, found 'O8'"):
        load_plain_pickle(written(tmp_path, data))


@pytest.mark.parametrize('data', [b'', b'{"a": 1}', pickle.dumps(DATA)[:-20], b'\x80\x04K\x01a.'])
def test_broken_files_are_named(tmp_path, data):
    with pytest.raises(ValueError, match=r'data\.p: not a pickle of plain data'):
        load_plain_pickle(written(tmp_path, data))
