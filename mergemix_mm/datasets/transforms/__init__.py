"""Transforms of records, registered in MMEngine's root TRANSFORMS."""

from .encode_conversation import EncodeConversation
from .encode_generation import EncodeGeneration
from .tasks import (
    CaptionTask,
    ChartToTableTask,
    ClassificationTask,
    CoordinateTask,
    DetailedCaptionTask,
    DetectionTask,
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

__all__ = [
    'CaptionTask',
    'ChartToTableTask',
    'ClassificationTask',
    'CoordinateTask',
    'DetailedCaptionTask',
    'DetectionTask',
    'EncodeConversation',
    'EncodeGeneration',
    'GroundedCaptionTask',
    'GroundingTask',
    'LanguageModellingTask',
    'LayoutTask',
    'MultipleChoiceTask',
    'PoseTask',
    'RegionCaptionTask',
    'ShortAnswerTask',
    'TaskTemplate',
    'TextOnlyTask',
    'TextSpottingTask',
    'VQATask',
]
