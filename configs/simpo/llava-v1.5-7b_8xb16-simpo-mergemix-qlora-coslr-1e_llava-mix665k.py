"""Mixed SimPO with QLoRA: the language model in 4 bits (https://arxiv.org/abs/2305.14314), its adapters train."""

_base_ = './llava-v1.5-7b_8xb16-simpo-mergemix-lora-coslr-1e_llava-mix665k.py'

# As in the paper: NF4, and scales that are quantized as well. Computation is in the dtype of the model, bfloat16.
model = dict(
    vlm=dict(
        quantization_config=dict(
            quant_method='bitsandbytes',
            load_in_4bit=True,
            bnb_4bit_quant_type='nf4',
            bnb_4bit_use_double_quant=True,
        )
    )
)
