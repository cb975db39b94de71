import pytest
import tiny_vlms
import torch

IMAGES = [tiny_vlms.random_image(40, 56, seed) for seed in range(2)]
SAMPLES = dict(
    images=[([IMAGES[0]], 'what is it?', ''), ([IMAGES[1]], 'a b c', '')],
    some=[([], 'what is it, then?', ''), ([IMAGES[1]], 'a b c', '')],
    text=[([], 'what is it?', ''), ([], 'a b c', '')],
)


def prompts(family, samples, side='right'):
    batch = tiny_vlms.tiny_batch(family, samples, side)
    del batch['labels']
    return batch


@pytest.mark.parametrize('samples', SAMPLES)
@pytest.mark.parametrize('family', tiny_vlms.ALL_FAMILIES)
def test_generation_equals_the_librarys_and_one_by_one(make, family, samples):
    vlm, samples = make(family).eval(), SAMPLES[samples]
    found = [vlm.generate(prompts(family, samples, side), max_new_tokens=6) for side in ('right', 'left')]
    assert torch.equal(found[0].sequences, found[1].sequences)
    assert torch.allclose(found[0].logps, found[1].logps, atol=1e-4)
    found = found[0]
    left = prompts(family, samples, 'left')
    assert (left['attention_mask'] == 0).any()
    given = tiny_vlms.library_inputs(vlm, left)
    expected = vlm.model.generate(**given, max_new_tokens=6, do_sample=False)[:, left['input_ids'].size(1) :]
    assert torch.equal(found.sequences, expected)
    for row, sample in enumerate(samples):
        one = vlm.generate(prompts(family, [sample]), max_new_tokens=6)
        assert torch.equal(one.sequences[0], found.sequences[row, : one.sequences.size(1)])
        assert torch.allclose(one.logps[0], found.logps[row], atol=1e-4)


def test_generated_log_probabilities_are_those_of_a_forward_up_to_the_end_token(make, batch_of):
    vlm = make().eval()
    batch = batch_of(labels=False)
    free = vlm.generate(batch, max_new_tokens=6, eos_token_id=None)
    # The second sample ends with its third token, the first one never does.
    end = int(free.sequences[1, 2])
    assert end not in [*free.sequences[0].tolist(), *free.sequences[1, :2].tolist()]
    found = vlm.generate(batch, max_new_tokens=6, eos_token_id=end)
    assert torch.equal(found.sequences[1, :3], free.sequences[1, :3])
    for row, length in enumerate([6, 3]):
        prompt = batch['input_ids'][row][batch['attention_mask'][row] == 1]
        answer = found.sequences[row, :length]
        ids = torch.cat([prompt, answer])[None]
        hidden = vlm.hidden(dict(input_ids=ids, pixel_values=batch['pixel_values'][row : row + 1]))
        logps = vlm.head(hidden)[0, -length - 1 : -1].log_softmax(dim=-1)
        assert torch.allclose(logps.gather(1, answer[:, None]).sum(), found.logps[row], atol=1e-4)


def test_several_answers_per_sample_are_refused(make, batch_of):
    with pytest.raises(ValueError, match='num_beams'):
        make().generate(batch_of(), num_beams=2)
