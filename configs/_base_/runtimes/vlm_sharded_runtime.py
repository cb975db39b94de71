"""Runtime of vision-language models in iterations, for runs in which no process holds the whole model (FSDP, ZeRO-3).

Such a model cannot be saved from one process: tools/model_converters/save_pretrained.py turns a checkpoint into the
folder that `from_pretrained` reads. Runs whose processes hold the whole model take vlm_runtime.py.
"""

_base_ = './default_runtime.py'

default_hooks = dict(
    logger=dict(interval=10),
    # Most of these configs do not validate, so there is no best checkpoint.
    checkpoint=dict(by_epoch=False, interval=500, save_best=None),
)
log_processor = dict(by_epoch=False)
# A batch of text only leaves the projector without a gradient.
find_unused_parameters = True
randomness = dict(seed=0)
