"""Tasks on drawn shapes, as structured records: data on which a tiny SPHINX learns to answer and to point on a CPU."""

from collections.abc import Sequence

import numpy as np
from mmengine.registry import DATASETS
from PIL import Image

from .conversations import DrawnDataset
from .drawing import box_around, draw_clutter, draw_thing, to_uint8
from .scenes import ANSWERS, GRID, SHAPES, Thing, draw_answer, draw_scene, shapes_facts

MAX_CHOICES = 4


def grounding(things: Sequence[dict], rng: np.random.Generator) -> dict:
    """Words for one thing -> its box. The words name its colour and shape, or one of them if that is enough."""
    thing = _asked(things)
    names = [f'the {name(thing)}']
    names += [f'the {thing["color"]} thing'] if _is_only(thing, things, 'color') else []
    names += [f'the {thing["shape"]}'] if _is_only(thing, things, 'shape') else []
    return dict(expression=names[rng.integers(len(names))], box=thing['box'])


def region_caption(things: Sequence[dict]) -> dict:
    """The box of one thing -> words for the thing."""
    thing = _asked(things)
    return dict(box=thing['box'], caption=f'a {name(thing)}')


def detection(things: Sequence[dict]) -> dict:
    """A shape -> the boxes of all things of that shape in any colour; at least one."""
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
    """The only thing of the scene."""
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


QUESTION_TASKS = ('vqa', 'multiple_choice')
TASKS = (*QUESTION_TASKS, 'grounding', *SCENE_TASKS, 'text_only')
MIN_CELL = 8


@DATASETS.register_module()
class ShapesTaskDataset(DrawnDataset):
    """One record of one task per index, for the task transforms, which write the conversation.

    Images are like those of :class:`ShapesConversationDataset`: two to six things on clutter. A record holds
    ``images``, ``source``, ``size`` (height and width), ``things`` (list of dicts in reading order with ``color``,
    ``shape``, ``cell``, ``asked`` and ``box``), and the fields of its task:

    ==================== ============================================================================================
    ``vqa``              ``question``, ``answer`` (one word) and ``question_type``: color, shape, count, position and
                         yesno in turn
    ``multiple_choice``  the same, and ``choices``: up to four answers
    ``grounding``        ``expression`` and ``box``: 'the red ring'; where no other thing is red, or no other is a ring,
                         also 'the red thing' or 'the ring', drawn evenly
    ``region_caption``   ``box`` and ``caption``, 'a red ring'
    ``detection``        ``label``, a shape, and ``boxes``, of all things of that shape
    ``caption``          ``caption``, one sentence that names all things
    ``grounded_caption`` ``phrases``: pairs of 'a red ring' and its boxes
    ``classification``   ``label``, 'red ring', of the only thing
    ``text_only``        no image: ``question``, ``answer`` and ``question_type`` of one of :func:`shapes_facts`, which
                         the index goes through in turn; the same facts in both splits
    ==================== ============================================================================================

    Boxes are xyxy in pixels, tight around the pixels that a thing covers at least by half. A colour-shape pair
    belongs to one split, as in :class:`ShapesConversationDataset`. Index i is always the same record for one task,
    split, seed and size.

    Args:
        task (str): One of the above.
        split (str): ``'train'`` or ``'val'``. Defaults to ``'train'``.
        length (int): Number of records, >= 1. Defaults to 10000.
        image_size (int): Height and width in pixels, >= 8 per cell. Defaults to 48.
        grid (int): Number of cells per side, a multiple of 3; with 6 or 9, things are small. Defaults to 3.
        seed (int): Seed of all draws, >= 0; NumPy's global state is not used. Defaults to 0.
        pipeline (Sequence): Transforms that turn a record into a sample. Defaults to an empty tuple.

    Raises:
        ValueError: If an argument is outside its range.

    Examples:
        >>> record = ShapesTaskDataset('grounding')[0]
        >>> record['expression'], record['box']
    """

    METAINFO = dict(answers=ANSWERS, classes=SHAPES)

    def __init__(
        self,
        task: str,
        split: str = 'train',
        length: int = 10000,
        image_size: int = 48,
        grid: int = GRID,
        seed: int = 0,
        pipeline: Sequence = (),
    ) -> None:
        super().__init__(split, length, image_size, seed, pipeline)
        if task not in TASKS:
            raise ValueError(f'ShapesTaskDataset: task={task!r} is unknown; use one of {", ".join(TASKS)}.')
        if grid not in range(GRID, image_size // MIN_CELL + 1, GRID):
            raise ValueError(
                f'ShapesTaskDataset: grid={grid!r} must be a multiple of {GRID} with cells of at least {MIN_CELL} '
                f'pixels; image_size={image_size} has room for {image_size // MIN_CELL} per side.'
            )
        self.task, self.grid = task, grid
        self.facts = shapes_facts() if task == 'text_only' else []

    @property
    def modalities(self) -> np.ndarray:
        """Whether each record has an image, [N] bool: all True except for ``text_only``."""
        return np.full(self.length, self.task != 'text_only')

    def draw(self, index: int, rng: np.random.Generator) -> dict:
        if self.task == 'text_only':
            kind, question, answer = self.facts[index % len(self.facts)]
            return dict(images=[], question=question, answer=answer, question_type=kind)
        asks = self.task in QUESTION_TASKS
        # A question for the position names a colour and a shape that only one thing has; all other tasks need that too.
        kind = tuple(ANSWERS)[index % len(ANSWERS)] if asks else 'position'
        scene = draw_scene(kind, draw_answer(kind, None, rng) if asks else None, self.pairs, rng, self.grid)
        shown = [thing for thing in scene.things if thing.asked or self.task != 'classification']
        image, things, _ = draw_things(shown, self.image_size, self.grid, rng)
        record = dict(images=[image], size=(self.image_size, self.image_size), things=things)
        if self.task == 'grounding':
            return record | grounding(things, rng)
        if not asks:
            return record | SCENE_TASKS[self.task](things)
        record |= dict(question=scene.question, answer=scene.answer, question_type=kind)
        return record | dict(choices=choices(kind, scene.answer, rng)) if self.task == 'multiple_choice' else record


def draw_things(
    things: Sequence[Thing], size: int, grid: int, rng: np.random.Generator
) -> tuple[Image.Image, list[dict], list[np.ndarray]]:
    """Draw things on clutter.

    Returns:
        tuple: The image; the things as dicts in reading order, with the boxes around their pixels; their masks, each
        [size, size] bool.
    """
    canvas, drawn, masks = draw_clutter(size, rng), [], []
    # Reading order, in which answers name things: a model could not learn a random one.
    for thing in sorted(things, key=lambda thing: thing.cell):
        masks.append(draw_thing(canvas, thing.color, thing.shape, thing.cell, grid, rng))
        drawn.append(dict(vars(thing), box=box_around(masks[-1])))
    return Image.fromarray(to_uint8(canvas)), drawn, masks
