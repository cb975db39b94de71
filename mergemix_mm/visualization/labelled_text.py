"""A conversation as text for the terminal, with the tokens that are trained on standing out."""

from collections import Counter
from collections.abc import Sequence
from itertools import groupby

from ..functional.preference import IGNORE_INDEX
from ..models.vlms.base import IMAGE, MARKER, PAD, TEXT
from ..utils.text import printable

_NAMES = {PAD: 'pad', IMAGE: 'image', MARKER: 'marker'}
# A run of image tokens includes its markers.
_KINDS = {PAD: 'pad', TEXT: 'text', IMAGE: 'image', MARKER: 'image'}
_TRAINED, _DIM, _RESET = '\x1b[32m', '\x1b[2m', '\x1b[0m'


def format_labels(
    tokens: Sequence[str],
    labels: Sequence[int],
    modality: Sequence[int],
    ignore_index: int = IGNORE_INDEX,
    colour: bool = True,
) -> str:
    r"""Write the tokens of one sample, of L tokens, as text.

    Tokens with a label are green. Runs of image tokens and of padding are dim and only counted: ``[image x 576]``,
    with their markers (start, end, row) ``[image x 576, marker x 2]``. A run ends where labels begin, so that a label
    on an image or on padding, which is a mistake, shows as a green count.

    Args:
        tokens (Sequence[str]): What each token stands for, spaces included, L strings.
        labels (Sequence[int]): The labels, [L]; a tensor will do.
        modality (Sequence[int]): What each token is, [L], of ``VisionLanguageModel.modality``; a tensor will do.
        ignore_index (int): The label of tokens that are not trained on. Defaults to -100.
        colour (bool): Colour by ANSI escape sequences. Without them, what is trained on stands between ``«`` and
            ``»``. Defaults to True.

    Returns:
        str: The text. Control characters of the tokens but newlines and tabs are escaped, as ``\x1b``.

    Raises:
        ValueError: If the three lengths differ.

    Examples:
        >>> print(format_labels(['<image>'] * 576 + [' What', '?', ' A', ' cat'], labels, modality, colour=False))
        [image x 576] What?« A cat»
    """
    if not len(tokens) == len(labels) == len(modality):
        raise ValueError(
            f'format_labels: {len(tokens)} tokens, {len(labels)} labels and {len(modality)} modalities differ; '
            'pass those of one sample.'
        )
    modality = [int(each) for each in modality]
    keys = [(_KINDS[each], int(label) != ignore_index) for each, label in zip(modality, labels)]
    parts = []
    for (kind, trained), run in groupby(range(len(tokens)), key=keys.__getitem__):
        run = list(run)
        if kind == 'text':
            text = ''.join(printable(tokens[index]) for index in run)
        else:
            text = _counted([_NAMES[modality[index]] for index in run])
        parts.append(_paint(text, kind, trained, colour))
    return ''.join(parts)


def _counted(names: list[str]) -> str:
    return f'[{", ".join(f"{name} x {count}" for name, count in sorted(Counter(names).items()))}]'


def _paint(text: str, kind: str, trained: bool, colour: bool) -> str:
    if not colour:
        return f'«{text}»' if trained else text
    code = _TRAINED if trained else '' if kind == 'text' else _DIM
    return f'{code}{text}{_RESET}' if code else text
