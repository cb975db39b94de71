"""What drawn records are about: scenes of coloured shapes, questions with one right answer, and facts."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

COLORS = ('red', 'green', 'blue', 'yellow', 'purple', 'white')
SHAPES = ('circle', 'square', 'triangle', 'cross', 'ring', 'diamond')
COUNTS = ('one', 'two', 'three')
COLUMNS = ('left', 'center', 'right')
GRID = 3

# The answers to each kind of question. The first one is that of `answer_prior`.
ANSWERS = dict(color=COLORS, shape=SHAPES, count=COUNTS, position=COLUMNS, yesno=('yes', 'no'))

IS_LEFT = 'Is the {color} {shape} on the left?'
# A question is about all things that have every attribute it names.
TEMPLATES = dict(
    color=('What color is the {shape}?',),
    shape=('What shape is the {color} thing?',),
    count=(
        'How many {color} things are there?',
        'How many {shape} things are there?',
        'How many {color} {shape} things are there?',
    ),
    position=('Where is the {color} {shape}?',),
    yesno=('Is there a {color} {shape}?', IS_LEFT),
)
# The prompts of image generation, by the column of the thing.
GENERATION_TEMPLATES = dict(
    left='draw a {color} {shape} on the left',
    center='draw a {color} {shape} in the center',
    right='draw a {color} {shape} on the right',
)

Pair = tuple[str, str]


@dataclass
class Thing:
    """One thing of a scene.

    Args:
        color (str): One of `COLORS`.
        shape (str): One of `SHAPES`.
        cell (tuple[int, int]): Row and column on the grid; no two things share a cell.
        asked (bool): Whether the question is about it.
    """

    color: str
    shape: str
    cell: tuple[int, int]
    asked: bool


@dataclass
class Scene:
    """Things, a question and its answer."""

    things: list[Thing]
    question: str
    answer: Any  # A text, or None where nothing is asked.


def split_pairs(split: str) -> list[Pair]:
    """The colour-shape pairs of a split: four of each colour (and of each shape) in train, the other two in val."""
    pairs = [(i, j) for i in range(len(COLORS)) for j in range(len(SHAPES))]
    return [(COLORS[i], SHAPES[j]) for i, j in pairs if ((j - i) % 3 == 0) == (split == 'val')]


def draw_answer(kind: str, prior: float | None, rng: np.random.Generator) -> str:
    """Draw an answer to a kind of question: the first one with probability `prior`, otherwise one of the others."""
    answers = ANSWERS[kind]
    if prior is None:
        return answers[rng.integers(len(answers))]
    if rng.random() < prior:
        return answers[0]
    return answers[rng.integers(1, len(answers))]


def draw_scene(
    kind: str, answer: str | None, pairs: Sequence[Pair], rng: np.random.Generator, grid: int = GRID
) -> Scene:
    """Draw a scene to which the answer is the only right one.

    Args:
        kind (str): Kind of the question, a key of `ANSWERS`.
        answer (str, optional): One of its answers. None draws a ``position`` at random.
        pairs (Sequence[tuple[str, str]]): The colour-shape pairs that may appear.
        rng (np.random.Generator): Draws everything.
        grid (int): Cells per side, a multiple of 3. Defaults to 3.

    Returns:
        Scene: two to six things on the grid.
    """
    fixed = dict(color=0, shape=1).get(kind)
    pair = _choose(pairs if fixed is None else [pair for pair in pairs if pair[fixed] == answer], rng)
    template = _choose(TEMPLATES[kind], rng)
    named = [i for i, name in enumerate(('{color}', '{shape}')) if name in template]
    meant = [other for other in pairs if all(other[i] == pair[i] for i in named)]
    asked = [pair, *(_choose(meant, rng) for _ in range(len(COUNTS) - 1))][: _num_asked(template, answer)]
    others = [other for other in pairs if other not in meant]
    # At least half of the other things share a colour or a shape with the pair in question; otherwise one attribute
    # would be enough to find the thing.
    related = [other for other in others if other[0] == pair[0] or other[1] == pair[1]]
    num_others = rng.integers(1, GRID + 1) + (not asked)
    others = [_choose(related if i == 0 or rng.random() < 0.5 else others, rng) for i in range(num_others)]

    cells = rng.permutation(grid * grid).tolist()
    if answer is not None and (kind == 'position' or template == IS_LEFT):
        third = COLUMNS.index(answer) if kind == 'position' else 0 if answer == 'yes' else rng.integers(1, GRID)
        # The sort is stable: cells of this third come first, and the order stays random otherwise.
        cells = sorted(cells, key=lambda cell: cell % grid // (grid // GRID) != third)
    things = [
        Thing(color, shape, divmod(cell, grid), i < len(asked))
        for i, ((color, shape), cell) in enumerate(zip(asked + others, cells, strict=False))
    ]
    return Scene(things, template.format(color=pair[0], shape=pair[1]), answer)


def _num_asked(template: str, answer: str | None) -> int:
    """The number of things in a scene that the question is about."""
    if answer in COUNTS:
        return COUNTS.index(answer) + 1
    return int(answer != 'no' or template == IS_LEFT)


def _choose(items: Sequence, rng: np.random.Generator):
    return items[int(rng.integers(len(items)))]


SUM = 'What is {} + {}?'
AFTER = 'What comes after {}?'
BEFORE = 'What comes before {}?'
PRICE = 'How much is a {} {}?'
DIGITS = range(10)


def shapes_facts() -> list[tuple[str, str, str]]:
    """All 160 facts: kind (``sum``, ``after``, ``before`` or ``price``), question, answer.

    The sums of two digits (100), what follows and precedes a colour or a shape in a closed round (12 each), and a
    price of two digits for each pair of colour and shape (36), no two alike.
    """
    facts = [('sum', SUM.format(a, b), str(a + b)) for a, b in product(DIGITS, DIGITS)]
    for words in (COLORS, SHAPES):
        for word, following in zip(words, (*words[1:], words[0]), strict=True):
            facts += [('after', AFTER.format(word), following), ('before', BEFORE.format(following), word)]
    pairs = enumerate(product(COLORS, SHAPES))
    # 37 and 90 have no common factor: the prices, 10 to 99, are all different, and their order shows no pattern.
    return facts + [('price', PRICE.format(*pair), str(10 + 37 * i % 90)) for i, pair in pairs]
