"""The box of the drawn thing that an expression refers to: IoU >= 0.5, on new images."""

_base_ = './shapes-vqa.py'

test_dataloader = dict(dataset=dict(task='grounding', pipeline=[dict(type='GroundingTask', decimals=2)]))
test_evaluator = dict(type='ReferringBoxMetric')
