"""RefCOCOg, the test split of UMD: as RefCOCO, with longer expressions."""

_base_ = './refcoco.py'

test_dataloader = dict(dataset=dict(ref_file='refcocog/refs(umd).p', ann_file='refcocog/instances.json', split='test'))
