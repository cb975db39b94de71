"""Loader of the benchmarks of vision-language models: in order, 16 at a time; each benchmark adds its dataset."""

test_dataloader = dict(
    batch_size=16,
    num_workers=8,
    # Answers are generated, so the prompts of a batch end at the same place.
    collate_fn=dict(type='ConversationCollate', padding_side='left'),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
test_cfg = dict()
