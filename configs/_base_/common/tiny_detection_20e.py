"""The same for detectors with queries, which need more steps: 20 epochs of batches of 8."""

_base_ = './tiny_detection.py'

# Their heads need no compiled ops, but MMDetection imports all of its ops.
custom_imports = dict(imports=['mergemix_mm', 'mergemix_mm.missing_ops'], allow_failed_imports=False)

train_dataloader = dict(batch_size=8)
train_cfg = dict(max_epochs=20, val_interval=10)
optim_wrapper = dict(optimizer=dict(weight_decay=1e-4))
