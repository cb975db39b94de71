"""Measuring trained classifiers: what the tools for occlusion, attacks and merged inference share."""

from .classifier import TrainedClassifier, add_arguments, add_run_arguments, load_classifier, load_classifiers
from .flops import Flops, count_flops
from .results import write_results

__all__ = [
    'Flops',
    'TrainedClassifier',
    'add_arguments',
    'add_run_arguments',
    'count_flops',
    'load_classifier',
    'load_classifiers',
    'write_results',
]
