"""Texts of others do not steer the terminal."""

import pytest

from mergemix_mm.utils.text import one_line, printable, quoted, shown


@pytest.mark.parametrize(
    'text, expected',
    [
        ('\x1b]0;owned\x07\x1b[2J', r'\x1b]0;owned\x07\x1b[2J'),
        ('safe\rfake', r'safe\rfake'),
        ('ab\b\b', r'ab\x08\x08'),
        ('\x9b31m', r'\x9b31m'),
        ('user\u202egnp.exe\u202c', r'user\u202egnp.exe\u202c'),
        ('\u2066a\u2069', r'\u2066a\u2069'),
        ('\ud800', r'\ud800'),
        ('\x7f\x00', r'\x7f\x00'),
    ],
)
def test_what_steers_a_terminal_is_written_out(text, expected):
    assert printable(text) == expected == shown(text)


TEXTS = ['def f():\n\treturn 1\n', 'größer 日本語\u3000\xa0', '👩\u200d🚀 می\u200cخواهم', 'עברית']


@pytest.mark.parametrize('text', TEXTS)
def test_normal_text_stays(text):
    assert printable(text) == text
    assert printable('a\r\nb') == 'a\nb'


def test_a_shown_text_is_one_short_line():
    assert shown('a\nb\tc\u2028') == r'a\nb\tc\u2028'
    cut = shown('x' * 100 + 'end', limit=20)
    assert len(cut) == 20 and cut.endswith('end') and '...' in cut and shown('x' * 20, limit=20) == 'x' * 20


def test_a_quoted_value_is_short_and_holds_no_content():
    assert quoted(['a', 1, None]) == "['a', 1, None]" and quoted(b'123') == '<3 bytes>'
    assert quoted('x' * 1000, 200).count('x') < 60 and len(quoted(list(range(1000)) * 9, 20)) <= 20
    assert quoted([[[[['deep']]]]]) == '[[[[...]]]]'
    assert quoted('a\nb\ud800') == r"'a\nb\ud800'"


def test_a_message_of_several_lines_becomes_one():
    assert one_line('a\n   b\r\n\tc  d \x1b[2J ') == r'a b c  d \x1b[2J'
    assert one_line(ValueError()) == 'ValueError' and one_line('') == ''
    word = one_line(f'image {"x" * 500} is cut')
    assert 'xxx...xxx' in word and word.endswith('is cut') and word.count('x') == 100
    assert len(one_line('ab ' * 1000)) == 600 and one_line('ab ' * 1000, 20) == 'ab ab ab ab ab ab...'
