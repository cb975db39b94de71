"""Parses the many layouts of conversation records into one: turns, questions with answers, preference pairs."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any

from ...utils.text import quoted
from ..io.fields import (
    CONTENT_NAMES,
    IMAGE_KEYS,
    PAIR_KEYS,
    PART_IMAGE_NAMES,
    REFUSED_KEYS,
    TURN_COLUMNS,
    TURN_KEYS,
    check_image,
    find_image_key,
    images_of,
    is_given,
    is_image_part,
    refuse_foreign_image,
    refuse_keys,
)

# Names of roles in lower case.
ROLES = dict(
    system='system',
    developer='system',
    human='user',
    user='user',
    prompter='user',
    gpt='assistant',
    assistant='assistant',
    chatgpt='assistant',
    bot='assistant',
    chatbot='assistant',
    model='assistant',
)
TOOL_ROLES = {
    *('tool', 'tools', 'function', 'functions', 'tool_call', 'tool_calls', 'function_call', 'tool_response'),
    *('function_response', 'tool_result', 'observation', 'ipython', 'environment'),
}
IMAGE_PLACEHOLDER = '<image>'
# A backslash before a placeholder makes it text.
ESCAPED = re.compile(r'\\(<(?:image|video|audio)>)')
# The chat template writes the line break between a placeholder and the text, so it goes with the placeholder; all other
# space belongs to the text.
PLACEHOLDER_PATTERN = re.compile(r'(?:[ \t]*\r?\n)?(?<!\\)<image>(?:[ \t]*\r?\n)?')
MEDIA_PATTERN = re.compile(r'(?<!\\)<(?:video|audio)>')
# What other tools write in the place of an image.
FOREIGN_PLACEHOLDER = re.compile(
    r'<\|?(?:image|img)[ _-]?\d+\|?>|<\|?(?:image|img|image_pad|image_placeholder|image-placeholder|imagehere)\|?>'
    r'|<img>[^<]{0,500}</img>|\{image\d*\}',
    re.IGNORECASE,
)
# The path of an image in the text, as in Qwen-VL's files. An <img> of HTML has no closing tag.
IMAGE_IN_TEXT = re.compile(r'<img>[^<>\n]{1,500}\.(?:jpe?g|png|webp|gif|bmp|tiff?|avif|jp2)</img>', re.IGNORECASE)
# What ms-swift replaces by an entry of `objects`.
OBJECT_PLACEHOLDER = re.compile('<(?:bbox|ref-object)>')

# One question and its answer, each as a text (or, in trl's `prompt` and `completion`, as messages).
QUESTION_KEYS = ('prompt', 'query', 'question', 'instruction')
ANSWER_KEYS = ('completion', 'response', 'output', 'answer')
REJECTED_KEYS = (
    *('rejected_response', 'rejected_messages', 'rejected_conversations', 'rejected_conversation'),
    *('rejected_answer', 'rejected_output', 'rejected_completion'),
)
# In files for KTO, False means that the answer is an example of what not to say.
DESIRED_KEYS = ('label', 'kto_tag')
SYSTEM_KEYS = ('system', 'system_prompt', 'system_message', 'system_instruction', 'sys_prompt')
REJECTED_IMAGE_KEYS = ('rejected_images', 'rejected_image')
# Keys that have a meaning only in the layouts of one question.
QUESTION_PARTS = ('input', 'history')
ROLE_NAMES = ('role', 'from')
# The keys of a turn that say whether it is trained on.
TRAIN_NAMES = (
    *('train', 'training', 'loss', 'weight', 'loss_weight', 'loss_scale'),
    *('trainable', 'do_train', 'train_on', 'train_on_turn', 'compute_loss', 'learn'),
)
# Keys that would change what is trained on, but mean different things in different tools, or less than a whole turn.
REFUSED_IN_TURNS = {
    **dict.fromkeys(('mask', 'masked', 'is_masked', 'loss_mask', 'label_mask'), 'a mask of the loss'),
    **dict.fromkeys(('ignore', 'ignore_loss', 'skip_loss', 'no_loss'), 'a mask of the loss'),
    **dict.fromkeys(('train_detail', 'training_detail'), 'a mask of the loss'),
    **dict.fromkeys(('reasoning', 'reasoning_content', 'thinking'), 'reasoning'),
    **dict.fromkeys(('tool_call_id',), 'tools'),
    **REFUSED_KEYS,
}
KNOWN_IN_TURNS = frozenset((*ROLE_NAMES, *CONTENT_NAMES, *TRAIN_NAMES, *REFUSED_IN_TURNS, 'user', 'assistant'))
USED_KEYS = frozenset(
    (*TURN_COLUMNS, *REJECTED_KEYS, *SYSTEM_KEYS, *IMAGE_KEYS, *REJECTED_IMAGE_KEYS, *REFUSED_KEYS)
)  # fmt: skip
USED_BY_QUESTIONS = frozenset((*QUESTION_KEYS, *ANSWER_KEYS, *QUESTION_PARTS))


def other_keys(raw: Mapping[str, Any]) -> Iterator[str]:
    """The keys of a raw record that are not trained on: its metadata, and those of its turns as ``turns[].name``."""
    yield from metadata_keys(raw)
    for key in (*TURN_KEYS, *PAIR_KEYS):
        turns = [turn for turn in raw[key] if isinstance(turn, dict)] if isinstance(raw.get(key), list) else []
        found = {
            name
            for turn in turns
            for name in turn.keys() - KNOWN_IN_TURNS
            if is_given(turn[name]) or turn[name] is False
        }
        yield from (f'{key}[].{name}' for name in sorted(found))


def metadata_keys(raw: Mapping[str, Any]) -> list[str]:
    """The keys of a raw record that are not part of its conversation, in their order."""
    used = USED_KEYS if any(is_given(raw.get(key)) for key in TURN_KEYS) else USED_KEYS | USED_BY_QUESTIONS
    return [key for key in raw if key not in used]


def parse_conversation(raw: dict, answered: bool = True) -> dict[str, Any]:
    r"""Bring one record of a file into transformers' message format.

    These layouts are read:

    - ``conversations`` of LLaVA and ShareGPT: ``from`` human / gpt / system, ``value`` with ``<image>`` placeholders,
      and ``image`` or ``images`` beside them;
    - ``messages`` as transformers, trl, ms-swift and LLaMA-Factory write them: ``content`` is a string or a list of
      parts, with images in ``images`` or inside the parts;
    - ``texts`` of the Cauldron: ``user`` and ``assistant``;
    - one question and its answer: ``prompt`` and ``completion``, ``query`` and ``response``, ``instruction``, ``input``
      and ``output``;
    - preference pairs: ``chosen`` and ``rejected`` as strings, messages or lists of messages, after a prompt or with
      their prompt inside; or a conversation with ``rejected_response``, ``rejected_messages`` or ``rejected_images``.

    A system prompt stands in ``system`` or ``system_prompt``, or is the first turn. A turn with ``train``, ``loss`` or
    ``weight`` of false or 0 gets no labels.

    ``<image>`` in a text is a placeholder for an image, and ``\<image>`` is the text itself. If a record has images but
    no placeholder, they go before the first user turn. All other text stays as it is, except for the line break between
    it and a placeholder.

    Args:
        raw (dict): The record.
        answered (bool): Whether the conversation must end with an answer. Defaults to True.

    Returns:
        dict: ``messages`` (list of dicts with ``role`` and a list of typed parts as ``content``; an answer without
        labels has ``train=False``) and ``images`` (paths, URLs or bytes, in order). A preference pair also has
        ``rejected`` (messages), and ``rejected_images`` if the rejected answer has images of its own. All other keys of
        the record are kept.

    Raises:
        ValueError: If the record has video, sound or tools, a role is unknown, turns do not alternate or are empty, the
            answer is missing, a weight is neither 0 nor 1, or there are not as many placeholders as images.
    """
    refuse_keys(raw, REFUSED_KEYS)
    _refuse_other_case(raw, USED_KEYS)
    for key in DESIRED_KEYS:
        if raw.get(key) is False:
            raise ValueError(f'has {key}=False, an answer that must not be learned; take the record out')
    for key in TRAIN_NAMES:
        if raw.get(key) is False or ('weight' in key and raw.get(key) == 0):
            raise ValueError(f'has {key}={raw[key]}: nothing of it is to be trained; take the record out')
    images = images_of(raw)
    messages, rejected = _read_turns(raw, answered)
    own_images = images_of(raw, REJECTED_IMAGE_KEYS) or None
    # Different images are enough for a pair: the answer is the same, and wrong for the other images.
    if own_images is not None and rejected is None:
        rejected = deepcopy(messages)
    if not images and not any('path' in part for message in messages for part in message['content']):
        refuse_foreign_image(raw)
    _refuse_foreign_texts(raw, messages)
    parsed = dict(messages=messages, images=_assign_images(messages, images))
    _check_turns(messages, answered)
    if rejected is not None:
        rejected_images = _assign_images(rejected, images if own_images is None else own_images)
        _check_turns(rejected, answered=True)
        _check_pair(messages, rejected, own_images is not None)
        parsed['rejected'] = rejected
        if own_images is not None:
            parsed['rejected_images'] = rejected_images
    for message in [*messages, *(rejected or [])]:
        for part in message['content']:
            # The path served to assign and to compare images; processors take them apart from the messages.
            part.pop('path', None)
        if message['role'] != 'user':
            message['content'] = [dict(type='text', text=text_of(message))]
    parsed.update({key: raw[key] for key in metadata_keys(raw) if key not in parsed})
    return parsed


def text_of(message: dict) -> str:
    """All text of a message."""
    return ''.join(part['text'] for part in message['content'] if part['type'] == 'text')


def _refuse_other_case(raw: Mapping[str, Any], keys: Collection[str], where: str = '') -> None:
    """Refuse a key that differs from a known one only in its case: its value would be ignored silently."""
    for key, value in raw.items():
        if key not in keys and key.lower() in keys and (is_given(value) or value is False):
            raise ValueError(f'{where}has {key!r}, which is not read; write {key.lower()!r}')


def _refuse_foreign_texts(raw: Mapping[str, Any], messages: list[dict]) -> None:
    """Refuse texts with placeholders that other tools replace; we would train on the placeholders."""
    for message in messages:
        text = text_of(message)
        found = IMAGE_IN_TEXT.search(text) if message['role'] == 'user' else None
        if found:
            raise ValueError(
                f'a text holds the image {quoted(found[0])}; write {IMAGE_PLACEHOLDER} there, and the path in '
                f"'images' of the record"
            )
        found = OBJECT_PLACEHOLDER.search(text) if is_given(raw.get('objects')) else None
        if found:
            raise ValueError(f"a text holds the placeholder {found[0]} of 'objects'; write the text that it stands for")


def _one_of(raw: Mapping[str, Any], keys: tuple[str, ...], what: str) -> str | None:
    """The one of these keys that has a value, or None; two keys with different values are an error."""
    found = [key for key in keys if is_given(raw.get(key))]
    if len(found) > 1 and any(raw[key] != raw[found[0]] for key in found):
        raise ValueError(f'has {what} under {" and ".join(map(repr, found))}; keep one of the keys')
    return found[0] if found else None


def _read_turns(raw: dict, answered: bool) -> tuple[list[dict], list[dict] | None]:
    """The messages (of the chosen answer) and those of the rejected one."""
    given = [name for name in PAIR_KEYS if name in raw and raw[name] is not None]
    if len(given) == 1:
        raise ValueError(f"has only {given[0]!r}; a preference pair needs 'chosen' and 'rejected'")
    key = _one_of(raw, TURN_KEYS, 'different turns')
    prompt = _to_messages(raw[key], 'user') if key else _read_question(raw, bool(given), answered)
    if key and is_given(raw.get('prompt')):
        # UltraChat and others repeat the first question in `prompt`.
        _check_repeated(_to_messages(raw['prompt'], 'user'), prompt, f"'prompt' and {key!r}")
    if not given:
        return _with_rejected(raw, _with_system(raw, prompt))
    if any(is_given(raw.get(name)) for name in REJECTED_KEYS):
        raise ValueError(f"has 'rejected' and {[name for name in REJECTED_KEYS if is_given(raw.get(name))]}; keep one")
    if not prompt and any(isinstance(raw[name], str) for name in PAIR_KEYS):
        raise ValueError("has 'chosen' and 'rejected' as plain strings, which need a 'prompt'")
    chosen, rejected = (_after(prompt, _to_messages(raw[name], 'assistant'), name) for name in PAIR_KEYS)
    return _with_system(raw, chosen), _with_system(raw, rejected)


def _read_question(raw: dict, in_pair: bool, answered: bool) -> list[dict]:
    """The messages of a record without turns: its question, and its answer unless that is `chosen` and `rejected`."""
    question, answer = _one_of(raw, QUESTION_KEYS, 'questions'), None
    if not in_pair:
        answer = _one_of(raw, ANSWER_KEYS, 'answers')
        if question is None or (answer is None and answered):
            raise ValueError(
                "has none of 'conversations', 'messages', 'chosen' and 'rejected'; nor a question with its answer, "
                f"such as 'prompt' and 'completion'; its keys are {quoted(sorted(raw), 200)}"
            )
    if question is None:
        return []
    messages = _to_messages(raw[question], 'user')
    if is_given(raw.get('input')):
        if not isinstance(raw['input'], str) or not isinstance(raw[question], str):
            raise ValueError(f"'input'={quoted(raw['input'])} must be a text that goes after {question!r}")
        messages = _to_messages(f'{raw[question]}\n{raw["input"]}', 'user')
    if is_given(raw.get('history')):
        messages = [*_read_history(raw['history']), *messages]
    return messages if answer is None else messages + _to_messages(raw[answer], 'assistant')


def _read_history(history: Any) -> list[dict]:
    """Earlier turns, as pairs of a question and its answer."""
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise ValueError(f"'history'={quoted(history)} must hold pairs of a question and its answer")
    return [
        message for pair in history for role, text in zip(('user', 'assistant'), pair)
        for message in _to_messages(text, role)
    ]  # fmt: skip


def _after(prompt: list[dict], turns: list[dict], name: str) -> list[dict]:
    """The prompt followed by the turns, which may repeat the prompt."""
    if turns and turns[0]['role'] != 'assistant' and prompt:
        if name == 'rejected' and prompt[-1]['role'] == 'assistant':
            # The conversation beside the pair ends with the chosen answer, which is not part of the prompt.
            prompt = prompt[:-1]
        _check_repeated(prompt, turns, f'the prompt and {name!r}')
        return turns
    if prompt and prompt[-1]['role'] == 'assistant':
        # Some data sets write the whole conversation beside the pair; then its answer must be the chosen one.
        if name == 'chosen' and prompt[-1]['content'] != turns[-1]['content']:
            raise ValueError("'chosen' is not the last answer of the conversation that is beside it")
        prompt = prompt[:-1]
    # A copy for each answer of a pair: both write the paths of their images into it.
    return deepcopy(prompt) + turns


def _check_repeated(prompt: list[dict], turns: list[dict], names: str) -> None:
    """Refuse a prompt with which the turns do not begin; a system prompt may precede it."""
    starts = (0, 1) if turns and turns[0]['role'] == 'system' else (0,)
    if not any(turns[start : start + len(prompt)] == prompt for start in starts) and prompt != turns:
        raise ValueError(f'has {names}, which differ; keep one of them, or let one begin as the other')


def _with_rejected(raw: dict, messages: list[dict]) -> tuple[list[dict], list[dict] | None]:
    """The messages, and the same with the answer of `rejected_response` or `rejected_messages`; None without one."""
    key = _one_of(raw, REJECTED_KEYS, 'rejected answers')
    if key is None:
        return messages, None
    if not messages or messages[-1]['role'] != 'assistant':
        raise ValueError(f'has {key!r}, but does not end with the answer that is preferred to it')
    value = raw[key]
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        if len(value) > 1:
            raise ValueError(f'{key!r} holds {len(value)} answers; write one record for each of them')
        value = value[0]
    turns = _to_messages(value, 'assistant')
    if turns[0]['role'] == 'assistant':
        return messages, deepcopy(messages[:-1]) + turns
    return messages, turns if turns[0]['role'] == 'system' else _with_system(raw, turns, messages)


def _with_system(raw: dict, messages: list[dict], like: Sequence[dict] = ()) -> list[dict]:
    """The messages after the system prompt of the record or, if it has none, after that of the messages ``like``."""
    if messages and messages[0]['role'] == 'system' and not text_of(messages[0]).strip():
        if any(part['type'] == 'image' for part in messages[0]['content']):
            raise ValueError('the system prompt holds an image; only user turns may')
        messages = messages[1:]
    key = _one_of(raw, SYSTEM_KEYS, 'different system prompts')
    system = [deepcopy(like[0])] if like and like[0]['role'] == 'system' else []
    if key is not None:
        if not isinstance(raw[key], str):
            raise ValueError(f'{key!r} must be a text, found {quoted(raw[key])}')
        system = _to_messages(raw[key], 'system') if raw[key].strip() else system
    if not messages or messages[0]['role'] != 'system':
        return system + messages
    if system and system[0]['content'] != messages[0]['content']:
        raise ValueError(f'has a system prompt under {key!r} and another one as its first turn; keep one')
    return messages


def _to_messages(turns: Any, role: str) -> list[dict]:
    """Messages from a list of turns, from one turn, or from a plain text said by ``role``."""
    if isinstance(turns, str):
        turns = dict(role=role, content=turns)
    if not isinstance(turns, (list, dict)):
        raise ValueError(f'turns must be a text, an object or a list of objects, found {quoted(turns)}')
    if isinstance(turns, dict):
        turns = _transposed(turns) if _is_transposed(turns) else [turns]
    return [_to_message(turn) for entry in turns for turn in _exchange(entry)]


def _is_transposed(turns: dict) -> bool:
    if any(isinstance(turns.get(name), list) for name in ROLE_NAMES):
        return True
    # The texts of one exchange may be lists as well, but of parts.
    exchanges = [turns.get(role) for role in ('user', 'assistant')]
    return all(isinstance(texts, list) and all(isinstance(text, str) for text in texts) for texts in exchanges)


def _transposed(turns: dict) -> list[dict]:
    """The turns of an object of lists, the form in which `datasets` saves a sequence of objects."""
    lists = {name: values for name, values in turns.items() if is_given(values)}
    if any(not isinstance(values, list) for values in lists.values()) or len(set(map(len, lists.values()))) != 1:
        raise ValueError(f'turns that are an object of lists must have lists of one length, found {quoted(turns)}')
    return [dict(zip(lists, values)) for values in zip(*lists.values())]


def _exchange(turn: Any) -> list:
    """The turn, or the two turns of an object with ``user`` and ``assistant``, as in the Cauldron."""
    if not isinstance(turn, dict) or not {'user', 'assistant'} <= set(turn) or any(n in turn for n in ROLE_NAMES):
        return [turn]
    refuse_keys(turn, REFUSED_IN_TURNS, 'a turn ')
    _refuse_images(turn, 'a turn')
    return [dict(role=role, content=turn[role]) for role in ('user', 'assistant')]


def _to_message(turn: Any) -> dict:
    if not isinstance(turn, dict):
        raise ValueError(f'a turn must be an object, found {quoted(turn)}')
    role_name = _one_of(turn, ROLE_NAMES, 'roles')
    role = None if role_name is None else turn[role_name]
    name = role.strip().lower() if isinstance(role, str) else None
    if name in TOOL_ROLES:
        raise ValueError(f'has a turn of role {role!r}; tools cannot be trained on: take the record out')
    if name not in ROLES:
        raise ValueError(f'unknown role {quoted(role)}; allowed are {sorted(ROLES)}')
    refuse_keys(turn, REFUSED_IN_TURNS, f'a turn of role {role!r} ')
    _refuse_images(turn, f'a turn of role {role!r}')
    _refuse_other_case(turn, KNOWN_IN_TURNS, f'a turn of role {role!r} ')
    content_name = _one_of(turn, CONTENT_NAMES, 'contents')
    content = None if content_name is None else turn[content_name]
    if isinstance(content, dict):
        content = [content]
    if content is not None and not isinstance(content, (str, list)):
        raise ValueError(f'the content of a turn must be a string or a list of parts, found {quoted(content)}')
    pieces = [content] if isinstance(content, str) else content or []
    parts = [part for piece in pieces for part in _to_parts(piece, ROLES[name])]
    message: dict[str, Any] = dict(
        role=ROLES[name], content=[part for part in _joined(parts) if part['type'] == 'image' or part['text']]
    )
    if _is_trained(turn, message['role']) is False:
        message['train'] = False
    return message


def _refuse_images(turn: dict, name: str) -> None:
    key = find_image_key(turn)
    if key is not None:
        raise ValueError(
            f"{name} has {key!r}, which is not read there; give the images in 'images' of the record, with "
            f'{IMAGE_PLACEHOLDER} in the text, or as parts of the content'
        )


def _is_trained(turn: dict, role: str) -> bool | None:
    """Whether the turn is trained on; None if it does not say."""
    values = {}
    for name in TRAIN_NAMES:
        value = turn.get(name)
        if value is None:
            continue
        if isinstance(value, str) or not isinstance(value, (bool, int, float)) or value not in (0, 1):
            raise ValueError(f'{name}={quoted(value)} of a turn must be true or false, or 1 or 0 (no other weights)')
        values[name] = bool(value)
    if len(set(values.values())) > 1:
        raise ValueError(f'a turn has {values}, which contradict each other')
    trained = next(iter(values.values()), None)
    if trained and role != 'assistant':
        raise ValueError(f'a {role} turn has {next(iter(values))}={trained}; only answers can be trained on')
    return trained


def _to_parts(piece: Any, role: str) -> list[dict]:
    """The parts of a text, split at its placeholders, or of one part of a file."""
    if isinstance(piece, str):
        return _split_placeholders(piece, role)
    if not isinstance(piece, dict):
        raise ValueError(f"a part of a message must have type 'text' or 'image', found {quoted(piece)}")
    kind = piece.get('type')
    if kind is None:
        kind = 'image' if is_image_part(piece) else 'text'
    image_name = next((name for name in PART_IMAGE_NAMES if is_given(piece.get(name))), None)
    text = piece.get('text')
    others = [name for name in REFUSED_IN_TURNS if is_given(piece.get(name))]
    if kind not in ('text', 'image', 'image_url') or others:
        raise ValueError(
            f"a part of a message must have type 'text' or 'image', found {quoted(dict(type=kind))} with the keys "
            f'{quoted(sorted(piece))}; video, sound and tools cannot be trained on'
        )
    if kind == 'text':
        if not isinstance(text, str) or image_name is not None:
            raise ValueError(f"a part of a message must have type 'text' or 'image', found {quoted(piece)}")
        return _split_placeholders(text, role)
    if text:
        raise ValueError(f'a part of a message holds an image and a text, found {quoted(piece)}; make two parts of it')
    return [dict(type='image') if image_name is None else dict(type='image', path=_part_image(piece, image_name))]


def _part_image(part: dict, name: str):
    """The image of a part."""
    value = part[name]
    if name == 'source' and isinstance(value, dict) and isinstance(value.get('data'), str):
        return f'data:{value.get("media_type") or ""};base64,{value["data"]}'
    if name == 'base64' and isinstance(value, str):
        return value if value.startswith('data:') else f'data:;base64,{value}'
    if isinstance(value, dict) and is_given(value.get('url')):
        value = value['url']
    return check_image(value, name)


def _split_placeholders(text: str, role: str) -> list[dict]:
    found = MEDIA_PATTERN.search(text)
    if found and role == 'user':
        raise ValueError(
            f'a text holds the placeholder {found[0]}; video and sound cannot be trained on (write \\{found[0]} where '
            'the text means the word itself)'
        )
    parts = []
    for number, piece in enumerate(PLACEHOLDER_PATTERN.split(text)):
        parts += [dict(type='image')] * (number > 0) + [dict(type='text', text=ESCAPED.sub(r'\1', piece))]
    return parts


def _joined(parts: list[dict]) -> list[dict]:
    """The parts without white space at the beginning and the end of a message with images."""
    if any(part['type'] == 'image' for part in parts):
        for end in (0, -1):
            while parts and parts[end]['type'] == 'text' and not parts[end]['text'].strip():
                parts.pop(end)
    return parts


def _assign_images(messages: list[dict], images: list) -> list:
    """The image of every placeholder, in order; without placeholders, they are added before the first user text."""
    parts = [part for message in messages for part in message['content'] if part['type'] == 'image']
    first = next((message for message in messages if message['role'] == 'user'), None)
    if images and not parts and first is not None:
        for message in messages:
            foreign = FOREIGN_PLACEHOLDER.search(text_of(message)) if message['role'] == 'user' else None
            if foreign:
                raise ValueError(
                    f'a text holds {quoted(foreign[0])} where an image may be meant; write {IMAGE_PLACEHOLDER}'
                )
        parts = [dict(type='image') for _ in images]
        first['content'][:0] = parts
    open_parts = [part for part in parts if 'path' not in part]
    if len(open_parts) != len(images):
        raise ValueError(
            f'has {len(open_parts)} image placeholders, but {len(images)} images (a text that means the word itself '
            f'writes \\{IMAGE_PLACEHOLDER})'
        )
    for part, image in zip(open_parts, images):
        part['path'] = image
    return [part['path'] for part in parts]


def _check_turns(messages: list[dict], answered: bool) -> None:
    turns = messages[1:] if messages and messages[0]['role'] == 'system' else messages
    roles = [message['role'] for message in turns]
    if roles != ['user', 'assistant'] * (len(roles) // 2) + ['user'] * (len(roles) % 2):
        raise ValueError(f'turns must alternate, user first (after one system turn at most), found {quoted(roles)}')
    if not roles:
        raise ValueError('has no turns')
    if answered and roles[-1] != 'assistant':
        raise ValueError('does not end with an assistant answer')
    for number, message in enumerate(turns):
        if not any(part['type'] == 'image' or part['text'].strip() for part in message['content']):
            name = 'answer' if message['role'] == 'assistant' else 'question'
            raise ValueError(f'turn {number + 1} is an empty {name}')
    for number, message in enumerate(messages):
        if message['role'] != 'user' and any(part['type'] == 'image' for part in message['content']):
            name = 'an answer' if message['role'] == 'assistant' else 'a system prompt'
            place = number + 1 - (len(messages) - len(turns))
            raise ValueError(
                f'turn {place} is {name} that holds an image; only user turns may (a text that means the word itself '
                f'writes \\{IMAGE_PLACEHOLDER})'
            )
    if answered and all(message.get('train') is False for message in turns if message['role'] == 'assistant'):
        raise ValueError('has no answer to learn from: all its answers are marked as not to be trained')


def _check_pair(messages: list[dict], rejected: list[dict], own_images: bool) -> None:
    def bare(turns: list[dict]) -> list[dict]:
        # With `rejected_images`, other images are the difference between the two.
        contents = [[{**part, 'path': None} if own_images else part for part in turn['content']] for turn in turns]
        return [{**turn, 'content': content} for turn, content in zip(turns, contents)]

    if messages == rejected:
        raise ValueError("'chosen' and 'rejected' are the same")
    if bare(messages[:-1]) != bare(rejected[:-1]):
        raise ValueError("'chosen' and 'rejected' must share all turns but their last answers")
    if any(turns[-1].get('train') is False for turns in (messages, rejected)):
        raise ValueError('has a preference pair whose last answer is marked as not to be trained')
