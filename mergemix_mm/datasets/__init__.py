"""Datasets of `mergemix_mm`, registered in MMEngine's root DATASETS."""

from ..moved import moved_names
from ..utils.text import RecordError
from .base import RecordDataset
from .cifar100c import CIFAR100C
from .coco_tasks import COCOTaskDataset
from .collate import ConversationCollate, UnifiedCollate
from .conversation import ConversationDataset
from .mixtures import ModalitySampler, TaskMixSampler
from .mixtures.task_mix import TaskMixDataset
from .mixtures.unified import UnifiedDataset
from .pope import POPEDataset
from .processors.llava_padding import llava_padding_processor
from .processors.sphinx import SphinxProcessor
from .refcoco import RefCOCODataset
from .scienceqa import ScienceQADataset
from .task_record import TaskRecordDataset
from .text_to_image import TextToImageDataset
from .transforms import (
    CaptionTask,
    ChartToTableTask,
    ClassificationTask,
    CoordinateTask,
    DetailedCaptionTask,
    DetectionTask,
    EncodeConversation,
    EncodeGeneration,
    GroundedCaptionTask,
    GroundingTask,
    LanguageModellingTask,
    LayoutTask,
    MultipleChoiceTask,
    PoseTask,
    RegionCaptionTask,
    ShortAnswerTask,
    TaskTemplate,
    TextOnlyTask,
    TextSpottingTask,
    VQATask,
)
from .vqav2 import VQAv2Dataset

__all__ = [
    'CIFAR100C',
    'COCOTaskDataset',
    'CaptionTask',
    'ChartToTableTask',
    'ClassificationTask',
    'ConversationCollate',
    'ConversationDataset',
    'CoordinateTask',
    'DetailedCaptionTask',
    'DetectionTask',
    'EncodeConversation',
    'EncodeGeneration',
    'GroundedCaptionTask',
    'GroundingTask',
    'LanguageModellingTask',
    'LayoutTask',
    'ModalitySampler',
    'MultipleChoiceTask',
    'POPEDataset',
    'PoseTask',
    'RecordDataset',
    'RecordError',
    'RefCOCODataset',
    'RegionCaptionTask',
    'ScienceQADataset',
    'ShortAnswerTask',
    'SphinxProcessor',
    'TaskMixDataset',
    'TaskMixSampler',
    'TaskRecordDataset',
    'TaskTemplate',
    'TextOnlyTask',
    'TextSpottingTask',
    'TextToImageDataset',
    'UnifiedCollate',
    'UnifiedDataset',
    'VQATask',
    'VQAv2Dataset',
    'llava_padding_processor',
]

__getattr__ = moved_names(
    __name__,
    [
        'DigitsDataset',
        'ShapesConversationDataset',
        'ShapesGenerationDataset',
        'ShapesTaskDataset',
        'shapes_coco_dataset',
        'shapes_janus_processor',
        'shapes_janus_words',
        'shapes_processor',
        'shapes_task_tokenizer',
        'shapes_task_words',
        'shapes_words',
        'write_shapes_coco',
    ],
    'toy',
)
