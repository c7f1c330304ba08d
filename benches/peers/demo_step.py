"""The demonstration's inner step and tamper-resistance gradient in PyTorch and Transformers on the CPU.

The same shapes as benches/demo_step.rs: 16 rows of 17 tokens, the loss on the four values of each row, AdamW. PyTorch gets
its best: logits are computed only where they are needed, the fused AdamW, and the faster of the attention implementations.

    python benches/peers/demo_step.py [--threads 2]
"""
import argparse, copy, json, statistics, time
import torch, torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

ap = argparse.ArgumentParser()
ap.add_argument("--threads", type=int, default=2)
threads = ap.parse_args().threads
torch.set_num_threads(threads)
torch.manual_seed(0)
WARM_UP, STEPS = 50, 400
batches = [torch.randint(3, 256, (16, 17)) for _ in range(16)]
at = torch.arange(3, 16, 4)  # positions whose next token is a value


def model(attention):
    config = LlamaConfig(vocab_size=256, hidden_size=128, intermediate_size=384, num_hidden_layers=3, num_attention_heads=2,
                         num_key_value_heads=1, head_dim=64, max_position_embeddings=64, tie_word_embeddings=False)
    config._attn_implementation = attention
    return LlamaForCausalLM(config).float()


def median_ms(step):
    for i in range(WARM_UP):
        step(i)
    times = []
    for i in range(STEPS):
        start = time.perf_counter()
        step(i)
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def measure(attention, fused, few_logits):
    m = model(attention)
    optimizer = torch.optim.AdamW(m.parameters(), lr=1e-3, fused=fused)

    def logits(x):
        if not few_logits:
            return m(input_ids=x, use_cache=False).logits[:, at]
        return m.lm_head(m.model(input_ids=x, use_cache=False).last_hidden_state[:, at])

    def attack(i):
        x = batches[i % 16]
        loss = F.cross_entropy(logits(x).reshape(-1, 256), x[:, at + 1].reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def resistance(i):  # gradients accumulate, as in the meta-gradient
        logp = F.log_softmax(logits(batches[i % 16]), -1)
        (0.5 * (logp.exp() * logp).sum(-1).mean()).backward()

    a = median_ms(attack)
    for p in m.parameters():
        p.grad = torch.zeros_like(p)
    return a, median_ms(resistance)


results = {(attention, fused, few): measure(attention, fused, few)
           for attention in ("eager", "sdpa") for fused in (False, True) for few in (False, True)}
best = min(results, key=lambda k: results[k][0])
print(json.dumps({"engine": f"PyTorch {torch.__version__}", "threads": threads,
                  "attack_step_ms": round(results[best][0], 4),
                  "tr_gradient_ms": round(min(r[1] for r in results.values()), 4),
                  "best": {"attention": best[0], "fused_adamw": best[1], "few_logits": best[2]},
                  "all": {" ".join(map(str, k)): [round(v, 4) for v in r] for k, r in results.items()}}))
