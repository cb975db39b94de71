"""One question as a conversation, and the prompts around it: those of LLaVA-1.5 (arXiv 2310.03744) and of SPHINX."""

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


def question_messages(question: str, num_images: int = 0, answer: str | None = None) -> list[dict]:
    """One question after its images, and its answer if there is one.

    Args:
        question (str): The text of the user turn; '' where the images say it all.
        num_images (int): How many images precede it. Defaults to 0.
        answer (str, optional): The text of the assistant turn. Defaults to None, which leaves it out.
    """
    content = [dict(type='image') for _ in range(num_images)]
    content += [dict(type='text', text=question)] if question else []
    messages = [dict(role='user', content=content)]
    if answer is not None:
        messages.append(dict(role='assistant', content=[dict(type='text', text=answer)]))
    return messages
