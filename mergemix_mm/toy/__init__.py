"""Small data and models that are drawn or bundled, on which demo, tests and studies run on a CPU."""

from .coco import shapes_coco_dataset, write_shapes_coco
from .conversations import ShapesConversationDataset
from .digits import DigitsDataset
from .generation import ShapesGenerationDataset, ShapesGenerationMetric
from .mosaic_codes import MosaicCodes
from .processors import (
    shapes_janus_processor,
    shapes_janus_words,
    shapes_processor,
    shapes_task_tokenizer,
    shapes_task_words,
    shapes_words,
)
from .tasks import ShapesTaskDataset

__all__ = [
    'DigitsDataset',
    'MosaicCodes',
    'ShapesConversationDataset',
    'ShapesGenerationDataset',
    'ShapesGenerationMetric',
    'ShapesTaskDataset',
    'shapes_coco_dataset',
    'shapes_janus_processor',
    'shapes_janus_words',
    'shapes_processor',
    'shapes_task_tokenizer',
    'shapes_task_words',
    'shapes_words',
    'write_shapes_coco',
]
