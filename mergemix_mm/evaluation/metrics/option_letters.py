"""Which option of a multiple-choice question an answer in free text chooses; docs/option_letters.md lists the forms."""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from string import ascii_uppercase

from .answers import normalise_answer, without_thoughts

_LONGEST = 200  # Characters in a box, a tag or a key of JSON; a longer content is not an option.
_DEPTH = 3  # Levels of nesting: an answer in a box in a tag in JSON.

# What surrounds an answer and is not part of it: control tokens, Markdown, LaTeX and HTML.
_SPEAKER = re.compile(r'\s*(?:assistant|gpt|model)\s*:\s*', re.IGNORECASE)
_TOKENS = re.compile(r'<\|[^|<>]{1,40}\|>|</?s>|<eos>|<end_of_turn>|<pad>')
_STYLES = re.compile(r'\\(?:text\w{0,2}|math\w{2})\s*\{([^{}]*)\}')
_MARKUP = re.compile(r'</?(?:b|i|u|em|strong|p|br|code|span) ?/?>|[\\$*`"\u201c\u201d#~]|(?<!\w)_{1,9}|_{1,9}(?!\w)')
_QUOTED = re.compile(r"(?<!\w)['\u2018\u2019]([A-Za-z])['\u2018\u2019](?!\w)")
_BRACKETED = re.compile(r'[\[({<\u3008\u300a\u300c\u300e\u3010]\s*([A-Za-z])\s*[\])}>\u3009\u300b\u300d\u300f\u3011]')

# The places in which prompts tell a model to put its answer.
_BOX = re.compile(r'\\f?box(?:ed)?\s*\{')
_BOX_WITHOUT_BRACES = re.compile(r'\\boxed\s+([A-Za-z])(?![A-Za-z])')
_TAG = re.compile(
    r'[<\[](answer|final_answer|final|conclusion|option|choice|response|result)[>\]](?!\()(.*?)(?:[<\[]/\1[>\]]|\Z)',
    re.IGNORECASE | re.DOTALL,
)
_KEY = re.compile(r'["\'](?:\w+[_ ])?(?:answer|option|choice|letter|prediction)["\']\s*:\s*', re.IGNORECASE)
_VALUE = re.compile(
    r'(?:(["\'])([^\n]{0,200}?)\1|\[\s*(["\'])([^\n]{0,200}?)\3\s*\]|(?P<bare>[A-Za-z]|-?\d+(?:\.\d+)?))\s*(?:[,}\n]|\Z)'
)

# A letter that is not part of a word. Chinese characters may touch it, as Chinese has no spaces.
_WORD = "A-Za-z0-9\u00c0-\u024f'\u2019"
# Includes Japanese and Korean.
_CHINESE = '\u3000-\u30ff\u4e00-\u9fff\uac00-\ud7a3'
_LETTER = rf'(?<![{_WORD}])(?P<open>\(?)(?P<letter>[A-Za-z])(?![{_WORD}])(?P<close>\)?)'
_LONE = re.compile(r'[\W_]*([A-Za-z])[\W_]*')

# What must follow a letter that could also be a word ("A", "I", and all small letters).
_NO_WORD = re.compile(
    rf'\s*(?:\Z|[.:;,!?\n{_CHINESE}])|\s+(?:[-\u2013\u2014(]|because\b|since\b|is\b|(?:and |but )?not\b|rather\b)'
)
# What denies a choice or leaves it open.
_DENIED_BEFORE = re.compile(
    r'(?:(?:\b(?:not|never|neither|nor|except|than|instead of|if|whether|unless|cannot|without|exclude|eliminate)'
    r"|n't) +(?:[\w']+[ -]+){0,2}|不|不是|不应|不會|排除|如果|非)\(?\Z",
    re.IGNORECASE,
)
_DENIED_AFTER = re.compile(
    r'[\s)]{0,3}(?:(?:is|are|was|seems|looks|does|do|can|could|would|should|must|may) *)?(?:be +)?'
    r"(?:(?:clearly|also|definitely|obviously|probably) +)?(?:not\b|n't|cannot\b|incorrect|wrong|false)"
    r'|[\s)]*\?|(?:选项|選項|项)?(?:是|并)?(?:错|錯|不对|不對|不正确)',
    re.IGNORECASE,
)
_AND = r'(?:and/or|or\b|and\b|nor\b|[/&,;+、]|或者?|和|与|與|及)'
_ANOTHER = re.compile(
    # "B; A is wrong" names one.
    r'\s*(?![,;]\s*(?:option\s+)?\(?[A-Za-z]\)?\s+(?:is|was|isn|does|cannot)\b)'
    rf'{_AND}\s*(?:(?:or|and|maybe|perhaps|possibly|even|also)\s+)*(?:option\s+)?(?:\([A-Za-z]\)|[A-HJ-Z](?![{_WORD}])|[Ia-z](?=\s*(?:\Z|[.,;)\n])))'
)
_AFTER_ANOTHER = re.compile(rf'(?:\([A-Za-z]\)|(?<![{_WORD}])[A-Z])\s*{_AND}\s*(?:option\s+)?\Z')

# How an answer is announced. If there is a `final` one, only that counts.
_NOUN = r'(?:answers?|ans|option|choice|letter|solution|response|selection|prediction|result|(?:correct|right) one)'
_LINK = (
    r'(?:(?:is|would be|should be|must be|will be|has to be|seems to be|appears to be)\b'
    r"|['\u2019]s\b|[:=→]|->|=>|[-\u2013\u2014] )"
)
_ADVERBS = r'(?:(?:clearly|definitely|obviously|indeed|simply|therefore|thus|most likely|likely|probably)\s+)?'
_BETWEEN = (
    r'(?:\s+(?:to|for|of|from|among|that|which)\s[^.\n:?]{0,60}?|\s+(?:here|in\s[^.,\n:?]{1,40}?)|,\s[^.,\n:?]{1,60},)?'
)
_SAYS = (
    rf'\b(?P<final>final\s+)?{_NOUN}\b\.?{_BETWEEN}\s*{_LINK}\s*:?\s*'
    rf'{_ADVERBS}(?:(?:the\s+)?(?:correct\s+)?{_NOUN}\s*(?:is\b|:)?\s*)?'
)
_SAYS_CHINESE = (
    r'(?P<final>最终|最終)?(?:正确|正確|标准)?的?(?:答案|选项|選項|选择|選擇)\s*(?:应该|应当|应|應該|就)?\s*'
    r'(?:是|为|為|选|選|:)\s*:?\s*(?:选项|選項)?\s*'
)
_SAYS_SHORTLY = r'(?:\[(?:正确|正確|标准)?答案\]|【(?:正确|正確|标准)?答案】|(?:正确|正確)?答案|答(?=\s*:))\s*:?\s*'
_SAYS_ELSEWHERE = r'(?:答え|正解|回答)(?:は|:)\s*|(?:정답|답)(?:은|:)\s*'
_CHOOSES = (
    r"\b(?:choose|choosing|pick|picking|select|selecting|(?:go|going) (?:with|for)|opt for|i(?:'d| would)? say)"
    rf'\s+(?:(?:the\s+)?{_NOUN}\s*)?:?\s*'
)
_CHOOSES_CHINESE = r'(?:选择|選擇|选|選|(?:我认为|我觉得|所以|因此)(?:应该|應該)?是)\s*:?\s*(?:选项|選項)?\s*'
_HENCE = (
    r"\b(?:so|therefore|thus|hence|consequently|(?:it|that) (?:is|must be|should be|would be)|it's)\b[,:]?\s+"
    rf"(?:it (?:is|must be|should be)\s+|it's\s+)?(?:{_NOUN}\s+)?"
)
_CORRECT = (
    rf'\s+(?:is|must be|should be|would be|seems|appears to be|seems to be)\s+{_ADVERBS}(?:the\s+)?'
    r'(?:(?:only|most|final)\s+)?'
    # "B is right behind A" says something else.
    r'(?:(?:correct|right|best|true|accurate|appropriate)(?:\s+(?:answer|option|choice|one|statement))?|answer)'
    r'(?=\s*(?:\Z|[.,;:!?)\n(])|\s+(?:because|since|as|here|to|for|among|and not|not|rather)\b(?<!right to))'
    r'|(?:选项|選項|项)?\s*(?:是|为)?(?:正确|正確|对的|对(?=[\s。，,.!]|\Z))'
)
_STATEMENTS = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        _SAYS + _LETTER,
        _SAYS_CHINESE + _LETTER,
        _SAYS_SHORTLY + _LETTER,
        rf'(?:{_SAYS_ELSEWHERE}){_LETTER}',
        _CHOOSES + _LETTER,
        _CHOOSES_CHINESE + _LETTER,
        _HENCE + _LETTER + r'(?=\s*(?:[.!]\s*)?(?:\n|\Z))',
        rf'{_LETTER}(?=(?:{_CORRECT}))',
    )
]
_MENTIONS = [
    re.compile(rf'\b(?:options?|choices?|answers?|ans\.?|letter)\s+{_LETTER}', re.IGNORECASE),
    re.compile(rf'(?:选项|選項)\s*{_LETTER}'),
    re.compile(rf'{_LETTER}(?=\s*(?:选项|選項|项))'),
    re.compile(r'(?P<open>\()(?P<letter>[A-Z])(?P<close>\))'),
]
_SAYS_TEXT = re.compile(rf'{_SAYS}(?P<text>[^\n]{{1,{_LONGEST}}})', re.IGNORECASE)
_FIRST = re.compile(r'[\s>(\u2705\u2714\ufe0f-]*(?P<letter>[A-Za-z])(?=[\W_]|\Z)(?P<close>\)?)')
_MARK = re.compile(rf'\s*[.:;、。](?=[\s{_CHINESE}])|\s+[-\u2013\u2014=]+>?\s|\s*。|\s+(?=[{_CHINESE}])')
_MARK_OF_CAPITALS = re.compile(rf',(?=[\s{_CHINESE}])|\s(?:because|since|rather than|instead of)\b')
_LISTED = re.compile(r'(?:\A|\s)\(?([A-Z])(?:\)|[.:)])(?=\s)')


def read_option(text: str, choices: Sequence[str]) -> int | None:
    r"""The option that a text chooses. A text that names several options, or none, gives None; there is no guessing.

    These rules are tried in order, and the first that finds something decides. A letter wins over the text of an option
    that follows it.

    1. The content of ``\boxed{}``, of ``<answer>`` tags or of JSON (``{"answer": "B"}``); thoughts do not count.
    2. A single letter of either case, *B* or *(b)*, or the text of one option as it is written.
    3. A statement: *the answer is B*, *B is correct*, *I choose B*, *so B* at the end, the letter on its own line at
       the start or the end, and the same in Chinese. A *final answer* overrules others; different ones cancel out.
    4. A letter at the start with its mark (*B. a cat*, *b) a cat*), or before the text of its option (*B a cat*).
    5. The text of one option up to case, punctuation and articles, perhaps after *the answer is*.
    6. *option B*, or *(B)* anywhere.

    A letter without a mark that could be a word chooses nothing: *A dog is there*, *I see*. The same holds for a letter
    that is denied (*not B*, *B is wrong*), in question (*is it option B?*) or not offered. docs/option_letters.md lists
    the forms.

    Args:
        text (str): The answer.
        choices (Sequence[str]): The texts of the options A, B, ..., at most 26.

    Returns:
        int, optional: Index of the option from 0, or None.
    """
    text = unicodedata.normalize('NFKC', text).replace('\u2212', '-')
    text = re.sub(r'\s*\n\s*', '\n', re.sub(r'[^\S\n]+', ' ', text))
    # An answer may begin with the name of its speaker.
    text = _SPEAKER.sub('', text, count=1) if _SPEAKER.match(text) else text
    return _read(text, choices, _DEPTH)


def _read(text: str, choices: Sequence[str], depth: int) -> int | None:
    text = _TOKENS.sub('', without_thoughts(text))
    inside = _told_places(text)
    if inside:
        found = {_read(part, choices, depth - 1) for part in inside} if depth else {None}
        return found.pop() if len(found) == 1 else None
    raw, text = text, _MARKUP.sub('', _STYLES.sub(r'\1', text))
    return _Reader(_QUOTED.sub(r'(\1)', _BRACKETED.sub(r'(\1)', text)).strip(), raw, choices).read()


def _told_places(text: str) -> list[str]:
    """The contents of the boxes of a text, or else of its tags, or else of its JSON; '' for one without an option."""
    parts = [_braces(text, found.end()) for found in _BOX.finditer(text)]
    parts = parts or [found[1] for found in _BOX_WITHOUT_BRACES.finditer(text)]
    parts = parts or [found[2] for found in _TAG.finditer(text)]
    if not parts:
        for found in _KEY.finditer(text):
            value = _VALUE.match(text, found.end())
            parts.append((value[2] or value[4] or value['bare'] or '') if value else '')
    return [part if len(part) <= _LONGEST else '' for part in parts]


def _braces(text: str, start: int) -> str:
    """The text before the closing brace; '' if that is too far away."""
    depth = 1
    for i, letter in enumerate(text[start : start + _LONGEST + 1], start):
        depth += (letter == '{') - (letter == '}')
        if not depth:
            return text[start:i]
    return ''


class _Reader:
    """The rules of :func:`read_option` for a text without markup. Each rule returns the indices that it finds."""

    def __init__(self, text: str, raw: str, choices: Sequence[str]) -> None:
        # A whole answer in single quotes.
        self.text = text[1:-1] if re.fullmatch(r"'[^'\n]+'", text) else text
        self.raw = raw
        self.letters = ascii_uppercase[: len(choices)]
        self.choices = [unicodedata.normalize('NFKC', choice).replace('\u2212', '-') for choice in choices]
        self.normal = [normalise_answer(choice) for choice in self.choices]

    def read(self) -> int | None:
        # The clearest rule comes first. A rule that finds several options ends the search, as later ones would guess.
        for rule in (self.lone, self.literal, self.statements, self.first, self.same_text, self.mentions):
            found = rule()
            if found:
                return found.pop() if len(found) == 1 else None
        return None

    def index(self, letter: str) -> int | None:
        return self.letters.index(letter.upper()) if letter.upper() in self.letters else None

    def lone(self) -> set[int | None]:
        found = _LONE.fullmatch(self.text)
        return {self.index(found[1])} - {None} if found else set()

    def literal(self) -> set[int | None]:
        same: set[int | None]
        same = {index for index, choice in enumerate(self.choices) if choice.strip() == self.raw.strip()}
        texts = {_plain(self.raw), _plain(self.text)} - {''}
        similar: set[int | None] = {index for index, choice in enumerate(self.choices) if _plain(choice) in texts}
        return same or (similar if len(self.equal(self.text)) < 2 else set())

    def statements(self) -> set[int | None]:
        matches = [match for pattern in _STATEMENTS for match in pattern.finditer(self.text)]
        final = [match for match in matches if match.groupdict().get('final')]
        found = set(self.accepted(final)) if final else set()
        if found:
            return found
        lines = [_LONE.fullmatch(line) for line in (self.text.split('\n', 1)[0], self.text.rsplit('\n', 1)[-1])]
        return set(self.accepted(matches)) | {self.index(line[1]) for line in lines if line}

    def mentions(self) -> set[int | None]:
        return set(self.accepted([match for pattern in _MENTIONS for match in pattern.finditer(self.text)]))

    def accepted(self, matches: Sequence[re.Match]) -> Iterator[int | None]:
        """The options of matches that are neither words nor denied; None for letters in a list."""
        for match in matches:
            letter, start, end = match['letter'], match.start('letter'), match.end()
            before, after = self.text[max(match.start() - 40, 0) : match.start()], self.text[end : end + 60]
            may_be_word = not match['close'] and (letter in 'AI' or letter.islower())
            if may_be_word and not _NO_WORD.match(after) and not self.is_own_text(letter, after):
                continue
            if _DENIED_BEFORE.search(re.split(r'[.;\n]', before)[-1]) or _DENIED_AFTER.match(after):
                continue
            several = _ANOTHER.match(after) or _AFTER_ANOTHER.search(self.text[max(start - 20, 0) : start].rstrip('('))
            yield None if several else self.index(letter)

    def is_own_text(self, letter: str, text: str) -> bool:
        """Whether the rest of a sentence is the text of the option with this letter."""
        index = self.index(letter)
        return (
            index is not None
            and bool(self.normal[index])
            and normalise_answer(re.split(r'[.!;\n](?:\s|\Z)', text)[0]) == self.normal[index]
        )

    def first(self) -> set[int | None]:
        """A letter at the start with a mark, or with the text of an option after it."""
        found = _FIRST.match(self.text)
        if not found:
            return set()
        letter, rest = found['letter'], self.text[found.end() :]
        index = self.index(letter)
        may_be_word = letter in 'AI' or letter.islower()
        if _ANOTHER.match(rest) or _DENIED_AFTER.match(rest.lstrip('.:; ')):
            return {None}
        following = normalise_answer(rest.lstrip(' .:;,)-\u2013\u2014=>\u3001'))
        others = {self.index(other) for other in _LISTED.findall(f' {rest} ')} - {None, index}
        own = self.normal[index] if index is not None else ''
        if own and (following == own or (following.startswith(f'{own} ') and not others and not may_be_word)):
            return {index}
        marked = bool(found['close']) or _MARK.match(rest) is not None
        marked = marked or bool(letter.isupper() and letter != 'I' and _MARK_OF_CAPITALS.match(rest))
        if not marked:
            # "A blue", where blue is option C, may mean either.
            same = following in self.normal
            return {index if not may_be_word else None} if same and letter.isupper() else set()
        return {None} if others or _LONE.fullmatch(rest) else {index}

    def same_text(self) -> set[int | None]:
        found = self.equal(self.text)
        if found:
            return found
        for match in _SAYS_TEXT.finditer(self.text):
            said, before = match['text'], self.text[max(match.start() - 40, 0) : match.start()]
            if not re.match(r'[A-Z]\s', said) and not _DENIED_BEFORE.search(before):
                found |= self.equal(said) or self.equal(re.split(r'[.!;]\s', said)[0])
        return found

    def equal(self, text: str) -> set[int | None]:
        """The options with this text; several if they share it."""
        text = normalise_answer(text)
        return {index for index, choice in enumerate(self.normal) if choice == text}


def _plain(text: str) -> str:
    return ' '.join(text.casefold().split()).strip('.!')
