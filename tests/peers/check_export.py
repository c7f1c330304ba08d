"""Loads what temper writes in Transformers and PEFT and compares logits and weights. See README.md beside this file."""
import json, os, subprocess, sys, tempfile
import numpy as np, torch, torch.nn.functional as F
from peft import PeftModel
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast, Qwen2Config,
                          Qwen3Config)

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
TEMPER, LOGITS = (os.path.join(ROOT, "target", "release", p) for p in ("temper", os.path.join("examples", "logits")))
torch.set_num_threads(2)
torch.manual_seed(3)
failures = 0


def check(what, error, bound):
    global failures
    failures += not error <= bound
    print(f"{'ok  ' if error <= bound else 'FAIL'} {what}: {error:.2e} (bound {bound:.0e})", flush=True)


def temper(*arguments):
    done = subprocess.run([TEMPER, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"temper {' '.join(map(str, arguments))}\n{done.stderr}")
    return done.stdout


def relative(a, b):
    return (torch.linalg.norm(a.double() - b.double()) / torch.linalg.norm(b.double())).item()


def our_logits(model, adapter=None):
    out = os.path.join(work, "logits.f32")
    subprocess.run([LOGITS, model, *(["--adapter", adapter] if adapter else []), data, out], check=True)
    return torch.from_numpy(np.fromfile(out, dtype="<f4").reshape(-1, 300))


@torch.no_grad()
def their_logits(model):
    return model(input_ids=ids).logits.reshape(-1, 300)


def load(path):
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def attack_in_pytorch(model, parameters, steps=6):
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    for step in range(steps):
        x = ids[4 * step % 24:][:4]
        logits = model(input_ids=x).logits[:, :-1]
        loss = F.cross_entropy(logits.reshape(-1, 300), x[:, 1:].reshape(-1))
        optimizer.zero_grad(), loss.backward(), optimizer.step()


SIZES = dict(vocab_size=300, hidden_size=96, intermediate_size=160, num_hidden_layers=3, num_attention_heads=6,
             num_key_value_heads=2, max_position_embeddings=128, bos_token_id=1, eos_token_id=2)
YARN = {"rope_type": "yarn", "rope_theta": 500000.0, "factor": 4.0, "original_max_position_embeddings": 32}
FAMILIES = [LlamaConfig(**SIZES, rope_parameters={"rope_type": "default", "rope_theta": 500000.0}, tie_word_embeddings=False),
            Qwen2Config(**SIZES, tie_word_embeddings=True),
            Qwen3Config(**SIZES, head_dim=24, rope_parameters=YARN, tie_word_embeddings=False)]
for config in FAMILIES:
    print(config.model_type)
    with tempfile.TemporaryDirectory() as work:
        base, data = os.path.join(work, "base"), os.path.join(work, "data.jsonl")
        model = AutoModelForCausalLM.from_config(config).float()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.05 * torch.randn_like(p))
        words = {f"w{i}": i for i in range(300)}
        tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="w1", eos_token="w2").save_pretrained(base)
        model.save_pretrained(base)
        ids = torch.randint(3, 300, (24, 20))
        with open(data, "w") as f:
            f.writelines(json.dumps({"input_ids": row}) + "\n" for row in ids.tolist())
        check("logits of a Transformers directory", relative(our_logits(base), their_logits(model)), 1e-5)

        sharded = os.path.join(work, "sharded")
        model.save_pretrained(sharded, max_shard_size="100KB")
        assert os.path.exists(os.path.join(sharded, "model.safetensors.index.json"))
        check("logits of a sharded directory", relative(our_logits(sharded), their_logits(model)), 1e-5)

        common = ["--data", data, "--lr", "1e-3", "--steps", 6, "--batch", 4, "--no-shuffle"]
        full = os.path.join(work, "full")
        temper("attack", "--model", base, "--out", full, *common, "--dtype", "f32")
        attacked = load(full)
        check("logits of a full attack's directory", relative(our_logits(full), their_logits(attacked)), 1e-5)
        start = {n: p.detach().clone() for n, p in model.named_parameters()}
        peer = load(base)
        attack_in_pytorch(peer, peer.parameters())
        moved = dict(attacked.named_parameters())
        pairs = [(p.detach() - start[n], moved[n].detach() - start[n]) for n, p in peer.named_parameters()]
        theirs, ours = (torch.cat([pair[i].flatten() for pair in pairs]) for i in (0, 1))
        check("weights of the same attack in PyTorch, of the update", relative(ours, theirs), 1e-4)
        AutoTokenizer.from_pretrained(full)
        print("ok   the tokenizer is carried over and loads")

        half = os.path.join(work, "half")
        temper("attack", "--model", base, "--out", half, *common, "--dtype", "bf16")
        assert json.load(open(os.path.join(half, "config.json")))["dtype"] == "bfloat16"
        check("logits of a bf16 directory", relative(our_logits(half), their_logits(load(half))), 1e-5)

        lora = os.path.join(work, "lora")
        temper("attack", "--model", base, "--out", lora, *common, "--params", "lora", "--rank", 4, "--alpha", 8)
        adapted = PeftModel.from_pretrained(load(base), lora)
        check("logits of a LoRA attack in PEFT", relative(our_logits(base, lora), their_logits(adapted)), 1e-5)
        check("the adapter changes the logits (its difference, inverted)",
              1e-6 / relative(their_logits(adapted), their_logits(load(base))), 1e-3)
        merged = os.path.join(work, "merged")
        temper("merge", "--model", base, "--adapter", lora, "--out", merged)
        check("logits of the merged model", relative(their_logits(load(merged)), their_logits(adapted)), 1e-5)

        run = os.path.join(work, "run.toml")
        with open(run, "w") as f:
            f.write(f"""[model]\npath = "{base}"\n[data.d]\npath = "{data}"\nbatch = 4
    [tar]\nouter_steps = 2\ninner_steps = 4\ntr_data = "d"\nretain_data = "d"\n[tar.outer]\nlr = 1e-3
    [[tar.adversary]]\nname = "a"\ndata = "d"\nlr = [1e-3]\n[[tar.adversary]]\nname = "l"\ndata = "d"\nlr = 1e-3\nparams = "lora"\n""")
        hardened = os.path.join(work, "hardened")
        temper("harden", run, "--out", hardened)
        check("logits of a hardened directory", relative(our_logits(hardened), their_logits(load(hardened))), 1e-5)
        reported = json.loads(temper("eval", "--model", hardened, "--data", data, "--json"))
        with torch.no_grad():
            logits = load(hardened)(input_ids=ids).logits[:, :-1]
            loss = F.cross_entropy(logits.reshape(-1, 300), ids[:, 1:].reshape(-1)).item()
        check("the loss that temper eval reports", abs(reported["loss"] / loss - 1), 1e-5)
        assert reported["tokens"] == 24 * 19

print("all checks passed" if not failures else f"{failures} checks failed")
sys.exit(failures != 0)
