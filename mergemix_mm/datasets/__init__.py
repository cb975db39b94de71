"""Datasets of `mergemix_mm`, registered in MMEngine's root DATASETS."""

from .coco_task_dataset import COCOTaskDataset
from .collate import ConversationCollate
from .conversation_dataset import ConversationDataset
from .digits import DigitsDataset
from .llava_padding import llava_padding_processor
from .pope_dataset import POPEDataset
from .record_dataset import RecordDataset
from .record_error import RecordError
from .refcoco_dataset import RefCOCODataset
from .samplers import ModalitySampler, TaskMixSampler
from .scienceqa_dataset import ScienceQADataset
from .shapes import ShapesConversationDataset
from .shapes_coco import write_shapes_coco
from .shapes_coco_dataset import shapes_coco_dataset
from .shapes_generation import ShapesGenerationDataset
from .shapes_janus_processor import shapes_janus_processor, shapes_janus_words
from .shapes_processor import shapes_processor, shapes_words
from .shapes_task_tokenizer import shapes_task_tokenizer, shapes_task_words
from .shapes_tasks import ShapesTaskDataset
from .sphinx_processor import SphinxProcessor
from .task_mix_dataset import TaskMixDataset
from .task_record_dataset import TaskRecordDataset
from .text_to_image_dataset import TextToImageDataset
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
from .unified_collate import UnifiedCollate
from .unified_dataset import UnifiedDataset
from .vqav2_dataset import VQAv2Dataset

__all__ = [
    'COCOTaskDataset',
    'CaptionTask',
    'ChartToTableTask',
    'ClassificationTask',
    'ConversationCollate',
    'ConversationDataset',
    'CoordinateTask',
    'DetailedCaptionTask',
    'DetectionTask',
    'DigitsDataset',
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
    'ShapesConversationDataset',
    'ShapesGenerationDataset',
    'ShapesTaskDataset',
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
    'shapes_coco_dataset',
    'shapes_janus_processor',
    'shapes_janus_words',
    'shapes_processor',
    'shapes_task_tokenizer',
    'shapes_task_words',
    'shapes_words',
    'write_shapes_coco',
]
