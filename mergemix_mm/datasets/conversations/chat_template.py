"""Chat templates that mark what the model generates: the repository's, a file, or the processor's own."""

import re
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from ...families.base import family_of
from ...utils.text import RecordError, quoted
from . import bounded_rendering
from .bounded_rendering import RenderingError, RenderingLimitError

FOLDER = Path(__file__).parents[2] / 'families' / 'chat_templates'
GENERATION_MARK = re.compile(r'\{%-?\s*generation\s*-?%\}')
# A template that leaves out questions, as LLaVA's first stage does, says so in a comment.
LEAVES_OUT = re.compile(r'\{#-?[^#]*\bleaves out: (user)\b')
# Private characters. The first four that a conversation does not contain mark its texts and answers.
MARKS = [chr(0x10FF00 + number) for number in range(64)]
QUESTION = dict(role='user', content=[dict(type='image'), dict(type='text', text='Q')])
ANSWER = dict(role='assistant', content=[dict(type='text', text='A')])


@dataclass(frozen=True)
class WrittenConversation:
    """A conversation as a text.

    Attributes:
        text (str): All of it.
        answers (list[tuple[int, int]]): First and last (exclusive) character of each answer, its end-of-turn token
            included.
        is_record (numpy.ndarray): [len(text)] bool, which characters come from a turn of the record. The template wrote
            the others.
    """

    text: str
    answers: list[tuple[int, int]]
    is_record: np.ndarray

    def with_images(self, placeholder: str, in_text: str) -> 'WrittenConversation':
        """The same conversation with another text in the place of each image that the template wrote.

        Args:
            placeholder (str): What the template wrote for an image.
            in_text (str): The other text.
        """
        if in_text == placeholder:
            return self
        places = [place.start() for place in re.finditer(re.escape(placeholder), self.text)]
        places = [place for place in places if not self.is_record[place : place + len(placeholder)].any()]
        added, text, is_record = len(in_text) - len(placeholder), self.text, self.is_record.tolist()
        for place in reversed(places):
            text = text[:place] + in_text + text[place + len(placeholder) :]
            is_record[place : place + len(placeholder)] = [False] * len(in_text)

        def moved(edge: int) -> int:
            return edge + added * bisect_left(places, edge)

        answers = [(moved(first), moved(last)) for first, last in self.answers]
        return WrittenConversation(text, answers, np.array(is_record, dtype=bool))


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja template and what it may refer to.

    Templates of this package are rendered in this process. Other templates are not trusted: they are rendered in
    another process with limits of computing time, memory and length.

    Attributes:
        name (str): For messages.
        text (str): The template, with its answers between ``{% generation %}`` and ``{% endgeneration %}``.
        variables (dict): ``image_token``, ``opening`` and the special tokens of the tokenizer.
        preamble (str): Put in front of every conversation.
    """

    name: str
    text: str
    variables: dict
    preamble: str = ''

    def render(self, messages: list[dict], generation_prompt: bool = False) -> tuple[str, list[tuple[int, int]]]:
        """Write a conversation down.

        Args:
            messages (list[dict]): In transformers' format.
            generation_prompt (bool): Whether to append what precedes an answer. Defaults to False.

        Returns:
            tuple: The text, and first and last (exclusive) character of each answer, its end-of-turn token included.

        Raises:
            RecordError: If the template refuses the conversation, or takes more time, memory or text than any real one.
        """
        written, _ = self._write(messages, generation_prompt)
        return written.text, written.answers

    def write(self, messages: list[dict], generation_prompt: bool = False) -> WrittenConversation:
        """As :meth:`render`, with the characters that the record says, all of which must be there.

        Raises:
            RecordError: Also if the template leaves out or changes what a turn says, such as a system prompt.
        """
        written, missing = self._write(messages, generation_prompt)
        if missing:
            raise self._swallows(missing)
        return written

    def _swallows(self, missing: list[str]) -> RecordError:
        return RecordError(
            f'the chat template {self.name!r} leaves out or changes what turns say ({"; ".join(missing[:3])}); use '
            'another chat_template, or records without it'
        )

    def _write(self, messages: list[dict], generation_prompt: bool) -> tuple[WrittenConversation, list[str]]:
        texts = [part['text'] for message in messages for part in message['content'] if part['type'] == 'text']
        everything = ''.join([*texts, self.text, self.preamble, self.variables.get('opening', '')])
        marks = [mark for mark in MARKS if mark not in everything][:4]
        turns = [{key: value for key, value in message.items() if key != 'train'} for message in messages]
        context = dict(self.variables, add_generation_prompt=generation_prompt)
        try:
            marked, differs = bounded_rendering.render(self.text, turns, marks, context, _is_own(self.text))
        except RenderingLimitError as error:
            raise RecordError(f'the chat template {self.name!r} {error}') from error
        except RenderingError as error:
            raise RecordError(f'the chat template {self.name!r} refuses the conversation: {error}') from error
        written, missing = self._unmark(marked, marks, messages)
        if differs and missing:
            raise self._swallows(missing)
        if differs:
            raise RecordError(
                f'the chat template {self.name!r} decides by the text that it writes, so that this cannot be told from '
                'its own text; use another chat_template'
            )
        return written, missing

    def _unmark(self, marked: str, marks: list[str], messages: list[dict]) -> tuple[WrittenConversation, list[str]]:
        """The conversation without marks, and a short piece of each text that is missing."""
        pieces, is_record, answers, said = [self.preamble], [False] * len(self.preamble), [], []
        inside, first = False, 0
        for piece in re.split(f'([{"".join(marks)}])', marked):
            if piece in marks:
                inside = piece == marks[0] if piece in marks[:2] else inside
                if piece == marks[0]:
                    said.append('')
                elif piece == marks[2]:
                    first = len(is_record)
                elif piece == marks[3]:
                    answers.append((first, len(is_record)))
                continue
            pieces.append(piece)
            is_record += [inside] * len(piece)
            if inside:
                said[-1] += piece
        written = WrittenConversation(''.join(pieces), answers, np.array(is_record, dtype=bool))
        return written, self._missing(messages, Counter(map(_key, said)))

    def _missing(self, messages: list[dict], said: Counter) -> list[str]:
        left_out = set(LEAVES_OUT.findall(self.text))
        missing = []
        for message in messages:
            for part in message['content']:
                if part['type'] != 'text' or not part['text'].strip() or message['role'] in left_out:
                    continue
                key = _key(part['text'])
                said[key] -= 1
                if said[key] < 0:
                    missing.append(f'{message["role"]}: {quoted(part["text"].strip(), 40)}')
        return missing


def _key(text: str) -> str:
    """The part of a text that a template must keep: it may change case and white space."""
    return ''.join(text.split()).casefold()


@cache
def _own_texts() -> frozenset[str]:
    return frozenset(read_template(name) for name in repository_templates())


def _is_own(text: str) -> bool:
    """Whether a template is one of this package, possibly saved with a model."""
    return text in _own_texts()


def repository_templates() -> list[str]:
    """Names of the templates that come with this package."""
    return sorted(path.stem for path in FOLDER.glob('*.jinja'))


def read_template(name: str) -> str:
    """The text of one of them."""
    return (FOLDER / f'{name}.jinja').read_text(encoding='utf-8')


def find_chat_template(processor, chat_template: str | None = None) -> ChatTemplate:
    """Choose the template of a processor.

    Args:
        processor: A transformers processor.
        chat_template (str, optional): Name of a template of the repository, or path of a file. Defaults to None: the
            processor's own template if it marks answers and ends them with a special token; otherwise the
            repository's template that writes the same prompt as the processor's own, or as that one with
            ``enable_thinking=False``; for a processor without any, the one of its family.

    Raises:
        ValueError: If the template does not exist, does not mark answers, takes more time, memory or text than any real
            one, or if no template fits.
    """
    family = family_of(processor)
    own = getattr(processor, 'chat_template', None) or getattr(processor.tokenizer, 'chat_template', None)
    own = own.get('default') if isinstance(own, dict) else own
    opening = family.opening(own) if isinstance(own, str) else ''
    variables = dict(processor.tokenizer.special_tokens_map, image_token=placeholder_of(processor), opening=opening)
    preamble = family.preamble(processor)

    def build(name: str, text: str) -> ChatTemplate:
        return ChatTemplate(name, text, variables, preamble)

    def from_repository(name: str) -> ChatTemplate:
        return build(name, read_template(name))

    if chat_template is not None:
        return _named(chat_template, from_repository, build)
    guess = family.chat_template
    if own is None:
        if guess is None:
            raise _no_template(processor, 'has no chat template')
        return from_repository(guess)
    if not isinstance(own, str):
        raise _no_template(processor, f'has {quoted(own)} for a chat template, which is no text')
    own = build('of the processor', own)
    if GENERATION_MARK.search(own.text) and _closes_answers(own, processor.tokenizer):
        return own
    # The template of a released processor marks no answers. One of this package that writes the same prompt does.
    # Records hold answers without thoughts: the prompt for these is meant where a template writes two.
    for options in ({}, dict(enable_thinking=False)):
        wanted = _prompt(replace(own, variables=own.variables | options))
        for name in sorted(repository_templates(), key=lambda name: (name != guess, name)):
            candidate = from_repository(name)
            if wanted is not None and _prompt(candidate) == wanted:
                return candidate
    reason = 'ends no answer with a special token' if GENERATION_MARK.search(own.text) else 'marks no answers'
    raise _no_template(
        processor, f'has a chat template that {reason}, and writes a prompt unlike any here ({quoted(_prompt(own))})'
    )


def placeholder_of(processor) -> str:
    """What stands for an image in a processor's text."""
    token = family_of(processor).placeholder(processor)
    if token is None:
        raise ValueError(
            f'EncodeConversation: {type(processor).__name__} has no image_token; use the processor of a '
            'vision-language model, such as dict(type="transformers.AutoProcessor.from_pretrained", ...).'
        )
    return str(token)


def _named(name: str, from_repository, build) -> ChatTemplate:
    if name in repository_templates():
        return from_repository(name)
    path = Path(name)
    if not path.is_file():
        raise ValueError(
            f'EncodeConversation: chat_template={name!r} is neither a file nor one of {repository_templates()}.'
        )
    try:
        text = path.read_text(encoding='utf-8')
    except (OSError, UnicodeError) as error:
        raise ValueError(f'EncodeConversation: chat_template={name!r} cannot be read as text: {error}.') from error
    if not GENERATION_MARK.search(text):
        raise ValueError(
            f'EncodeConversation: chat_template={name!r} marks no answers; put {{% generation %}} ... '
            f'{{% endgeneration %}} around an answer and its end-of-turn token, or use one of {repository_templates()}.'
        )
    return build(name, text)


def _no_template(processor, what: str) -> ValueError:
    return ValueError(
        f'EncodeConversation: {type(processor).__name__} {what}, so labels cannot be found. Give chat_template=: one '
        f'of {repository_templates()}, or the path of a template with {{% generation %}} ... {{% endgeneration %}} '
        'around an answer and its end-of-turn token.'
    )


def _closes_answers(template: ChatTemplate, tokenizer) -> bool:
    try:
        text, spans = template.render([QUESTION, ANSWER])
    except RecordError as error:
        _refuse_endless(error)
        return False
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    special |= set(tokenizer.all_special_tokens)
    return len(spans) == 1 and text[slice(*spans[0])].rstrip().endswith(tuple(special))


def _prompt(template: ChatTemplate) -> str | None:
    try:
        return template.render([QUESTION], generation_prompt=True)[0]
    except RecordError as error:
        _refuse_endless(error)
        return None


def _refuse_endless(error: RecordError) -> None:
    if isinstance(error.__cause__, RenderingLimitError):
        raise ValueError(
            f'EncodeConversation: {error}; give chat_template=, one of {repository_templates()}.'
        ) from None
