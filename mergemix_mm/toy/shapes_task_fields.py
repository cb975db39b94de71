"""What each task is told of a drawn scene: the structured fields of its records.

A thing is a dict with ``color``, ``shape``, ``box`` (pixels, xyxy) and ``asked``; of a list, one thing is asked about,
and no other has both its colour and its shape. Things are given, and named, in reading order.
"""

from collections.abc import Sequence

import numpy as np

from .shapes_scene import ANSWERS

MAX_CHOICES = 4


def grounding(things: Sequence[dict], rng: np.random.Generator) -> dict:
    """Words for one thing -> its box. One of the two that it takes is left out at times, where the other is enough."""
    thing = _asked(things)
    names = [f'the {name(thing)}']
    names += [f'the {thing["color"]} thing'] if _is_only(thing, things, 'color') else []
    names += [f'the {thing["shape"]}'] if _is_only(thing, things, 'shape') else []
    return dict(expression=names[rng.integers(len(names))], box=thing['box'])


def region_caption(things: Sequence[dict]) -> dict:
    """The box of one thing -> words for it."""
    thing = _asked(things)
    return dict(box=thing['box'], caption=f'a {name(thing)}')


def detection(things: Sequence[dict]) -> dict:
    """A shape -> the boxes of all things that have it, whatever their colours; at least one."""
    label = _asked(things)['shape']
    return dict(label=label, boxes=[thing['box'] for thing in things if thing['shape'] == label])


def caption(things: Sequence[dict]) -> dict:
    """One sentence that names every thing."""
    *others, last = [f'a {name(thing)}' for thing in things]
    sentence = f'{", ".join(others)} and {last}.'
    return dict(caption=sentence[0].upper() + sentence[1:])


def grounded_caption(things: Sequence[dict]) -> dict:
    """Words for every thing, each with its box."""
    return dict(phrases=[(f'a {name(thing)}', [thing['box']]) for thing in things])


def classification(things: Sequence[dict]) -> dict:
    """The only thing there is."""
    return dict(label=name(_asked(things)))


def choices(kind: str, answer: str, rng: np.random.Generator) -> list[str]:
    """Up to four answers of a kind of question in random order, the right one among them."""
    others = [other for other in ANSWERS[kind] if other != answer]
    return rng.permutation([answer, *rng.permutation(others)[: MAX_CHOICES - 1]]).tolist()


def name(thing: dict) -> str:
    """'red ring'."""
    return f'{thing["color"]} {thing["shape"]}'


def _is_only(thing: dict, things: Sequence[dict], key: str) -> bool:
    return sum(other[key] == thing[key] for other in things) == 1


def _asked(things: Sequence[dict]) -> dict:
    (thing,) = (thing for thing in things if thing['asked'])
    return thing


SCENE_TASKS = dict(
    region_caption=region_caption,
    detection=detection,
    caption=caption,
    grounded_caption=grounded_caption,
    classification=classification,
)
