"""MergeMix in the three passes of its released code; used as `mergemix.py` is.

A pass over the clean images scores, a Mixup batch (alpha 0.8) gives the second loss, and the mixed images train on the
mean of the batch's ratios, as they do in the release (docs/fidelity.md). Backbone and trained passes merge tokens.
"""

_base_ = './mergemix.py'

mergemix = dict(_base_.mergemix_released, _delete_=True)
