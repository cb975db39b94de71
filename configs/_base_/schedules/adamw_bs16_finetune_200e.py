"""AdamW at 1e-5 for a batch of 16, to fine-tune on small sets: 20 epochs of warm-up, cosine to 1e-6 at epoch 200."""

_base_ = './adamw_bs100_coslr_200e.py'

optim_wrapper = dict(optimizer=dict(lr=1e-5))

auto_scale_lr = dict(base_batch_size=16)
