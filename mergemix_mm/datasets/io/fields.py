"""Fields of a raw record: which of them hold images, which are missing, and which are refused."""

import re
from collections.abc import Mapping
from typing import Any

from ...utils.text import quoted

IMAGE_KEYS = ('image', 'images')
# Where the turns of a conversation may stand; their contents may be lists of parts, and a part an image.
TURN_KEYS = ('conversations', 'conversation', 'messages', 'texts')
PAIR_KEYS = ('chosen', 'rejected')
TURN_COLUMNS = (*TURN_KEYS, 'prompt', *PAIR_KEYS)
CONTENT_NAMES = ('content', 'value')
PART_IMAGE_NAMES = ('image', 'path', 'url', 'image_url', 'base64', 'source')
# Keys under which other tools write images. A record with one of them and no image of ours is refused: without its
# image it would be trained on as text only.
FOREIGN_IMAGE_KEY = re.compile(
    r'(?:chosen_)?(?:images?|imgs?|pictures?|photos?|pics?|frames)'
    r'(?:[_ -]?(?:paths?|files?|file_?names?|names?|lists?|urls?|uris?|bytes|base64|data|\d+))?|jpe?g|png|webp',
    re.IGNORECASE,
)
# Keys that a record must not have: we cannot train on what they hold, and without it the record means something else.
REFUSED_KEYS = {
    **dict.fromkeys(('video', 'videos', 'video_path', 'video_paths', 'video_url', 'video_urls'), 'videos'),
    **dict.fromkeys(('video_file', 'video_files', 'video_bytes'), 'videos'),
    **dict.fromkeys(('audio', 'audios', 'audio_path', 'audio_paths', 'audio_url', 'audio_urls'), 'sound'),
    **dict.fromkeys(('audio_file', 'audio_files', 'audio_bytes', 'speech', 'sound', 'sounds'), 'sound'),
    **dict.fromkeys(('tools', 'tool_calls', 'functions', 'function_call', 'function_calls'), 'tools'),
    **dict.fromkeys(('tool_list', 'available_tools'), 'tools'),
}
REFUSED_MEDIA = {key: what for key, what in REFUSED_KEYS.items() if what != 'tools'}
Source = str | bytes | Mapping[str, Any]


def is_given(value: Any) -> bool:
    """Whether a field says anything: not None, not empty, not a mapping or a list of only such values."""
    if isinstance(value, Mapping):
        return any(is_given(one) for one in value.values())
    if isinstance(value, (list, tuple)):
        return any(is_given(one) for one in value)
    return value is not None and value is not False and value != '' and value != b''


def images_of(raw: Mapping[str, Any], keys: tuple[str, ...] = IMAGE_KEYS) -> list[Source]:
    """The images of a record, in order.

    Args:
        raw (Mapping): A record.
        keys (tuple[str, ...]): The keys that may hold them, one image or a list. Defaults to ``image`` and ``images``.

    Raises:
        ValueError: If two keys hold different images, or an image is anything but a path, a URL, bytes, or a mapping
            with ``bytes`` or ``path``.
    """
    found = {}
    for key in keys:
        if is_given(raw.get(key)):
            value = raw[key]
            values = list(value) if isinstance(value, (list, tuple)) else [value]
            found[key] = [check_image(one, key) for one in values]
    sources = list(found.values())
    if len(sources) > 1 and sources[0] != sources[1]:
        raise ValueError(f'has different images under {" and ".join(map(repr, found))}; keep one of the keys')
    return sources[0] if sources else []


def check_image(value: Any, key: str) -> Source:
    """One image in a form that ``read_image`` takes; base64 in ``bytes`` becomes a ``data:`` URL.

    Raises:
        ValueError: If the value is not an image; names the key.
    """
    # The form of an image in Hugging Face's datasets.
    if isinstance(value, Mapping) and set(value) <= {'bytes', 'path'} and is_given(value):
        data, path = value.get('bytes'), value.get('path')
        if isinstance(data, str) and data:  # JSON has no bytes
            return f'data:;base64,{data}'
        if (not data or isinstance(data, bytes)) and (not path or isinstance(path, str)):
            return value
    elif isinstance(value, (str, bytes)) and value:
        return value
    raise ValueError(
        f'{key!r}: an image must be given by the path of its file, found {quoted(value)} (or by a data: URL, bytes, or '
        "an object with 'bytes' or 'path')"
    )


def find_image_key(raw: Mapping[str, Any]) -> str | None:
    """The first key that seems to hold an image: by its name, or because its value has the content of a file."""
    return next((key for key, value in raw.items() if isinstance(key, str) and _is_image(key, value)), None)


def _is_image(key: str, value: Any) -> bool:
    if not is_given(value):
        return False
    # A list of images is told by its first one.
    value = value[0] if isinstance(value, (list, tuple)) else value
    if isinstance(value, Mapping) and isinstance(value.get('bytes'), bytes):
        return True
    return isinstance(value, (str, bytes, Mapping)) and FOREIGN_IMAGE_KEY.fullmatch(key) is not None


def refuse_foreign_image(raw: Mapping[str, Any]) -> None:
    """Refuse a record without an image that has a key under which other tools keep images.

    Raises:
        ValueError: Names the key.
    """
    found = None if any(is_given(raw.get(key)) for key in IMAGE_KEYS) else find_image_key(raw)
    if found is not None:
        raise ValueError(f"has no 'image', but {found!r}, which is not read; rename the key to 'image' or 'images'")


def has_images(raw: dict) -> bool:
    """Whether a raw record names an image, beside its turns or inside their parts."""
    if any(is_given(raw.get(key)) for key in IMAGE_KEYS):
        return True
    contents = [
        turn[name]
        for key in TURN_COLUMNS
        if isinstance(turns := raw.get(key), list)
        for turn in turns
        if isinstance(turn, dict)
        for name in CONTENT_NAMES
        if isinstance(turn.get(name), (list, dict))
    ]
    parts = [part for content in contents for part in (content if isinstance(content, list) else [content])]
    return any(is_image_part(part) for part in parts if isinstance(part, dict))


def is_image_part(part: dict) -> bool:
    """Whether a part of a message is an image, by its type or, without a type, by its keys."""
    kind = part.get('type')
    return kind in ('image', 'image_url') or (kind is None and any(is_given(part.get(n)) for n in PART_IMAGE_NAMES))


def check_keys(raw: dict, keys: set[str]) -> None:
    """Refuse a record that lacks any of the keys."""
    missing = keys - set(raw)
    if missing:
        raise ValueError(f'lacks {sorted(missing)}; its keys are {quoted(sorted(raw), 200)}')


def check_texts(raw: Mapping[str, Any], *keys: str) -> None:
    """Refuse a record in which one of the keys holds anything but a text."""
    for key in keys:
        if not isinstance(raw[key], str):
            raise ValueError(f'{key}={quoted(raw[key])} must be a text')


def refuse_keys(raw: Mapping[str, Any], refused: Mapping[str, str], where: str = '') -> None:
    """Refuse a record, or a turn of it, that has one of the keys with a value.

    Args:
        raw (Mapping): The record or turn. Empty values are allowed.
        refused (Mapping[str, str]): The keys, each with what it holds, such as ``'videos'``.
        where (str): The beginning of the message. Defaults to ''.

    Raises:
        ValueError: Names the key.
    """
    for key, what in refused.items():
        if (
            key in raw and is_given(raw[key]) and raw[key] not in ('[]', '{}', 'null')
        ):  # Some write empty JSON as a text.
            raise ValueError(
                f'{where}has {key!r}; {what} cannot be trained on, and without it the record means something else: '
                'take the record or the key out'
            )
