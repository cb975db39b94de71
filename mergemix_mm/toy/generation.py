"""Text-to-image on drawn shapes: prompts with their images, and a metric that reads colour and place from pixels."""

from collections.abc import Sequence

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.registry import DATASETS, METRICS
from PIL import Image

from ..evaluation.metrics.answers import get_field, percent
from .conversations import DrawnDataset
from .drawing import BRIGHTNESS, PALETTE, draw_clutter, draw_thing, to_uint8
from .scenes import COLUMNS, GENERATION_TEMPLATES, GRID

PLAIN = 0.25  # Grey of a background without clutter, in [0, 1].


@DATASETS.register_module()
class ShapesGenerationDataset(DrawnDataset):
    """One prompt ('draw a red ring on the left') and one image of that thing per index.

    The thing stands in one of the three rows of the column that the prompt names, with a random size, place and
    brightness. Train and val hold different colour-shape pairs, as in :class:`ShapesConversationDataset`. Index i is
    always the same record for one split, seed and set of arguments.

    A record holds ``prompt``, ``images`` (one RGB image), ``source``, and what :class:`ShapesGenerationMetric` reads
    back from generated pixels: ``gt_color`` and ``gt_position`` (``'left'``, ``'center'``, ``'right'``); also
    ``gt_shape``.

    Args:
        split (str): ``'train'`` or ``'val'``. Defaults to ``'train'``.
        length (int): Number of records, >= 1. Defaults to 10000.
        image_size (int): Height and width in pixels, >= 24. Defaults to 48.
        clutter (bool): Whether the background is that of :class:`ShapesConversationDataset`; otherwise it is grey,
            and easy to draw. Defaults to False.
        seed (int): Of all draws, >= 0; numpy's global state plays no part. Defaults to 0.
        pipeline (Sequence): Transforms that turn a record into a sample. Defaults to an empty tuple.

    Raises:
        ValueError: If an argument is outside its range.

    Examples:
        >>> record = ShapesGenerationDataset(split='val')[0]
        >>> record['prompt'], record['gt_color'], record['gt_position']
    """

    METAINFO = dict(palette=PALETTE, columns=COLUMNS)

    def __init__(
        self,
        split: str = 'train',
        length: int = 10000,
        image_size: int = 48,
        clutter: bool = False,
        seed: int = 0,
        pipeline: Sequence = (),
    ) -> None:
        super().__init__(split, length, image_size, seed, pipeline)
        self.clutter = clutter

    def draw(self, index: int, rng: np.random.Generator) -> dict:
        color, shape = self.pairs[rng.integers(len(self.pairs))]
        row, column = rng.integers(GRID, size=2).tolist()
        size = self.image_size
        canvas = draw_clutter(size, rng) if self.clutter else np.full((size, size, 3), PLAIN, np.float32)
        draw_thing(canvas, color, shape, (row, column), GRID, rng)
        return dict(
            prompt=GENERATION_TEMPLATES[COLUMNS[column]].format(color=color, shape=shape),
            images=[Image.fromarray(to_uint8(canvas))],
            gt_color=color,
            gt_shape=shape,
            gt_position=COLUMNS[column],
        )


# The largest distance of a pixel to its colour (Euclidean, channels in [0, 1]): less than half of that between two
# colours.
TOLERANCE = 0.2
# The smallest share of the image that counts as a shape.
LEAST_SHARE = 0.01


def read_shape(
    image: np.ndarray, palette: dict[str, Sequence[float]], columns: Sequence[str]
) -> tuple[str, str] | None:
    """Find the colour and the column of the largest coloured thing, without any classifier.

    Every pixel near a colour of the palette counts for this colour and for the column it lies in.

    Args:
        image (np.ndarray): [H, W, 3] in [0, 1], RGB.
        palette (dict[str, Sequence[float]]): Names and RGB values in [0, 1] of the colours.
        columns (Sequence[str]): Names of equally wide columns, from the left.

    Returns:
        tuple[str, str] | None: Colour and column; None if no colour is there.
    """
    tones = np.array(list(palette.values()))
    # The brightness of each colour that comes closest to the pixel, by least squares.
    brightness = (image @ tones.T / (tones**2).sum(-1)).clip(*BRIGHTNESS)
    distance = np.linalg.norm(image[:, :, None] - brightness[..., None] * tones, axis=-1)
    # A pixel counts for its nearest colour only.
    near = (distance == distance.min(-1, keepdims=True)) & (distance < TOLERANCE)
    counts = np.array([part.sum((0, 1)) for part in np.array_split(near, len(columns), axis=1)])
    column, color = map(int, np.unravel_index(counts.argmax(), counts.shape))
    if counts[column, color] < LEAST_SHARE * near[..., 0].size:
        return None
    return list(palette)[color], columns[column]


@METRICS.register_module()
class ShapesGenerationMetric(BaseMetric):
    """Accuracy of generated images on the prompts of ``ShapesGenerationDataset``, in percent.

    - ``generation/color``: share of images whose largest coloured thing has the colour asked for;
    - ``generation/position``: share of those in which it stands in the column asked for;
    - ``generation/both``: share of those that are right in both;
    - ``generation/unreadable``: share of those that show no colour of the palette at all; they are wrong.

    Guessing gives 17, 33 and 6 percent. True images give 100 without clutter, and above 99 with it.

    Args:
        collect_device (str): ``'cpu'`` or ``'gpu'``, how several processes gather. Defaults to ``'cpu'``.
        prefix (str, optional): Prefix of the names. Defaults to None, which means ``generation``.

    Raises:
        KeyError: If a sample has no ``pred_image``, ``gt_color`` or ``gt_position``, or the dataset's ``metainfo`` no
            ``palette``.
        ValueError: If there is no sample at all.
    """

    default_prefix = 'generation'

    def process(self, data_batch, data_samples: Sequence[dict]) -> None:
        """Read the images of a batch.

        Args:
            data_batch: Unused.
            data_samples (Sequence[dict]): Data samples as dictionaries, with ``pred_image`` (tensor [3, H, W] in
                [0, 1], RGB), ``gt_color`` and ``gt_position`` (str).
        """
        palette, columns = (get_field(self.dataset_meta or {}, key, type(self).__name__) for key in _META)
        for sample in data_samples:
            image, *truth = (get_field(sample, key, type(self).__name__) for key in _FIELDS)
            found = read_shape(image.float().cpu().permute(1, 2, 0).numpy(), palette, columns)
            self.results.append(dict(found=found, truth=tuple(truth)))

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Compute the shares over the samples of all processes.

        Args:
            results (list[dict]): ``found`` and ``truth`` of every sample.

        Returns:
            dict[str, float]: ``color``, ``position``, ``both`` and ``unreadable``, in percent.
        """
        if not results:
            raise ValueError('ShapesGenerationMetric: there is no image to evaluate; is the dataset empty?')
        found = [row['found'] or (None, None) for row in results]
        truth = [row['truth'] for row in results]
        right = [[a == b for a, b in zip(one, other, strict=True)] for one, other in zip(found, truth, strict=True)]
        return dict(
            color=percent([color for color, _ in right]),
            position=percent([position for _, position in right]),
            both=percent([all(pair) for pair in right]),
            unreadable=percent([row['found'] is None for row in results]),
        )


_META = ('palette', 'columns')
_FIELDS = ('pred_image', 'gt_color', 'gt_position')
