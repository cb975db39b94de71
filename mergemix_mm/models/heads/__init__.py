"""Heads of the VLM tuners: what is learnt from the log-probabilities of answers."""

from .base import AnswerHead, AnswerScores
from .sft_head import SFTHead
from .simpo_head import SimPOHead

__all__ = ['AnswerHead', 'AnswerScores', 'SFTHead', 'SimPOHead']
