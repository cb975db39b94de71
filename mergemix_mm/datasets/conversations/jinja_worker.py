"""Renders chat templates with marks around what a record says, in this process or as a program for another one.

:mod:`bounded_rendering` starts the program for templates of unknown origin. It imports only Jinja: less to load, and
less that such a template could reach.
"""

import json
import socket
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

# Limits of one rendering: a thousand times what any real template needs.
MAX_CHARACTERS = 2**24
MAX_CPU_SECONDS = 2
MAX_BYTES = 2**30


class TooLongError(Exception):
    """A template wrote more than ``MAX_CHARACTERS`` characters."""


@lru_cache(maxsize=32)
def compile_template(template: str, opening: str, closing: str):
    """Compile a template as transformers does, with marks around its answers.

    Args:
        template (str): Its text.
        opening (str): The mark for ``{% generation %}``.
        closing (str): The mark for ``{% endgeneration %}``.
    """
    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Answers(Extension):
        tags = {'generation'}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(['name:endgeneration'], drop_needle=True)
            first, last = (nodes.Output([nodes.TemplateData(mark)]) for mark in (opening, closing))
            return [first.set_lineno(line), nodes.Scope(body).set_lineno(line), last.set_lineno(line)]

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def raise_exception(message):
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Answers, loopcontrols]
    )
    environment.filters['tojson'] = tojson
    environment.globals['raise_exception'] = raise_exception
    environment.globals['strftime_now'] = lambda form: datetime.now().strftime(form)
    return environment.from_string(template)


def render(template: str, messages: Sequence[dict], marks: Sequence[str], context: Mapping[str, Any]) -> str:
    """Write a conversation down.

    Args:
        template (str): The template.
        messages (Sequence[dict]): In transformers' format, each ``content`` a list of parts.
        marks (Sequence[str]): Four characters that occur nowhere else: two around what turns say, two around answers.
        context (Mapping): Further variables.

    Returns:
        str: The text, with the marks in it.

    Raises:
        TooLongError: If it has more than ``MAX_CHARACTERS`` characters.
        Exception: Whatever the template raises.
    """
    pieces, length = [], 0
    marked = [dict(message, content=[mark(part, marks) for part in message['content']]) for message in messages]
    variables = dict(tools=None, documents=None, **context)
    for piece in compile_template(template, *marks[2:]).generate(messages=marked, **variables):
        length += len(piece)
        if length > MAX_CHARACTERS:
            raise TooLongError
        pieces.append(piece)
    return ''.join(pieces)


def mark(part: dict, marks: Sequence[str]) -> dict:
    """A part with marks around its text.

    White space at both ends stays outside the marks, as templates strip it or look at it.
    """
    if part.get('type') != 'text' or not part['text'].strip():
        return part
    text = part['text']
    core = text.strip()
    start = text.index(core)
    return dict(part, text=text[:start] + marks[0] + core + marks[1] + text[start + len(core) :])


def answer(request: dict) -> dict:
    """Render for another process: ``text``, or ``error``, or which ``limit`` was reached.

    The conversation is also written without marks around its texts; ``differs`` says whether the result is another
    text, as a template may decide by the first characters of a turn.
    """
    template, messages, marks = request['template'], request['messages'], request['marks']
    try:
        text = render(template, messages, marks, request['context'])
        bare = render(template, messages, ['', '', *marks[2:]], request['context'])
        return dict(text=text, differs=text.translate({ord(one): None for one in marks[:2]}) != bare)
    except TooLongError:
        return dict(limit=f'writes more than {MAX_CHARACTERS} characters')
    except MemoryError:
        return dict(limit=f'takes more than {MAX_BYTES >> 20} MB of memory')
    except RecursionError:
        return dict(limit='calls itself without end')
    except Exception as error:  # An unknown template can raise any error.
        return dict(error=f'{error}' or type(error).__name__)


def _limit_cpu() -> None:
    """Let the system end this process if the next rendering computes for too long."""
    import resource

    usage = resource.getrusage(resource.RUSAGE_SELF)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (int(usage.ru_utime + usage.ru_stime) + 1 + MAX_CPU_SECONDS, hard))


def main() -> None:
    """Answer requests, one line of JSON each, until the other side closes the socket."""
    sys.path += sys.argv[1:]  # where Jinja is
    channel = socket.socket(fileno=0)
    import jinja2  # noqa: F401 - importing it must not count towards the limits

    limited = True
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, ValueError, OSError):  # On this system, the other process stops this one by the clock.
        limited = False
    with channel.makefile('r', encoding='ascii') as lines:
        for line in lines:
            if limited:
                _limit_cpu()
            channel.sendall(json.dumps(answer(json.loads(line))).encode('ascii') + b'\n')


if __name__ == '__main__':
    main()
