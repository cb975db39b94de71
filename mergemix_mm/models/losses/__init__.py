"""Losses."""

from .aia_loss import AIALoss
from .simpo_loss import SimPOLoss

__all__ = ['AIALoss', 'SimPOLoss']
