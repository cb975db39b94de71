import torch
from mmengine.registry import MODELS


def test_nested_tensors_move_and_data_samples_stay():
    preprocessor = MODELS.build(dict(type='VLMDataPreprocessor')).to('meta')
    samples = [object()]
    inputs = dict(input_ids=torch.ones(1, 2), rejected=dict(labels=torch.ones(1, 2)), sizes=[torch.ones(1)], name='x')
    result = preprocessor(dict(inputs=inputs, data_samples=samples))
    assert result['data_samples'] is samples
    assert result['inputs']['name'] == 'x'
    moved = [result['inputs']['input_ids'], result['inputs']['rejected']['labels'], result['inputs']['sizes'][0]]
    assert {tensor.device.type for tensor in moved} == {'meta'}
    assert inputs['input_ids'].device.type == 'cpu'
