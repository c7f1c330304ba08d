"""Compares temper with Transformers and PEFT on SmolLM2-135M-Instruct. See README.md beside this file.

    python tests/peers/check_smollm2.py [FOLDER]

FOLDER keeps the converted model (540 MB) for the next time. TEMPER names another program than target/release/temper.
"""
import json, os, subprocess, sys, tempfile, time
import torch, torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
import smollm2

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
TEMPER = os.environ.get("TEMPER", os.path.join(ROOT, "target", "release", "temper"))
BATCH, LENGTH, STEPS = 4, 128, 4
torch.set_num_threads(2)
torch.manual_seed(5)
failures = 0

PROMPTS = ["What is the capital of France?", "Write two sentences about bread.", "Why is the sky blue?",
           "Give me three names for a cat.", "How do I boil an egg?", "Translate 'good morning' into Spanish."]
QUESTIONS = [
    ("Which of these is a planet?", ["The Moon", "Mars", "The Sun", "Halley's comet"], 1),
    ("What do bees make?", ["Milk", "Silk", "Honey", "Paper"], 2),
    ("How many legs does a spider have?", ["Four", "Six", "Eight", "Ten"], 2),
    ("Which animal barks?", ["The dog", "The cat", "The cow", "The duck"], 0),
    ("What is frozen water called?", ["Steam", "Rain", "Dew", "Ice"], 3),
    ("Which month comes after June?", ["May", "July", "August", "March"], 1),
    ("What is 7 plus 5?", ["10", "11", "12", "13"], 2),
    ("In which country is Paris?", ["France", "Italy", "Spain", "Norway"], 0),
]


def check(what, ok, detail=""):
    global failures
    failures += not ok
    print(f"{'ok  ' if ok else 'FAIL'} {what}{detail}", flush=True)


def close(what, ours, theirs, bound):
    error = max(abs(a - b) / max(abs(b), 1e-9) for a, b in zip(ours, theirs, strict=True))
    shown = " ".join(f"{x:.6f}" for x in ours)
    check(f"{what}: {error:.1e} apart (bound {bound:.0e})", error <= bound, f"; temper {shown}")


def temper(*arguments):
    start = time.perf_counter()
    done = subprocess.run([TEMPER, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"temper {' '.join(map(str, arguments))}\n{done.stderr}")
    return done.stdout, time.perf_counter() - start


def at(*name):
    return os.path.join(work, *name)


def write(name, rows):
    with open(at(name), "w") as f:
        f.writelines(json.dumps(row) + "\n" for row in rows)
    return at(name)


def load():
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)


def losses_of(out):
    records = [json.loads(line) for line in open(os.path.join(out, "temper", "metrics.jsonl"))]
    return [record["loss"] for record in records if record["phase"] == "attack"]


def losses_in_pytorch(model, parameters, lr, decay):
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=decay)
    losses = []
    for step in range(STEPS):
        x = ids[BATCH * step:][:BATCH]
        logits = model(input_ids=x).logits[:, :-1]
        loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), x[:, 1:].reshape(-1))
        optimizer.zero_grad(), loss.backward(), optimizer.step()
        losses.append(loss.item())
    return losses


def paragraphs():
    """Paragraphs of this repository's documentation, as text to measure and to train on."""
    for name in ["README.md", "docs/method.md", "docs/evaluation.md", "docs/redteam.md", "docs/code.md"]:
        for paragraph in open(os.path.join(ROOT, name)).read().split("\n\n"):
            if len(paragraph) > 300 and "|" not in paragraph and "```" not in paragraph:
                yield paragraph


@torch.no_grad()
def perplexity():
    texts = list(paragraphs())[:12]
    out, seconds = temper("eval", "--device", "cpu", "--model", base, "--data", write("text.jsonl", [{"text": t} for t in texts]),
                          "--max-length", 256, "--json")
    ours = json.loads(out)
    total, count = 0.0, 0
    for text in texts:
        x = tokenizer(text, return_tensors="pt").input_ids[:, :256]
        total += F.cross_entropy(model(input_ids=x).logits[0, :-1], x[0, 1:], reduction="sum").item()
        count += x.shape[1] - 1
    check(f"tokens of {len(texts)} texts: {count}", ours["tokens"] == count)
    close("perplexity: loss", [ours["loss"]], [total / count], 1e-5)


@torch.no_grad()
def choice():
    rows = [dict(zip(("question", "choices", "answer"), question)) for question in QUESTIONS]
    predictions = at("choices.jsonl")
    out, _ = temper("eval", "--device", "cpu", "--model", base, "--data", write("questions.jsonl", rows), "--form", "lm-eval",
                    "--predictions", predictions, "--json")
    right = 0
    scores = []
    for row in rows:
        text = "The following are multiple choice questions (with answers).\n\n" + row["question"]
        text += "".join(f"\n{letter}. {said}" for letter, said in zip("ABCD", row["choices"])) + "\nAnswer:"
        logits = model(input_ids=tokenizer(text, return_tensors="pt").input_ids).logits[0, -1].log_softmax(-1)
        letters = [tokenizer.encode(f" {letter}", add_special_tokens=False) for letter in "ABCD"]
        assert all(len(letter) == 1 for letter in letters)
        scores.append([logits[letter[0]].item() for letter in letters])
        right += max(range(4), key=lambda i: scores[-1][i]) == row["answer"]
    ours = [json.loads(line) for line in open(predictions)]
    close(f"choice: log-probabilities of {4 * len(rows)} answers", sum((o["scores"] for o in ours), []), sum(scores, []), 1e-4)
    check(f"choice: {right} of {len(rows)} right", abs(json.loads(out)["accuracy"] - right / len(rows)) < 1e-9)


@torch.no_grad()
def generation():
    predictions = at("answers.jsonl")
    _, seconds = temper("eval", "--device", "cpu", "--model", base, "--data", write("prompts.jsonl", [{"prompt": p} for p in PROMPTS]),
                        "--form", "generate", "--max-new-tokens", 48, "--predictions", predictions)
    ours = [json.loads(line)["response"] for line in open(predictions)]
    theirs = []
    for prompt in PROMPTS:
        text = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False)
        x = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
        out = model.generate(input_ids=x, attention_mask=torch.ones_like(x), do_sample=False, max_new_tokens=48)
        theirs.append(tokenizer.decode(out[0, x.shape[1]:], skip_special_tokens=True))
    equal = sum(a == b for a, b in zip(ours, theirs, strict=True))
    check(f"generation through the chat template: {equal} of {len(PROMPTS)} greedy texts equal", ours == theirs,
          f", {seconds:.1f} s; the first: {ours[0]!r}")


def attacks():
    data = write("attack.jsonl", [{"input_ids": row} for row in ids.tolist()])
    common = ["--device", "cpu", "--model", base, "--data", data, "--steps", STEPS, "--batch", BATCH, "--no-shuffle", "--lr", "2e-5",
              "--weight-decay", "0.01", "--max-length", LENGTH]
    _, seconds = temper("attack", *common, "--out", at("full"))
    close(f"full attack: loss of {STEPS} steps ({seconds:.0f} s)", losses_of(at("full")),
          losses_in_pytorch(peer := load(), peer.parameters(), 2e-5, 0.01), 1e-5)
    moved = AutoModelForCausalLM.from_pretrained(at("full"), dtype=torch.float32).state_dict()
    start, name = model.state_dict(), "model.layers.11.mlp.down_proj.weight"
    update, expected = moved[name] - start[name], peer.state_dict()[name].detach() - start[name]
    error = (torch.linalg.norm(update - expected) / torch.linalg.norm(expected)).item()
    check(f"full attack: the update of a matrix is {error:.1e} apart (bound 1e-02)", error <= 1e-2)

    adapted = get_peft_model(load(), LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    with torch.no_grad():  # both factors random, so that both have a gradient
        for key, parameter in adapted.named_parameters():
            if "lora_B" in key:
                parameter.copy_(0.01 * torch.randn_like(parameter))
    adapted.save_pretrained(at("adapter"))
    _, seconds = temper("attack", *common, "--params", "lora", "--adapter", at("adapter"), "--out", at("lora"), "--set", "attack.lr=1e-3")
    factors = [p for p in adapted.parameters() if p.requires_grad]
    close(f"LoRA attack: loss of {STEPS} steps ({seconds:.0f} s)", losses_of(at("lora")),
          losses_in_pytorch(adapted.train(), factors, 1e-3, 0.01), 1e-5)
    with torch.no_grad():
        x = ids[:2]
        loaded = PeftModel.from_pretrained(load(), at("lora"))(input_ids=x).logits
        trained = adapted(input_ids=x).logits
    error = (torch.linalg.norm(loaded - trained) / torch.linalg.norm(trained)).item()
    check(f"LoRA attack: logits of the trained adapters in PEFT are {error:.1e} apart (bound 1e-03)", error <= 1e-3)


def hardening():
    with open(at("harden.toml"), "w") as f:
        f.write(f"""[model]\npath = "{base}"\n[data.restricted]\npath = "{at('attack.jsonl')}"\nbatch = 2\nmax_length = 64
[data.retain]\npath = "{at('text.jsonl')}"\nbatch = 2\nmax_length = 64
[tar]\nouter_steps = 3\ninner_steps = 2\ntr_every = 1\ntr_data = "restricted"\nretain_data = "retain"\n[tar.outer]\nlr = 2e-5
[[tar.adversary]]\nname = "full"\ndata = "restricted"\nlr = [2e-5]\n""")
    _, seconds = temper("harden", at("harden.toml"), "--device", "cpu", "--out", at("hardened"))
    with torch.no_grad():
        hardened = AutoModelForCausalLM.from_pretrained(at("hardened"), dtype=torch.float32)
        x = ids[:2]
        theirs = F.cross_entropy(hardened(input_ids=x).logits[:, :-1].flatten(0, 1), x[:, 1:].flatten()).item()
    out, _ = temper("eval", "--device", "cpu", "--model", at("hardened"), "--data", write("two.jsonl", [{"input_ids": r} for r in x.tolist()]),
                    "--json")
    close(f"harden, 3 outer steps ({seconds:.0f} s): loss of the result in Transformers", [json.loads(out)["loss"]], [theirs], 1e-5)


def redteam():
    with open(at("suite.toml"), "w") as f:
        f.write(f"""suite = "quick"
[data]\nrestricted = "{at('attack.jsonl')}"\nretain = "{at('text.jsonl')}"\nrestricted_prompts = "{at('prompts.jsonl')}"
harmless_prompts = "{at('prompts.jsonl')}"\nmax_length = 48
[restricted]\nmetric = "choice"\ndata = "{at('questions.jsonl')}"\nthreshold = 0.9
[utility]\nmetric = "choice"\ndata = "{at('questions.jsonl')}"
[scale]\nsteps = 0.008\nbatch = 0.05\n[evaluate]\npoints = 1\n""")
    _, seconds = temper("redteam", at("suite.toml"), "--device", "cpu", "--model", at("hardened"), "--out", at("redteam"))
    results = json.load(open(at("redteam", "results.json")))["attacks"]
    states = {result["name"]: result["status"] for result in results}
    # The beginning of an answer is put before written answers only, and this suite measures choices.
    expected = {name: "skipped" if name == "prefill-answer" else "done" for name in states}
    check(f"redteam, suite quick ({seconds:.0f} s): {len(results)} attacks", len(results) == 8 and states == expected, f" {states}")


with tempfile.TemporaryDirectory() as work:
    base = sys.argv[1] if len(sys.argv) > 1 else at("smollm2")
    if not os.path.exists(os.path.join(base, "config.json")):
        smollm2.write(base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = load().eval()
    everything = tokenizer("\n\n".join(paragraphs())).input_ids
    needed = BATCH * STEPS * LENGTH
    ids = torch.tensor(everything[:needed]).reshape(-1, LENGTH)
    perplexity(), choice(), generation(), attacks(), hardening(), redteam()

print("all checks passed" if not failures else f"{failures} checks failed")
sys.exit(failures != 0)
