"""Compares the texts that temper generates with those of Transformers and PEFT. See README.md beside this file."""
import json, os, subprocess, sys, tempfile
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM
import tiny_chat

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
TEMPER = os.path.join(ROOT, "target", "release", "temper")
NEW = 48
torch.set_num_threads(2)
failures = 0

QUESTIONS = ["How is bread made?", "Where does the sun rise?", "hello", "Tell me about the sea, the river and the town.",
             "Ünïcödé, please: 日本 😀", "What is the capital of the north?", "Why?", "List the four winds."]


def check(what, ok, detail=""):
    global failures
    failures += not ok
    print(f"{'ok  ' if ok else 'FAIL'} {what}{detail}", flush=True)


def ours(data, *arguments):
    out = os.path.join(work, "answers.jsonl")
    done = subprocess.run([TEMPER, "eval", "--device", "cpu", "--model", base, "--data", data, "--form", "generate",
                           "--max-new-tokens", str(NEW), "--predictions", out, *arguments], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return [json.loads(line)["response"] for line in open(out)]


@torch.no_grad()
def theirs(model, prompts):
    def one(ids):
        out = model.generate(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                             do_sample=False, max_new_tokens=NEW)
        return out[0, len(ids):].tolist()
    return [one(ids) for ids in prompts]


def compare(what, data, model, prompts, *arguments):
    generated = theirs(model, prompts)
    expected = [tokenizer.decode(ids, skip_special_tokens=True) for ids in generated]
    ended = sum(ids[-1] in stop for ids in generated)
    for batch in ("1", "5"):
        found = ours(data, "--batch", batch, *arguments)
        equal = sum(a == b for a, b in zip(found, expected))
        check(f"{what}, {batch} at a time: {equal} of {len(expected)} texts equal", found == expected,
              f" ({sum(map(len, generated))} tokens, {ended} ended by a stop token)")
    return expected


with tempfile.TemporaryDirectory() as work:
    base = os.path.join(work, "base")
    model, tokenizer = tiny_chat.write(base, QUESTIONS * 3, seed=9)
    stop = model.generation_config.eos_token_id
    with torch.no_grad():  # stop tokens that are drawn now and then
        for token in stop:
            model.lm_head.weight[token] *= 1.25
    model.save_pretrained(base)
    chat = os.path.join(work, "chat.jsonl")
    with open(chat, "w") as f:
        f.writelines(json.dumps({"prompt": q}) + "\n" for q in QUESTIONS)
    raw = os.path.join(work, "raw.jsonl")
    with open(raw, "w") as f:
        f.writelines(json.dumps({"text": q}) + "\n" for q in QUESTIONS)

    def rendered(prefill):
        texts = [tokenizer.apply_chat_template([{"role": "user", "content": q}], add_generation_prompt=True,
                                               tokenize=False) + prefill for q in QUESTIONS]
        return [tokenizer.encode(text, add_special_tokens=False) for text in texts]

    reloaded = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    plain = compare("chat", chat, reloaded, rendered(""))
    compare("chat with a prefilled answer", chat, reloaded, rendered("Sure, here"), "--prefill", "Sure, here")
    compare("raw text", raw, reloaded, [tokenizer.encode(q) for q in QUESTIONS])

    adapter = os.path.join(work, "adapter")
    peft = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
                          LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]))
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn_like(parameter))
    peft.save_pretrained(adapter)
    adapted = PeftModel.from_pretrained(reloaded, adapter).eval()
    changed = compare("chat with a LoRA adapter", chat, adapted, rendered(""), "--adapter", adapter)
    check("the adapter changes the texts", changed != plain)

print("all checks passed" if not failures else f"{failures} checks failed")
sys.exit(failures != 0)
