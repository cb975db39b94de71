"""AIA with generation and understanding at 2:1, in as many steps."""

_base_ = './janus-pro-7b_8xb16-aia-coslr-1e-fsdp_llava-mix665k-t2i.py'

train_dataloader = dict(dataset=dict(ratio=dict(gen=2, und=1)))
