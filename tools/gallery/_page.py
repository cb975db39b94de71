"""The HTML page of the gallery, one file that contains its images."""

import base64
import os
import platform
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from _entries import Entry
    from _results import Figure, Shown

STYLE = Path(__file__).with_name('page.css')


class Section(NamedTuple):
    """A method on the page: its entry, the finished commands, and its results or the reason why there are none."""

    entry: 'Entry'
    done: Sequence[dict]
    shown: 'Shown | None'
    note: str = ''


def make_page(sections: Sequence[Section], quick: bool, root: Path) -> str:
    """Make the page.

    Args:
        sections (Sequence[Section]): The methods in order.
        quick (bool): Whether the runs were cut short, which the page mentions.
        root (Path): The repository, which paths on the page are relative to.

    Returns:
        str: HTML that does not refer to other files.
    """
    links = ''.join(f'<a href="#{one.entry.name}">{escape(one.entry.title)}</a>' for one in sections)
    warning = '<p><b>Cut short by --quick: these numbers mean nothing.</b></p>' if quick else ''
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>mergemix_mm: gallery</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<style>\n{STYLE.read_text()}</style>\n</head>\n<body>\n'
        f'<header><h1>mergemix_mm: gallery</h1><p>The tiny config of every method, trained on this machine from random '
        f'weights; one run each, with seed 0. They show how the methods work, not how good they are: that is '
        f'docs/benchmarks.</p>{warning}<nav>{links}</nav></header>\n<main>\n'
        + '\n'.join(_section(one, root) for one in sections)
        + f'\n</main>\n<footer>{_footer(sections)}</footer>\n</body>\n</html>\n'
    )


def _section(section: Section, root: Path) -> str:
    entry, shown = section.entry, section.shown
    parts = [
        f'<section id="{entry.name}">',
        f'<h2>{escape(entry.title)}</h2>',
        f'<p class="text">{escape(entry.text)}</p>',
    ]
    if section.note:
        parts.append(f'<p>{escape(section.note)}</p>')
    if shown is not None:
        cells = (f'<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>' for name, value in shown.numbers.items())
        parts.append(f'<dl>{"".join(cells)}</dl>')
        parts.append(f'<div class="figures">{"".join(map(_figure, shown.figures))}</div>')
    if section.done:
        parts.append(f'<pre>{chr(10).join(_command(one, root) for one in section.done)}</pre>')
    return '\n'.join([*parts, '</section>'])


def _figure(figure: 'Figure') -> str:
    data = base64.b64encode(figure.png).decode('ascii')
    caption = escape(figure.caption)
    return (
        f'<figure><img alt="{caption}" src="data:image/png;base64,{data}"><figcaption>{caption}</figcaption></figure>'
    )


def _command(done: dict, root: Path) -> str:
    return f'python {escape(done["command"].replace(f"{root}/", ""))} <span># {_duration(done["seconds"])}</span>'


def _footer(sections: Sequence[Section]) -> str:
    total = sum(one['seconds'] for section in sections for one in section.done)
    return f'{_duration(total)} in all, Python {platform.python_version()}, torch {torch.__version__}, {_device()}.'


def _device() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f'{os.cpu_count()} CPU cores'


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f'{minutes} min {seconds} s' if minutes else f'{seconds} s'
