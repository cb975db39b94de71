"""Datasets of `mergemix_mm`, registered in MMEngine's root DATASETS."""

from .collate import ConversationCollate
from .conversation_dataset import ConversationDataset
from .digits import DigitsDataset
from .pope_dataset import POPEDataset
from .record_dataset import RecordDataset
from .record_error import RecordError
from .samplers import ModalitySampler
from .scienceqa_dataset import ScienceQADataset
from .shapes import ShapesConversationDataset
from .shapes_processor import shapes_processor, shapes_words
from .transforms import EncodeConversation
from .vqav2_dataset import VQAv2Dataset

__all__ = [
    'ConversationCollate',
    'ConversationDataset',
    'DigitsDataset',
    'EncodeConversation',
    'ModalitySampler',
    'POPEDataset',
    'RecordDataset',
    'RecordError',
    'ScienceQADataset',
    'ShapesConversationDataset',
    'VQAv2Dataset',
    'shapes_processor',
    'shapes_words',
]
