"""All drawn things of a shape: mAP of the boxes in the answers, on new images."""

_base_ = './shapes-vqa.py'

test_dataloader = dict(dataset=dict(task='detection', pipeline=[dict(type='DetectionTask', decimals=2)]))
test_evaluator = dict(type='TextDetectionMetric')
