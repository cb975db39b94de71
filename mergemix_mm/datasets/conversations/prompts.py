"""Wording that datasets and task transforms share: prompts of LLaVA-1.5 (arXiv 2310.03744), and of SPHINX as well."""

from collections.abc import Sequence
from string import ascii_uppercase

SHORT_ANSWER = '\nAnswer the question using a single word or phrase.'
OPTION_LETTER = "\nAnswer with the option's letter from the given choices directly."


def option_lines(choices: Sequence[str]) -> str:
    """The choices of a question, a line each: ``A. ...``.

    Raises:
        ValueError: If there are none, or more than letters.
    """
    if not 0 < len(choices) <= len(ascii_uppercase):
        raise ValueError(f'has {len(choices)} choices; there must be 1 to {len(ascii_uppercase)}, A to Z')
    return '\n'.join(f'{letter}. {choice}' for letter, choice in zip(ascii_uppercase, choices))
