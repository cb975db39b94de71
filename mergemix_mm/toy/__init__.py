"""Small data and models that are drawn or come with a package: demo, tests and studies run on them on a CPU."""

from .digits import DigitsDataset
from .mosaic_codes import MosaicCodes
from .shapes import ShapesConversationDataset
from .shapes_coco import write_shapes_coco
from .shapes_coco_dataset import shapes_coco_dataset
from .shapes_generation import ShapesGenerationDataset
from .shapes_generation_metric import ShapesGenerationMetric
from .shapes_janus_processor import shapes_janus_processor, shapes_janus_words
from .shapes_processor import shapes_processor, shapes_words
from .shapes_task_tokenizer import shapes_task_tokenizer, shapes_task_words
from .shapes_tasks import ShapesTaskDataset

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
