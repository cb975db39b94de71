"""ScienceQA with LLaVA-v1.5-7B: for tools/test.py with a checkpoint, or with `none` for the weights of the hub."""

_base_ = ['../_base_/models/llava-v1.5-7b.py', '../_base_/datasets/scienceqa.py', '../_base_/runtimes/vlm_runtime.py']

test_dataloader = dict(dataset=dict(pipeline=[dict(_base_.encode, max_length=None, generate=True)]))
