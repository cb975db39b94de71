"""One question as a conversation, and the prompts around it: those of LLaVA-1.5 (arXiv 2310.03744) and of SPHINX."""

from collections.abc import Sequence
from string import ascii_uppercase

SHORT_ANSWER = '\nAnswer the question using a single word or phrase.'
OPTION_LETTER = "\nAnswer with the option's letter from the given choices directly."


def option_lines(choices: Sequence[str]) -> str:
    """The choices of a question, one line each: ``A. ...``.

    Raises:
        ValueError: If there is no choice, or there are more than 26.
    """
    if not 0 < len(choices) <= len(ascii_uppercase):
        raise ValueError(f'has {len(choices)} choices; there must be 1 to {len(ascii_uppercase)}, A to Z')
    return '\n'.join(f'{letter}. {choice}' for letter, choice in zip(ascii_uppercase, choices))


def question_messages(question: str, num_images: int = 0, answer: str | None = None) -> list[dict]:
    """A conversation of one question after its images, and its answer.

    Args:
        question (str): The text of the user turn; '' if it consists of images only.
        num_images (int): How many images precede it. Defaults to 0.
        answer (str, optional): The text of the assistant turn. Defaults to None: the conversation has no answer.

    Returns:
        list[dict]: Messages in transformers' format.
    """
    content = [dict(type='image') for _ in range(num_images)]
    content += [dict(type='text', text=question)] if question else []
    messages = [dict(role='user', content=content)]
    if answer is not None:
        messages.append(dict(role='assistant', content=[dict(type='text', text=answer)]))
    return messages
