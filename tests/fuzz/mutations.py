"""Seeded mutations of files: of their bytes, and of the values of JSON."""

import json
import random
from copy import deepcopy

# What breaks parsers of numbers, texts and layouts; lengths and counts as binary formats write them.
TOKENS = [
    b'NaN', b'Infinity', b'-1', b'1e999', b'9' * 5000, b'18446744073709551616', b'null', b'true', b'""', b'[]', b'{}',
    b'\\ud800', b'\xed\xa0\x80', b'\xff\xfe', b'\xef\xbb\xbf', b'\x00', b'\x1b[2J', b'\r', b'[' * 2000, b'{"a":' * 2000,
    b'<image>', b'</s>', b'<|im_end|>', b'%PDF-1.4', b'%!PS-Adobe-3.0', b'PK\x03\x04', b'PAR1', b'\x1f\x8b\x08',
    b'\xff\xff\xff\xff', b'\x7f\xff\xff\xff', b'\xff' * 8, b'\x00' * 8, b'\x80\x02', b'data:image/png;base64,AAAA',
    b'version https://git-lfs.github.com/spec/v1', b'<html>',
]  # fmt: skip
DEEP = 'lists in lists'
VALUES = [
    DEEP,
    None, True, False, -1, 0, 1, 2**31, 2**63, 2**64, -(2**63), 1.5, 1e308, float('nan'), float('inf'), '', ' ', 'x',
    'a' * 5000, '\ud800', '\x00', '\x1b]0;x\x07', '../../etc/passwd', '/dev/zero', 'file:///dev/stdin', 'http://x/y.png',
    'data:image/png;base64,AAAA', 'data:,', '<image>', '<image><image>', '</s>', '<|im_end|>', '{{ 1 }}', 'os.system',
    [], {}, [[]], [None], [{}], {'': ''}, {'bytes': None, 'path': None}, {'bytes': 'AAAA'}, {'type': 'image'},
    {'type': 'os.system', 'command': 'false'}, [1, 2, 3, 4], [0, 0, 0, 0], [float('nan')] * 4, ['a', 'b'],
]  # fmt: skip


def mutate_bytes(rng: random.Random, content: bytes, others: list[bytes]) -> bytes:
    """One to four changes: flipped, removed, repeated, inserted or foreign bytes, or a cut."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        place, length = rng.randrange(len(data) + 1), rng.choice((1, 1, 2, 4, 8, 64))
        kind = rng.randrange(8)
        if kind == 0 and place < len(data):
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 1 and place < len(data):
            data[place] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind == 2:
            del data[place : place + length]
        elif kind == 3:
            data[place:place] = data[place : place + length] * rng.choice((1, 3, 100))
        elif kind == 4:
            data[place:place] = rng.choice(TOKENS)
        elif kind == 5:
            token = rng.choice(TOKENS)
            data[place : place + len(token)] = token
        elif kind == 6:
            del data[place:]
        else:
            other = rng.choice(others)
            start = rng.randrange(len(other) + 1)
            data[place : place + length] = other[start : start + length]
    return bytes(data)


def mutate_json(rng: random.Random, content: object) -> bytes:
    """One to three values replaced, keys removed, renamed or added, entries removed or repeated; the text of it."""
    # Copied through text, so that nothing is shared with the original.
    content = [json.loads(json.dumps(content))]
    for _ in range(rng.choice((1, 1, 2, 3))):
        holder, key = rng.choice(list(_places(content)))
        if key not in holder if isinstance(holder, dict) else key >= len(holder):
            continue
        kind = rng.randrange(6)
        if kind < 3:
            holder[key] = deepcopy(rng.choice(VALUES))
        elif kind == 3 and holder is not content:
            del holder[key]
        elif kind == 4 and isinstance(holder, dict):
            holder[rng.choice(('', 'type', 'video', 'images', 'loss', 'role', key + ' ', key.upper()))] = holder.pop(
                key
            )
        elif isinstance(holder, list) and holder is not content:
            holder.insert(key, deepcopy(holder[key]))
        elif isinstance(holder, dict):
            holder[rng.choice(('tools', 'system', 'weight', 'video', 'rejected_response'))] = deepcopy(
                rng.choice(VALUES)
            )
    return json.dumps(content[0]).replace(json.dumps(DEEP), 5000 * '[' + 5000 * ']').encode()


def _places(content: object):
    if isinstance(content, (dict, list)):
        for key in content if isinstance(content, dict) else range(len(content)):
            yield content, key
            yield from _places(content[key])
