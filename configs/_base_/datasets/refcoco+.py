"""RefCOCO+, testA: as RefCOCO, with expressions that name no places."""

_base_ = './refcoco.py'

test_dataloader = dict(dataset=dict(ref_file='refcoco+/refs(unc).p', ann_file='refcoco+/instances.json'))
