"""Conversations on coloured shapes, drawn on the fly: data on which a tiny vision-language model learns on a CPU."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from mmengine.dataset import Compose
from mmengine.registry import DATASETS
from PIL import Image
from torch.utils.data import Dataset

from ..utils.numbers import is_number
from .drawing import draw_clutter, draw_thing, to_uint8
from .scenes import ANSWERS, GRID, Scene, draw_answer, draw_scene, split_pairs

SPLITS = ('train', 'val')
MIN_IMAGE_SIZE = 24


class DrawnDataset(Dataset, ABC):
    """Base of the datasets that draw their records; a subclass implements :meth:`draw`.

    A colour-shape pair belongs to one split: of each colour, and of each shape, four pairs appear in train images
    only and two in val images only.

    Args:
        split (str): ``'train'`` or ``'val'``. Defaults to ``'train'``.
        length (int): Number of records, >= 1. Defaults to 10000.
        image_size (int): Height and width in pixels, >= 24. Defaults to 48.
        seed (int): Seed of all draws, >= 0; NumPy's global state is not used. Defaults to 0.
        pipeline (Sequence): Transforms that turn a record into a sample. Defaults to an empty tuple.

    Raises:
        ValueError: If an argument is outside its range.
    """

    METAINFO: dict = {}

    def __init__(
        self,
        split: str = 'train',
        length: int = 10000,
        image_size: int = 48,
        seed: int = 0,
        pipeline: Sequence = (),
    ) -> None:
        name = type(self).__name__
        if split not in SPLITS:
            raise ValueError(f"{name}: split={split!r} is unknown; use split='train' or split='val'.")
        for key, value, least in (('length', length, 1), ('image_size', image_size, MIN_IMAGE_SIZE), ('seed', seed, 0)):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f'{name}: {key}={value!r} must be an integer of at least {least}.')
        self.split, self.length, self.image_size, self.seed = split, length, image_size, seed
        self.pairs = split_pairs(split)
        self.pipeline = Compose(pipeline)

    @abstractmethod
    def draw(self, index: int, rng: np.random.Generator) -> dict:
        """Draw a record without its ``source``; ``rng`` must be the only source of random numbers."""

    @property
    def metainfo(self) -> dict:
        """What metrics get to know of the dataset."""
        return dict(self.METAINFO)

    @property
    def modalities(self) -> np.ndarray:
        """Whether each record has an image, [N] bool: all True."""
        return np.ones(self.length, dtype=bool)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        return self.pipeline(self.get_data_info(index))

    def get_data_info(self, index: int) -> dict:
        """Draw a record.

        Args:
            index (int): From -N to N - 1.

        Returns:
            dict: see the class.

        Raises:
            IndexError: If there is no such record.
        """
        name = type(self).__name__
        if not -self.length <= index < self.length:
            raise IndexError(f'{name}: index {index} is outside the {self.length} records')
        index %= self.length
        # A generator per record: they can be read in any order and by any process.
        record = self.draw(index, np.random.default_rng((self.seed, SPLITS.index(self.split), index)))
        return {**record, 'source': f'{name}[{index}]'}


@DATASETS.register_module()
class ShapesConversationDataset(DrawnDataset):
    """One image of coloured shapes on clutter, one question on it and a short answer per index.

    Two to six things (six colours, six shapes) stand on a 3 x 3 grid over soft tones, noise, bars and specks in the
    same colours. The kinds of question are:

    - ``color``: 'What color is the ring?';
    - ``shape``: 'What shape is the red thing?';
    - ``count``: 'one' to 'three' things of a colour, of a shape, or of a pair of both;
    - ``position``: 'left', 'center' or 'right', the column of the thing;
    - ``yesno``: half of these ask for a place ('Is the red ring on the left?') and half for presence ('Is there a red
      ring?'; another thing always shares its colour or its shape). Presence is by far the hardest to learn: for a long
      time, a tiny model only repeats the prior.

    The answer is drawn before the scene, so ``answer_prior`` holds for any scenes. With 0.8, the first answer of each
    kind ('red', 'circle', 'one', 'left', 'yes') is right in 80 % of the samples of its kind, and the others share the
    rest; 0.2 is the same prior flipped. A model that only knows the training prior then falls from 80 % to 20 %.

    A colour-shape pair belongs to one split: of each colour, and of each shape, four pairs appear in train images
    only and two in val images only. Index i is always the same record for one split, seed and set of arguments.

    A record holds ``messages``, ``images`` (one RGB image), ``source``, ``gt_answer``, ``question_type``, ``gt_mask``
    ([image_size, image_size] bool, the things asked about; empty where there is none) and ``things`` (list of dicts
    with ``color``, ``shape``, ``cell`` and ``asked``). The kind of question changes with the index, in turn.

    Args:
        split (str): ``'train'`` or ``'val'``. Defaults to ``'train'``.
        length (int): Number of records, >= 1. Defaults to 10000.
        questions (Sequence[str]): Kinds of question, some of color, shape, count, position, yesno. Defaults to all.
        image_size (int): Height and width in pixels, >= 24. Defaults to 48.
        answer_prior (float, optional): Share of the first answer of each kind, in [0, 1]. Defaults to None: all
            answers of a kind are equally frequent.
        seed (int): Seed of all draws, >= 0; NumPy's global state is not used. Defaults to 0.
        pipeline (Sequence): Transforms that turn a record into a sample. Defaults to an empty tuple.

    Raises:
        ValueError: If an argument is outside its range.

    Examples:
        >>> record = ShapesConversationDataset(split='val', questions=('color',))[0]
        >>> record['messages'][0]['content'][1]['text'], record['gt_answer']
    """

    METAINFO = dict(answers=ANSWERS)

    def __init__(
        self,
        split: str = 'train',
        length: int = 10000,
        questions: Sequence[str] = tuple(ANSWERS),
        image_size: int = 48,
        answer_prior: float | None = None,
        seed: int = 0,
        pipeline: Sequence = (),
    ) -> None:
        super().__init__(split, length, image_size, seed, pipeline)
        if isinstance(questions, str) or not questions or not set(questions) <= set(ANSWERS):
            raise ValueError(
                f'{type(self).__name__}: questions={questions!r} must be a list of some of {", ".join(ANSWERS)}.'
            )
        if answer_prior is not None and not is_number(answer_prior, least=0, most=1):
            raise ValueError(
                f'{type(self).__name__}: answer_prior={answer_prior!r} must lie in [0, 1]: it is the share of the '
                'first answer of each kind of question. Use 0.8 for an 80/20 prior, 0.2 for the same flipped, None for '
                'equal shares.'
            )
        self.questions, self.answer_prior = tuple(questions), answer_prior

    def draw(self, index: int, rng: np.random.Generator) -> dict:
        # In turn rather than at random: every kind has the same number of questions.
        kind = self.questions[index % len(self.questions)]
        scene = draw_scene(kind, draw_answer(kind, self.answer_prior, rng), self.pairs, rng)
        image, mask = _draw(scene, self.image_size, rng)
        return dict(
            messages=[
                dict(role='user', content=[dict(type='image'), dict(type='text', text=scene.question)]),
                dict(role='assistant', content=[dict(type='text', text=scene.answer)]),
            ],
            images=[Image.fromarray(image)],
            gt_answer=scene.answer,
            question_type=kind,
            gt_mask=mask,
            things=[vars(thing) for thing in scene.things],
        )


def _draw(scene: Scene, size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The image [size, size, 3] uint8 and the mask [size, size] bool of the things asked about."""
    canvas = draw_clutter(size, rng)
    mask = np.zeros((size, size), dtype=bool)
    for thing in scene.things:
        covered = draw_thing(canvas, thing.color, thing.shape, thing.cell, GRID, rng)
        if thing.asked:
            mask |= covered
    return to_uint8(canvas), mask
