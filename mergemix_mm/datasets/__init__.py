"""Datasets of `mergemix_mm`, registered in MMEngine's root DATASETS."""

from .collate import ConversationCollate
from .conversation_dataset import ConversationDataset
from .digits import DigitsDataset
from .llava_padding import llava_padding_processor
from .pope_dataset import POPEDataset
from .record_dataset import RecordDataset
from .record_error import RecordError
from .samplers import ModalitySampler
from .scienceqa_dataset import ScienceQADataset
from .shapes import ShapesConversationDataset
from .shapes_generation import ShapesGenerationDataset
from .shapes_janus_processor import shapes_janus_processor, shapes_janus_words
from .shapes_processor import shapes_processor, shapes_words
from .text_to_image_dataset import TextToImageDataset
from .transforms import EncodeConversation, EncodeGeneration
from .unified_collate import UnifiedCollate
from .unified_dataset import UnifiedDataset
from .vqav2_dataset import VQAv2Dataset

__all__ = [
    'ConversationCollate',
    'ConversationDataset',
    'DigitsDataset',
    'EncodeConversation',
    'EncodeGeneration',
    'ModalitySampler',
    'POPEDataset',
    'RecordDataset',
    'RecordError',
    'ScienceQADataset',
    'ShapesConversationDataset',
    'ShapesGenerationDataset',
    'TextToImageDataset',
    'UnifiedCollate',
    'UnifiedDataset',
    'VQAv2Dataset',
    'llava_padding_processor',
    'shapes_janus_processor',
    'shapes_janus_words',
    'shapes_processor',
    'shapes_words',
]
