"""A sentence that names all drawn things in order: exact match, on new images."""

_base_ = './shapes-vqa.py'

test_dataloader = dict(dataset=dict(task='caption', pipeline=[dict(type='CaptionTask')]))
