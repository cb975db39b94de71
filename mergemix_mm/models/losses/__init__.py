"""Losses."""

from .simpo_loss import SimPOLoss

__all__ = ['SimPOLoss']
