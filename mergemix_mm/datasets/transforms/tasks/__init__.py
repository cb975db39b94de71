"""One transform per task: from structured records to conversations, with SPHINX's task-specific instructions."""

from .answers import (
    CaptionTask,
    ChartToTableTask,
    ClassificationTask,
    DetailedCaptionTask,
    LanguageModellingTask,
    MultipleChoiceTask,
    ShortAnswerTask,
    TextOnlyTask,
    VQATask,
)
from .base import CoordinateTask, TaskTemplate
from .coordinates import (
    DetectionTask,
    GroundedCaptionTask,
    GroundingTask,
    LayoutTask,
    PoseTask,
    RegionCaptionTask,
    TextSpottingTask,
)

__all__ = [
    'CaptionTask',
    'ChartToTableTask',
    'ClassificationTask',
    'CoordinateTask',
    'DetailedCaptionTask',
    'DetectionTask',
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
