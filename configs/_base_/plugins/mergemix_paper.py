"""MergeMix with the objective of its paper; used as `mergemix.py` is.

The clean images train as well as the mixed ones, and their pass, in which the backbone merges tokens, scores. With
gradients clipped, clip at twice the norm: the two losses are summed.
"""

_base_ = './mergemix.py'

mergemix = dict(_base_.mergemix_paper, _delete_=True)
