"""Steps and generation at the size of SmolLM2-135M in PyTorch, Transformers and PEFT on the CPU.

The same shapes as benches/model_step.rs: AdamW on 4 x 256 tokens with all weights and with LoRA of rank 16 at all projections,
the tamper-resistance gradient, and 64 tokens for each of 8 prompts. PyTorch gets its best: f32 at its default precision, the
fused AdamW, the faster of the attention implementations for each row.

    python benches/peers/model_step.py [--threads 2]
"""
import argparse, json, statistics, time
import peft, torch, torch.nn.functional as F, transformers
from transformers import LlamaConfig, LlamaForCausalLM

ap = argparse.ArgumentParser()
ap.add_argument("--threads", type=int, default=2)
threads = ap.parse_args().threads
torch.set_num_threads(threads)
torch.manual_seed(0)
VOCAB = 49152
batches = [torch.randint(0, VOCAB, (4, 256)) for _ in range(4)]
prompts = torch.randint(0, VOCAB, (8, 32))


def model(attention):
    config = LlamaConfig(vocab_size=VOCAB, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
                         num_key_value_heads=3, head_dim=64, max_position_embeddings=8192, rope_theta=100000.0,
                         tie_word_embeddings=True)
    config._attn_implementation = attention
    return LlamaForCausalLM(config).float()


def median_ms(count, step):
    step(0)
    times = []
    for i in range(count):
        start = time.perf_counter()
        step(i)
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def attack_step(m):
    optimizer = torch.optim.AdamW([p for p in m.parameters() if p.requires_grad], lr=1e-5, fused=True)

    def step(i):
        x = batches[i % 4]
        logits = m(input_ids=x, use_cache=False).logits
        loss = F.cross_entropy(logits[:, :-1].reshape(-1, VOCAB), x[:, 1:].reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return median_ms(5, step)


def resistance_gradient(m):
    for p in m.parameters():
        p.grad = torch.zeros_like(p)

    def step(i):  # gradients accumulate, as in the meta-gradient
        logp = F.log_softmax(m(input_ids=batches[i % 4], use_cache=False).logits[:, :-1], -1)
        (0.5 * (logp.exp() * logp).sum(-1).mean()).backward()

    return median_ms(5, step)


def lora(m):
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    return peft.get_peft_model(m, peft.LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=names))


def generation(m):
    options = dict(max_new_tokens=64, min_new_tokens=64, do_sample=False, pad_token_id=0, eos_token_id=None)
    with torch.no_grad():
        return median_ms(3, lambda _: m.generate(prompts, attention_mask=torch.ones_like(prompts), **options))


rows = {"full_step_ms": attack_step, "lora_step_ms": lambda m: attack_step(lora(m)),
        "tr_gradient_ms": resistance_gradient, "generation_ms": generation}
results = {attention: {name: row(model(attention)) for name, row in rows.items()} for attention in ("eager", "sdpa")}
best = {name: round(min(r[name] for r in results.values()), 1) for name in rows}
print(json.dumps({"engine": f"PyTorch {torch.__version__}, Transformers {transformers.__version__}, PEFT {peft.__version__}",
                  "threads": threads} | best | {"all": results}))
