"""Strategies of MMEngine's FlexibleRunner; importing them registers them."""

from .fsdp2_strategy import FSDP2Strategy

__all__ = ['FSDP2Strategy']
