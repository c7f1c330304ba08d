"""A tiny random Llama with a chat model's tokenizer: byte-level BPE, a start token, two stop tokens, a chat template."""
import os
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ["<|begin|>", "<|header|>", "<|end_header|>", "<|end_of_turn|>", "<|end_of_text|>"]
TEMPLATE = ("{{ bos_token }}{% for message in messages %}<|header|>{{ message['role'] }}<|end_header|>\n\n"
            "{{ message['content'] | trim }}<|end_of_turn|>{% endfor %}"
            "{% if add_generation_prompt %}<|header|>assistant<|end_header|>\n\n{% endif %}")


def tokenizer(texts, size):
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=SPECIAL, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(texts, trainer)
    begin = bpe.token_to_id(SPECIAL[0])
    bpe.post_processor = processors.TemplateProcessing(single=f"{SPECIAL[0]} $A", special_tokens=[(SPECIAL[0], begin)])
    fast = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=SPECIAL[0], eos_token=SPECIAL[3])
    fast.chat_template = TEMPLATE
    return fast


def write(path, texts, seed):
    """Writes a model directory; returns the model and its tokenizer."""
    torch.manual_seed(seed)
    fast = tokenizer(texts, 400)
    size = len(fast)
    stop = fast.convert_tokens_to_ids(SPECIAL[3:])
    config = LlamaConfig(vocab_size=size, hidden_size=96, intermediate_size=160, num_hidden_layers=3,
                         num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=1024,
                         tie_word_embeddings=False, bos_token_id=fast.bos_token_id, eos_token_id=stop[0],
                         rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    model = LlamaForCausalLM(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.05 if "norm" in name else 0.15
            parameter.add_(scale * torch.randn_like(parameter))
    model.generation_config = GenerationConfig(bos_token_id=fast.bos_token_id, eos_token_id=stop,
                                               pad_token_id=fast.bos_token_id)
    model.save_pretrained(path)
    fast.save_pretrained(path)
    assert os.path.exists(os.path.join(path, "generation_config.json"))
    return model, fast
