"""One transform per task: from structured records to conversations, with SPHINX's task-specific instructions."""

from .base import CoordinateTask, TaskTemplate
from .caption import CaptionTask, DetailedCaptionTask
from .chart_to_table import ChartToTableTask
from .classification import ClassificationTask
from .detection import DetectionTask
from .grounded_caption import GroundedCaptionTask
from .grounding import GroundingTask
from .language_modelling import LanguageModellingTask
from .layout import LayoutTask
from .multiple_choice import MultipleChoiceTask
from .pose import PoseTask
from .region_caption import RegionCaptionTask
from .short_answer import ShortAnswerTask
from .text_only import TextOnlyTask
from .text_spotting import TextSpottingTask
from .vqa import VQATask

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
