"""A conversation as text for the terminal, with the tokens that have labels highlighted."""

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

    Tokens with a label are green. Runs of image tokens and of padding are dim and shown as counts: ``[image x 576]``,
    or with their markers (start, end, row) ``[image x 576, marker x 2]``. A run ends where labels begin, so that labels
    on images or padding, which are a mistake, show as a green count.

    Args:
        tokens (Sequence[str]): The text of each token, including spaces, L strings.
        labels (Sequence[int] | Tensor): The labels, [L].
        modality (Sequence[int] | Tensor): The modality of each token, [L], see ``VisionLanguageModel.modality``.
        ignore_index (int): The label of tokens that are not trained on. Defaults to -100.
        colour (bool): Whether to colour with ANSI escape sequences. If not, tokens with labels are between ``«`` and
            ``»``. Defaults to True.

    Returns:
        str: The text. Control characters in tokens are written out, as ``\x1b``, except newlines and tabs.

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
