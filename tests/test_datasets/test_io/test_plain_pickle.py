"""Tests of reading pickles without running anything in them."""

import os
import pickle
import re
import struct
import time
import tracemalloc
from collections import OrderedDict

import numpy as np
import pytest

from mergemix_mm.datasets.io import plain_pickle
from mergemix_mm.datasets.io.plain_pickle import load_plain_pickle

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
        with pytest.raises(ValueError, match=r'data\.p: .*refers to \w+\.\w+'):
            load_plain_pickle(written(tmp_path, [call], protocol))
        assert not target.exists()


@pytest.mark.parametrize('value', [OrderedDict(a=1), np.zeros(3), np.datetime64('2020'), np.str_('a'), 1j, range(3)])
def test_everything_else_is_refused(tmp_path, value):
    with pytest.raises(ValueError, match='plain data'):
        load_plain_pickle(written(tmp_path, [value]))


def test_objects_within_numpy_scalars_are_refused(tmp_path):
    data = b"cnumpy._core.multiarray\nscalar\n(cnumpy\ndtype\n(S'O8'\nI0\nI1\ntRS'abcdefgh'\ntR."
    with pytest.raises(ValueError, match=r"'O8'"):
        load_plain_pickle(written(tmp_path, data))


@pytest.mark.parametrize('data', [b'', b'{"a": 1}', pickle.dumps(DATA)[:-20], b'\x80\x04K\x01a.'])
def test_broken_files_are_named(tmp_path, data):
    with pytest.raises(ValueError, match=r'data\.p: '):
        load_plain_pickle(written(tmp_path, data))


# Files of strangers that would run code, or take time or memory. All are small.


def seconds(path):
    start = time.perf_counter()
    with pytest.raises(ValueError, match='plain data') as caught:
        load_plain_pickle(path)
    assert '\n' not in str(caught.value) and len(str(caught.value)) < 600
    return time.perf_counter() - start, str(caught.value)


SCALAR = b'cnumpy.core.multiarray\nscalar\n'


@pytest.mark.parametrize(
    'data, message',
    [
        # Functions as data, and BUILD on one, which would write into what all readers share.
        (SCALAR + b'.', 'a function'),
        (b'(lp0\n' + SCALAR + b'a.', 'a function'),
        (b'c__builtin__\nset\n.', 'a function'),
        (SCALAR + b'}U\x01aK\x01sb.', 'builds'),
        (SCALAR + b'(NN}tb.', 'builds'),
        (b'cnumpy\ndtype\n}b.', 'builds'),
        (b'cnumpy\ndtype\n(U\x02i8K\x00K\x01tR.', 'a type as data'),
        (b'cnumpy\ndtype\n(U\x02i8K\x00K\x01tR(K\x03tb.', 'byte order'),
        (SCALAR + b'(cnumpy\ndtype\n(U\x04V999K\x00K\x01tRU\x01atR.', 'may be numbers'),
        (SCALAR + b'(cnumpy\ndtype\n(U\x02i8K\x00K\x01tRU\x01atR.', 'does not fit'),
        (SCALAR + b'(NNtR.', 'does not fit'),
        (b'c_codecs\nencode\n(X\x01\x00\x00\x00aX\x03\x00\x00\x00zipt R.'.replace(b' ', b''), '_codecs.encode'),
        (b'cos\nsystem\n(S"touch ran"\ntR.', 'it refers to os.system'),
        (b'c__builtin__\neval\n(S"1"\ntR.', 'it refers to __builtin__.eval'),
        (b'\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.', 'it refers to os.system'),
        (b'\x80\x04K\x01K\x02\x93.', 'it refers to 1.2'),
        # Other ways to classes and objects.
        (b'(S"touch ran"\nios\nsystem\n.', "'i' makes more"),
        (b'(cos\nsystem\nS"true"\no.', 'it refers to os.system'),
        (b'\x80\x02]\x81.', "'\\\\x81' makes more"),
        (b'\x80\x04]]}\x92.', "'\\\\x92' makes more"),
        (b'\x80\x02\x82\x01.', "'\\\\x82' makes more"),
        (b'P1\n.', "'P' makes more"),
        (b'K\x01Q.', "'Q' makes more"),
        (b'\x80\x05\x97.', "'\\\\x97' makes more"),
        (b'\x80\x05\x96\x08\x00\x00\x00\x00\x00\x00\x00aaaaaaaa.', "'\\\\x96' makes more"),
        # Sizes that the file does not have.
        (b'\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.', 'ends too early'),
        (b'\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\xff.', 'ends too early'),
        (b'T\xff\xff\xff\x7f.', 'ends too early'),
        (b'\x8b\xff\xff\xff\x7f.', 'ends too early'),
        (b'\x8b\x00\x00\x10\x00' + b'\x7f' * 0x100000 + b'.', 'an integer of 1048576 bytes'),
        (b'I' + b'9' * 5000 + b'\n.', 'an integer of 5000 digits'),
        (b'L' + b'9' * 5000 + b'L\n.', 'an integer of 500'),
        # Keys.
        (b'}]K\x01s.', 'found list'),
        (b'}}K\x01s.', 'found dict'),
        (b'\x8f(]\x90.', 'found list'),
        (b'}' + SCALAR + b'K\x01s.', 'found Name'),
        (b'}(' + b'K\x01' * 65 + b'tK\x01s.', 'found tuple'),
        (b'}\x8a\x09' + b'\x01' * 9 + b'K\x01s.', 'integer of 2 \\*\\* 60'),
        (b'}(K\x01u.', 'sets items'),
        (b'K\x01(K\x02K\x03u.', 'sets items'),
        (b'(K\x01d.', 'without a value'),
        # Endless and deep.
        (b']q\x00h\x00a.', 'holds itself'),
        (b']' * 101 + b'a' * 100 + b'.', 'deep|nesting'),
        (b']' * 100000 + b'a' * 99999 + b'.', 'deep|nesting'),
        (b')' + b'\x85' * 100000 + b'.', 'deep|nesting'),
        (b'K\x01' + b'2\x86' * 40 + b'.', 'written out it has more than'),
        (b']' + b'q\x000](h\x00h\x00e' * 40 + b'.', 'written out it has more than'),
        # Broken stacks.
        (b'a.', ''),
        (b't.', ''),
        (b'\x87.', ''),
        (b'h\x05.', ''),
        (b'K\x01K\x02.', 'one value'),
        (b'((.', 'one value'),
        (b'b.', ''),
        (b'\x90.', ''),
        (b'S\'\n.', 'quotation'),
        (b"S'\\x'\n.", ''),
        (b'X\x01\x00\x00\x00\xff.', ''),
    ],
)  # fmt: skip
def test_hostile_pickles_are_refused_at_once(tmp_path, monkeypatch, data, message):
    monkeypatch.chdir(tmp_path)
    took, found = seconds(written(tmp_path, data))
    assert re.search(message, found), found
    assert took < 5 and not (tmp_path / 'ran').exists()


def test_a_nested_tuple_as_a_key_does_not_hang(tmp_path):
    # Python's hash of it takes 2 ** 60 steps, and so does the comparison of two of them.
    nested = b'K\x01' + b'2\x86' * 60
    took, _ = seconds(written(tmp_path, b'}' + nested + b'K\x01s.'))
    assert took < 5
    took, _ = seconds(written(tmp_path, b'\x80\x04(' + nested + b'\x91.'))
    assert took < 5
    assert load_plain_pickle(written(tmp_path, {(1, ('a', 2.5)): None})) == {(1, ('a', 2.5)): None}


def test_places_in_the_memo_take_no_memory(tmp_path):
    # Python's own unpickler makes a table of 2 ** 31 entries for these nine bytes.
    tracemalloc.start()
    assert load_plain_pickle(written(tmp_path, b'K\x01r\xff\xff\xff\xff.')) == 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_nothing_that_readers_share_can_be_written_to(tmp_path):
    before = dict(plain_pickle.ALLOWED)
    for code in (b'}U\x04callK\x01sb.', b'(N}U\x04callK\x01stb.'):
        seconds(written(tmp_path, SCALAR + code))
    assert before == plain_pickle.ALLOWED and plain_pickle.ALLOWED['numpy.dtype'].call is plain_pickle._DType


def python_2_refs(count, protocol):
    """What `pickle.dump` of Python 2 wrote for RefCOCO: byte strings, unicode, numpy's integers, memo and all."""
    out = [b'\x80\x02' if protocol == 2 else b'']
    text = (lambda t: b'U' + bytes([len(t)]) + t) if protocol == 2 else (lambda t: b'S' + repr(t)[1:].encode() + b'\n')
    unicode = (lambda t: b'X' + struct.pack('<I', len(t)) + t) if protocol == 2 else (lambda t: b'V' + t + b'\n')
    number = (lambda n: b'J' + struct.pack('<i', n)) if protocol == 2 else (lambda n: b'I%d\n' % n)
    dtype = b'cnumpy\ndtype\n(' + text(b'i8') + number(0) + number(1) + b'tR(' + number(3) + text(b'<') + b'NNN'
    dtype += number(-1) + number(-1) + number(0) + b'tb'
    out.append(b'(lp0\n')
    for index in range(count):
        scalar = SCALAR + b'(' + dtype + text(struct.pack('<q', index)) + b'tR'
        sentence = b'(d' + text(b'raw') + unicode(b'the man') + b's' + text(b'tokens') + b'(l' + text(b'man') + b'a'
        sentence += b's' + text(b'sent_id') + scalar + b's'
        out.append(b'(d' + text(b'ref_id') + number(index) + b's' + text(b'sentences') + b'(l' + sentence + b'as')
        out.append(text(b'split') + text(b'train') + b'sa')
    return b''.join(out) + b'.'


@pytest.mark.parametrize('protocol', [0, 2])
def test_refcoco_as_python_2_wrote_it_is_read_in_time(tmp_path, protocol):
    data = python_2_refs(2000, protocol)
    found = load_plain_pickle(written(tmp_path, data))
    assert found == pickle.loads(data, encoding='latin-1') and type(found[7]['sentences'][0]['sent_id']) is int
    assert found[7] == dict(ref_id=7, split='train', sentences=[dict(raw='the man', tokens=['man'], sent_id=7)])


def test_shared_values_of_honest_files_are_read(tmp_path):
    box = [1.0, 2.0]
    data = [dict(box=box, names=('a', 'b')) for _ in range(500)]
    found = load_plain_pickle(written(tmp_path, data))
    assert found == data and found[0]['box'] is found[1]['box']
