"""RefCOCO+, testA: as RefCOCO, by what things look like alone."""

_base_ = './refcoco.py'

test_dataloader = dict(dataset=dict(ref_file='refcoco+/refs(unc).p', ann_file='refcoco+/instances.json'))
