"""Tokenizes written conversations. What a record says stays text, even if it spells tokens."""

import json
import re
import secrets
import unicodedata
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from mmpretrain.structures import DataSample

from ...families.base import declared
from ...utils.text import RecordError

# What SentencePiece models write for a byte that is not in the vocabulary.
BYTE_TOKEN = re.compile(r'<0x[0-9A-F]{2}>')


@dataclass
class Tokens:
    """A tokenized text.

    Attributes:
        ids (list[int]): Its tokens.
        offsets (list[tuple[int, int]]): First and last (exclusive) character of each.
        harmless (str): The text for a processor: if the record spells tokens, its characters are replaced by others.
        harmless_ids (list[int]): The tokens of ``harmless``.
    """

    ids: list[int]
    offsets: list[tuple[int, int]]
    harmless: str
    harmless_ids: list[int]

    def then(self, other: 'Tokens', start: int) -> 'Tokens':
        """These, and those of the text that begins at a character."""
        offsets = [(start + first, start + last) for first, last in other.offsets]
        ids, harmless_ids = self.ids + other.ids, self.harmless_ids + other.harmless_ids
        return Tokens(ids, self.offsets + offsets, self.harmless + other.harmless, harmless_ids)


class RecordTokenizer:
    """A fast tokenizer that reads added tokens in what a chat template writes, and only text in what a record says.

    A tokenizer finds its added tokens (``</s>``, ``<|im_end|>``, ``<image>``, ``<tool_call>``) wherever a text spells
    them. If a record spells one, the text is tokenized again by a twin. The twin knows the tokens by other names, which
    are written where the template means them. All other texts keep the tokenizer's own ids.

    Some added tokens may come from a record: white space, and words that somebody added to the vocabulary (letters and
    digits only, not marked as special); the places and masks of PaliGemma (``<loc0001>``, ``<seg001>``), with which it
    answers; and those that ``record_tokens`` names. The first other token that a record spells causes a warning.

    Args:
        tokenizer (PreTrainedTokenizerFast): The tokenizer.
        placeholders (Collection[str]): Further strings that a processor replaces. Defaults to none.
        record_tokens (Collection[str]): Added tokens that a record may write. Defaults to none.

    Raises:
        ValueError: If one of ``record_tokens`` is not an added token, or begins, ends or pads texts.
    """

    def __init__(self, tokenizer, placeholders: Collection[str] = (), record_tokens: Collection[str] = ()) -> None:
        self.tokenizer = tokenizer
        self.placeholders = [text for text in placeholders if text]
        tokens = tokenizer.added_tokens_decoder
        added = {token.content for token in tokens.values()}
        self.ends = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token, *placeholders}
        kept = self._check(record_tokens, added)
        self.controls = {
            number: token.content
            for number, token in tokens.items()
            if token.content not in kept and not _is_text(token)
        }
        self._warned = False
        # A model writes these for characters that it lacks: only their own names are a matter of this class.
        self.written_by_model = {
            number
            for number, content in self.controls.items()
            if content == tokenizer.unk_token or BYTE_TOKEN.fullmatch(content)
        }

    def __call__(self, text: str, is_record: np.ndarray, special_tokens: bool) -> Tokens:
        """Tokenize.

        Args:
            text (str): A written conversation, or a piece of one.
            is_record (numpy.ndarray): [len(text)] bool, which characters the record says.
            special_tokens (bool): Whether the tokenizer should add those that begin and end a text.

        Raises:
            RecordError: If the text holds half of a surrogate pair, which is not a character.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RecordError(f'a text holds {text[error.start]!a}, half of a character') from error
        encoded = self._encode(text, special_tokens)
        ids, offsets = encoded['input_ids'], encoded['offset_mapping']
        harmless, harmless_ids = text, ids
        named = {number for number, span in zip(ids, offsets) if self._is_named(number, text, span, is_record)}
        if named or self._holds_placeholder(text, is_record):
            harmless = ''.join(_harmless(one) if said else one for one, said in zip(text, is_record))
            other = self._encode(harmless, special_tokens)
            harmless_ids = other['input_ids']
            if named:
                self._warn(named)
                ids, offsets = self._quote(text, is_record, other)
        return Tokens(ids, offsets, harmless, harmless_ids)

    def _check(self, names: Collection[str], added: Collection[str]) -> set[str]:
        unknown = sorted(set(names) - set(added))
        if unknown:
            raise ValueError(
                f'EncodeConversation: record_tokens={list(names)} names {unknown}, no added tokens of the model.'
            )
        if self.ends & set(names):
            raise ValueError(
                f'EncodeConversation: record_tokens={list(names)} names {sorted(self.ends & set(names))}, which begin, '
                'end or pad texts, or stand for images.'
            )
        return set(names)

    def _warn(self, numbers: Collection[int]) -> None:
        names = sorted({self.controls[number] for number in numbers} - self.ends)
        if names and not self._warned:
            self._warned = True
            warnings.warn(
                f'a record spells {", ".join(names[:3])}, of the tokens of the model, which is encoded as text; if '
                f'records should write such tokens, name them: EncodeConversation(record_tokens={names[:3]})',
                stacklevel=2,
            )

    def _encode(self, text: str, special_tokens: bool):
        return self.tokenizer(
            text,
            add_special_tokens=special_tokens,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            verbose=False,
        )

    def _is_named(self, number: int, text: str, span: tuple[int, int], is_record: np.ndarray) -> bool:
        """Whether a token is one that controls, which something of the record spells."""
        if number not in self.controls or not is_record[slice(*_inside(text, span))].any():
            return False
        return number not in self.written_by_model or _same(text[slice(*span)], self.controls[number])

    def _holds_placeholder(self, text: str, is_record: np.ndarray) -> bool:
        for placeholder in self.placeholders:
            start = text.find(placeholder)
            while start >= 0:
                if is_record[start : start + len(placeholder)].any():
                    return True
                start = text.find(placeholder, start + 1)
        return False

    def _quote(self, text: str, is_record: np.ndarray, harmless) -> tuple[list[int], list[tuple[int, int]]]:
        """Tokenize with the twin: the added tokens of the harmless text outside the record are the template's."""
        names, twin = self._twin
        pieces, places, position = [], [], 0
        for number, span in zip(harmless['input_ids'], harmless['offset_mapping']):
            first, last = _inside(text, span)
            if number not in names or first == last or is_record[first:last].any():
                continue
            if number in self.written_by_model and not _same(text[first:last], self.controls[number]):
                continue
            pieces += [text[position:first], names[number]]
            places += [*range(position, first), *[first] * len(names[number])]
            position = last
        pieces.append(text[position:])
        places += [*range(position, len(text) + 1)]
        encoding = twin.encode(''.join(pieces), add_special_tokens=False)
        offsets = [(places[first], places[last]) for first, last in encoding.offsets]
        front, back = _added_by_tokenizer(harmless)
        ids = [*front, *encoding.ids, *back]
        offsets = [*[(0, 0)] * len(front), *offsets, *[(0, 0)] * len(back)]
        # The unknown token is not a control token, even if the record spells its name.
        controls = set(self.controls) - self.written_by_model
        if any(
            number in controls and self._is_named(number, text, span, is_record) for number, span in zip(ids, offsets)
        ):
            raise RuntimeError(
                f'EncodeConversation: {type(self.tokenizer).__name__} makes a control token of the text of a record'
            )
        return ids, offsets

    @cached_property
    def _twin(self):
        """The names of the tokens that control in the twin, by their ids, and the twin."""
        from tokenizers import Tokenizer

        # A random key, so that no record can spell the names.
        key = secrets.token_hex(8)
        content = json.loads(self.tokenizer.backend_tokenizer.to_str())
        names, renamed = {}, {}
        for number, token in self.controls.items():
            names[number] = renamed[token] = f'\U00100000{key}{number}\U00100001'
        # A model that falls back to bytes must find them by their own names. They are only removed as added tokens.
        for token in [token for token in renamed if BYTE_TOKEN.fullmatch(token) and token in _pieces(content['model'])]:
            names.pop(self.tokenizer.convert_tokens_to_ids(token))
            renamed.pop(token)
            content['added_tokens'] = [one for one in content['added_tokens'] if one['content'] != token]
        for token in content['added_tokens']:
            token['content'] = renamed.get(token['content'], token['content'])
        _rename_pieces(content['model'], renamed)
        content.update(truncation=None, padding=None)
        twin = Tokenizer.from_str(json.dumps(content))
        wrong = [number for number, name in names.items() if twin.token_to_id(name) != number]
        if wrong:
            raise RuntimeError(
                f'EncodeConversation: the added tokens of {type(self.tokenizer).__name__} cannot be told from the text '
                f'of a record: {[self.controls[number] for number in wrong[:3]]} would change their ids'
            )
        return names, twin

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key != '_twin'}


def data_sample(fields: dict[str, Any]) -> DataSample:
    """A data sample with these fields, but for names that a DataSample has itself."""
    sample = DataSample()
    for key, value in fields.items():
        if not hasattr(DataSample, key):
            sample.set_field(value, key)
    return sample


def pad_token_id(tokenizer) -> int:
    """What pads the tokens: the padding token, or the end token, or 0."""
    ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(token for token in ids if token is not None)


def _is_text(token) -> bool:
    """Whether an added token only stands for the text that it spells."""
    word = not token.special and all(character.isalnum() or character in ' ▁' for character in token.content)
    patterns = [family.answer_tokens for family in declared() if family.answer_tokens]
    return word or not token.content.strip() or any(re.fullmatch(pattern, token.content) for pattern in patterns)


def _pieces(model: dict) -> Collection[str]:
    """The vocabulary of a model of the library `tokenizers`, as JSON."""
    vocabulary = model.get('vocab', {})
    return vocabulary if isinstance(vocabulary, dict) else [piece for piece, _ in vocabulary]


def _rename_pieces(model: dict, renamed: dict[str, str]) -> None:
    """Rename pieces of a model of the library `tokenizers` (as JSON), and remove the merges that make them."""
    vocabulary = model.get('vocab')
    if isinstance(vocabulary, dict):
        model['vocab'] = {renamed.get(piece, piece): number for piece, number in vocabulary.items()}
    elif isinstance(vocabulary, list):
        model['vocab'] = [[renamed.get(piece, piece), score] for piece, score in vocabulary]
    if model.get('unk_token') in renamed:
        model['unk_token'] = renamed[model['unk_token']]
    if 'merges' in model:
        pairs = [merge.split(' ') if isinstance(merge, str) else merge for merge in model['merges']]
        model['merges'] = [pair for pair in pairs if not {*pair, ''.join(pair)} & set(renamed)]


def _inside(text: str, span: tuple[int, int]) -> tuple[int, int]:
    """A span without the white space at its ends, which some added tokens include."""
    piece = text[slice(*span)]
    core = piece.strip()
    first = span[0] + (piece.index(core) if core else 0)
    return first, first + len(core)


def _added_by_tokenizer(encoded) -> tuple[list[int], list[int]]:
    """The tokens with which a tokenizer begins and ends a text."""
    ids, mask = encoded['input_ids'], encoded['special_tokens_mask']
    front = next((place for place, added in enumerate(mask) if not added), len(ids))
    back = next((place for place, added in enumerate(reversed(mask)) if not added), 0) if front < len(ids) else 0
    return ids[:front], ids[len(ids) - back :]


def _harmless(character: str) -> str:
    """A character of the same kind that cannot spell a token."""
    return character if character.isspace() else 'x' if character.isalnum() or character == '_' else '.'


def _same(text: str, content: str) -> bool:
    return unicodedata.normalize('NFKC', text).strip().casefold() == content.strip().casefold()
