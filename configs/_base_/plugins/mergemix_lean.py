"""MergeMix in this project's lean scheme, whatever the default is; used as `mergemix.py` is.

A truncated pass without gradient scores the images, and only the mixed images train.
"""

_base_ = './mergemix.py'

mergemix = dict(_base_.mergemix_lean, _delete_=True)
