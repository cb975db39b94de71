"""The layouts of conversation files, turned into one: LLaVA's turns, ``messages``, and preference pairs."""

import re
from copy import deepcopy
from typing import Any

ROLES = dict(
    system='system',
    human='user',
    user='user',
    gpt='assistant',
    assistant='assistant',
    chatgpt='assistant',
    bot='assistant',
)
IMAGE_PLACEHOLDER = '<image>'
# The line break between a placeholder and the text is the chat template's business, other spaces are the text's.
PLACEHOLDER_PATTERN = re.compile(r'\n?<image>\n?')
IMAGE_KEYS = ('image', 'images')
TURN_KEYS = ('conversations', 'messages', 'prompt')
ANSWER_KEYS = ('chosen', 'rejected')


def has_images(raw: dict) -> bool:
    """Whether a raw record names any image, beside its turns or inside their parts."""
    if any(raw.get(key) for key in IMAGE_KEYS):
        return True
    turns = [turn for key in (*TURN_KEYS, *ANSWER_KEYS) if isinstance(raw.get(key), list) for turn in raw[key]]
    contents = [turn.get('content') for turn in turns if isinstance(turn, dict)]
    parts = [part for content in contents if isinstance(content, list) for part in content if isinstance(part, dict)]
    return any(part.get('type') in ('image', 'image_url') for part in parts)


def parse_conversation(raw: dict, answered: bool = True) -> dict[str, Any]:
    """Bring one record of a file into transformers' message format.

    Read are LLaVA's ``conversations`` (``from`` human / gpt / system, ``value`` with ``<image>`` placeholders,
    ``image`` or ``images`` beside), ``messages`` as transformers and trl write them (``content`` a string or a list of
    typed parts, with images in ``images`` or as ``path`` / ``url`` / ``image`` of the parts), and trl's preference
    pairs: ``chosen`` and ``rejected`` as strings, messages or lists of messages, after a ``prompt`` (or
    ``conversations`` or ``messages``) or with their prompt inside. Images that no placeholder stands for go before the
    first user turn.

    Args:
        raw (dict): The record.
        answered (bool): Whether the conversation must end with an answer. Defaults to True.

    Returns:
        dict: ``messages`` (list of dicts with ``role`` and a list of typed parts as ``content``), ``images`` (their
        paths in order), ``rejected`` (messages too) if there is one, and all other keys of the record.

    Raises:
        ValueError: If a role is unknown, turns do not alternate or are empty, the answer is missing, or placeholders
            and images differ in number.
    """
    messages, rejected = _read_turns(raw)
    paths = [path for key in IMAGE_KEYS if raw.get(key) for path in _as_list(raw[key])]
    if any(not isinstance(path, str) for path in paths):
        raise ValueError(f"'image' and 'images' must hold paths, found {paths}")
    parsed = dict(messages=messages, images=_assign_images(messages, paths))
    _check_turns(messages, answered)
    if rejected is not None:
        _assign_images(rejected, paths)
        _check_turns(rejected, answered=True)
        if messages[:-1] != rejected[:-1]:
            raise ValueError("'chosen' and 'rejected' must share all turns but their last answers")
        parsed['rejected'] = rejected
    for message in [*messages, *(rejected or [])]:
        for part in message['content']:
            part.pop('path', None)
        if message['role'] != 'user':
            message['content'] = [dict(type='text', text=text_of(message))]
    used = {*TURN_KEYS, *ANSWER_KEYS, *IMAGE_KEYS}
    parsed.update({key: value for key, value in raw.items() if key not in used | set(parsed)})
    return parsed


def text_of(message: dict) -> str:
    """All text of a message."""
    return ''.join(part['text'] for part in message['content'] if part['type'] == 'text')


def _as_list(value) -> list:
    return value if isinstance(value, list) else [value]


def _read_turns(raw: dict) -> tuple[list[dict], list[dict] | None]:
    """The messages (of the chosen answer) and those of the rejected one."""
    key = next((key for key in TURN_KEYS if raw.get(key)), None)
    given = [name for name in ANSWER_KEYS if name in raw]
    if len(given) == 1:
        raise ValueError(f"has {given[0]!r} alone; a preference pair needs 'chosen' and 'rejected'")
    prompt = [] if key is None else _to_messages(raw[key], 'user')
    if not given:
        if key is None or key == 'prompt':
            raise ValueError(
                f"has none of 'conversations', 'messages', 'chosen' and 'rejected'; its keys are {sorted(raw)}"
            )
        return prompt, None
    if key is None and any(isinstance(raw[name], str) for name in ANSWER_KEYS):
        raise ValueError("has 'chosen' and 'rejected' as plain strings, which need a 'prompt'")
    chosen, rejected = (deepcopy(prompt) + _to_messages(raw[name], 'assistant') for name in ANSWER_KEYS)
    if chosen == rejected:
        raise ValueError("'chosen' and 'rejected' are the same")
    return chosen, rejected


def _to_messages(turns, role: str) -> list[dict]:
    """Messages of a list of turns, of one turn, or of a plain text of ``role``."""
    if isinstance(turns, str):
        turns = dict(role=role, content=turns)
    return [_to_message(turn) for turn in _as_list(turns)]


def _to_message(turn) -> dict:
    if not isinstance(turn, dict):
        raise ValueError(f'a turn must be an object, found {turn!r}')
    role, content = turn.get('role', turn.get('from')), turn.get('content', turn.get('value'))
    if not isinstance(role, str) or role not in ROLES:
        raise ValueError(f'unknown role {role!r}; allowed are {sorted(ROLES)}')
    if content is not None and not isinstance(content, (str, list)):
        raise ValueError(f'the content of a turn must be a string or a list of parts, found {content!r}')
    parts = _split_placeholders(content) if isinstance(content, str) else [_to_part(part) for part in content or []]
    return dict(role=ROLES[role], content=_tidy(parts))


def _split_placeholders(text: str) -> list[dict]:
    parts = []
    for number, piece in enumerate(PLACEHOLDER_PATTERN.split(text)):
        parts += [dict(type='image')] * (number > 0) + [dict(type='text', text=piece)]
    return parts


def _to_part(part) -> dict:
    kind = part.get('type') if isinstance(part, dict) else None
    if kind == 'text' and isinstance(part.get('text'), str):
        return dict(type='text', text=part['text'])
    if kind not in ('image', 'image_url'):
        raise ValueError(f"a part of a message must have type 'text' or 'image', found {part!r}")
    path = next((part[key] for key in ('path', 'url', 'image', 'image_url') if part.get(key)), None)
    path = path.get('url') if isinstance(path, dict) else path
    return dict(type='image') if path is None else dict(type='image', path=path)


def _tidy(parts: list[dict]) -> list[dict]:
    """Without white space at either end of the message, and without empty texts."""
    parts = [dict(part) for part in parts]
    if parts and parts[0]['type'] == 'text':
        parts[0]['text'] = parts[0]['text'].lstrip()
    if parts and parts[-1]['type'] == 'text':
        parts[-1]['text'] = parts[-1]['text'].rstrip()
    return [part for part in parts if part['type'] == 'image' or part['text']]


def _assign_images(messages: list[dict], paths: list[str]) -> list[str]:
    """The path of every placeholder, in order; adds placeholders where there are none."""
    parts = [part for message in messages for part in message['content'] if part['type'] == 'image']
    first = next((message for message in messages if message['role'] == 'user'), None)
    if paths and not parts and first is not None:
        parts = [dict(type='image') for _ in paths]
        first['content'][:0] = parts
    open_parts = [part for part in parts if 'path' not in part]
    if len(open_parts) != len(paths):
        raise ValueError(f'has {len(open_parts)} image placeholders, but {len(paths)} images')
    for part, path in zip(open_parts, paths):
        part['path'] = path
    return [part['path'] for part in parts]


def _check_turns(messages: list[dict], answered: bool) -> None:
    turns = messages[1:] if messages and messages[0]['role'] == 'system' else messages
    roles = [message['role'] for message in turns]
    if roles != ['user', 'assistant'] * (len(roles) // 2) + ['user'] * (len(roles) % 2):
        raise ValueError(f'turns must alternate, user first (after one system turn at most), found {roles}')
    if not roles:
        raise ValueError('has no turns')
    if answered and roles[-1] != 'assistant':
        raise ValueError('does not end with an assistant answer')
    for number, message in enumerate(turns):
        if not message['content']:
            name = 'answer' if message['role'] == 'assistant' else 'question'
            raise ValueError(f'turn {number + 1} is an empty {name}')
        if message['role'] != 'user' and any(part['type'] == 'image' for part in message['content']):
            raise ValueError(f'turn {number + 1} is an answer that holds an image; only user turns may')


def check_keys(raw: dict, keys: set[str]) -> None:
    """Refuse a record that lacks any of the keys."""
    missing = keys - set(raw)
    if missing:
        raise ValueError(f'lacks {sorted(missing)}; its keys are {sorted(raw)}')


def question_messages(question: str, num_images: int = 0, answer: str | None = None) -> list[dict]:
    """One question behind its images, and its answer if there is one.

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
