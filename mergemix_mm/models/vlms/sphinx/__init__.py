"""The parts of SPHINX (https://arxiv.org/abs/2311.07575): views, their encoders, markers and a language model."""

from .causal_head import causal_head
from .family import SphinxFamily
from .network import SphinxNetwork, ViewEncoder

__all__ = ['SphinxFamily', 'SphinxNetwork', 'ViewEncoder', 'causal_head']
