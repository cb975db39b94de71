"""Janus-Pro-7B in the format of transformers; vision tower and VQ model are frozen, the rest trains on both tasks."""

_base_ = './janus-pro-1b.py'

pretrained = 'deepseek-community/Janus-Pro-7B'
processor = dict(pretrained_model_name_or_path=pretrained)
encode = dict(processor=processor)
encode_gen = dict(processor=processor)
model = dict(vlm=dict(pretrained=pretrained), processor=processor)
