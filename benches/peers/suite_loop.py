"""The attacks of a `temper redteam` run again, as a loop in PyTorch, Transformers and PEFT on the CPU.

    python benches/peers/suite_loop.py RUN [--model DIR] [--base FOLDER] [--threads 2] [--workers 1]

RUN is the output directory of `temper redteam`: its results.json says what every attack did (settings, scales worked in) and at
which steps it was measured; data paths count from --base. Fine-tuning attacks (full, LoRA) that ran to their end are run again
with the same optimizer, schedule, batch, steps, data roles and seeds, and measured at the same points with the same metrics.
Batches are drawn in another order. PyTorch gets its best: data is read and the model loaded once, logits are computed only
where they are needed, the fused AdamW, right padding without a mask, the faster of two implementations of attention (tried
beforehand, not timed); with --workers several attacks run side by side.

Prints JSON: attacks, seconds (from loaded libraries to the last score), attacks_per_hour, and each attack's seconds and scores.
"""
import argparse, copy, json, math, multiprocessing, os, time, tomllib

import torch, torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
IGNORE = -100


def read_rows(path, max_length):
    """(input_ids, labels) of each row, as two tensors padded on the right; what is padded is not learned."""
    with open(path) as file:
        rows = [json.loads(line) for line in file if line.strip()]
    ids = [row["input_ids"][:max_length] for row in rows]
    labels = [row.get("labels", row["input_ids"])[:max_length] for row in rows]
    longest = max(map(len, ids))
    pad = lambda lists, value: torch.tensor([one + [value] * (longest - len(one)) for one in lists])
    return pad(ids, 0), pad(labels, IGNORE)


class Data:
    """Batches of a file: each pass in its own random order."""

    def __init__(self, rows, batch, generator):
        (self.ids, self.labels), self.batch, self.generator, self.order = rows, batch, generator, []

    def next(self):
        while len(self.order) < self.batch:
            self.order += torch.randperm(len(self.ids), generator=self.generator).tolist()
        now, self.order = self.order[:self.batch], self.order[self.batch:]
        return self.ids[now], self.labels[now]


def logits_of_learned(model, ids, labels):
    """Logits of the positions whose next token is learned, and these tokens."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    learned = labels[:, 1:] != IGNORE
    hidden = base.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    return base.lm_head(hidden[learned]), labels[:, 1:][learned]


@torch.inference_mode()
def exact(model, rows, size=256):
    """The share of rows whose learned tokens are all the most likely ones."""
    right = 0
    for first in range(0, len(rows[0]), size):
        ids, labels = (part[first:first + size] for part in rows)
        logits, answers = logits_of_learned(model, ids, labels)
        row = (labels[:, 1:] != IGNORE).nonzero()[:, 0]
        wrong = torch.zeros(len(ids), dtype=torch.long).index_add_(0, row, (logits.argmax(-1) != answers).long())
        right += (wrong == 0).sum().item()
    return right / len(rows[0])


def factor(settings, step):
    """The learning rate of a step as a factor on its peak: src/optimizer/schedule.rs."""
    warmup, total = settings.get("warmup") or 0, settings["steps"]
    if step < warmup:
        return settings["lr"] * step / warmup if settings.get("official_warmup") else (step + 1) / warmup
    name, *numbers = str(settings.get("schedule", "constant")).split(":")
    position, length, floor = step - warmup, total - warmup, 0.0
    if name == "constant":
        return 1.0
    if name == "sgdr":
        length, position = int(numbers[0]), position % int(numbers[0])
        numbers = numbers[1:]
    if numbers:
        floor = float(numbers[0])
    done = min(position / length, 1.0)
    return floor + (1 - floor) * (1 - done if name == "linear" else 0.5 * (1 + math.cos(math.pi * done)))


def optimizer_of(settings, parameters):
    name, lr = settings.get("optimizer", "adamw"), settings["lr"]
    decay = {} if settings.get("weight_decay") is None else {"weight_decay": settings["weight_decay"]}
    adam = decay | {"betas": tuple(settings.get("betas") or (0.9, 0.999)), "lr": lr}
    kinds = {
        "adamw": lambda: torch.optim.AdamW(parameters, fused=True, **adam),
        "adam": lambda: torch.optim.Adam(parameters, fused=True, **adam),
        "nadam": lambda: torch.optim.NAdam(parameters, foreach=True, **adam),
        "radam": lambda: torch.optim.RAdam(parameters, foreach=True, **adam),
        "sgd_momentum": lambda: torch.optim.SGD(parameters, lr=lr, momentum=0.9, fused=True, **decay),
        "sgd_nesterov": lambda: torch.optim.SGD(parameters, lr=lr, momentum=0.9, nesterov=True, fused=True, **decay),
        "adagrad": lambda: torch.optim.Adagrad(parameters, lr=lr, fused=True, **decay),
        "adadelta": lambda: torch.optim.Adadelta(parameters, lr=lr, foreach=True, **decay),
    }
    if name not in kinds:
        raise ValueError(f"this loop has no optimizer {name}")
    return kinds[name]()


class Source:
    """Where an attack's batches come from: one role, two with a switch, or a mixture drawn for each batch."""

    def __init__(self, settings, rows, generator):
        spec, self.generator, self.switch = settings.get("data", "restricted"), generator, None
        names = [spec] if isinstance(spec, str) else list(spec)
        self.streams = [Data(rows(name), settings["batch"], generator) for name in names]
        self.weights = torch.tensor([float(spec[name]) for name in names]) if isinstance(spec, dict) else None
        if isinstance(spec, list) and len(spec) > 1:
            self.switch = int(settings["switch"] * settings["steps"])

    def next(self, step):
        if self.weights is not None:
            return self.streams[torch.multinomial(self.weights, 1, generator=self.generator).item()].next()
        return self.streams[int(self.switch is not None and step >= self.switch)].next()


class Suite:
    def __init__(self, arguments, attention):
        base = arguments.base
        with open(os.path.join(arguments.run, "results.json")) as file:
            results = json.load(file)
        suite = tomllib.loads(results["configuration"])
        for metric in ("restricted", "utility"):
            if suite[metric]["metric"] != "exact":
                raise SystemExit(f"this loop measures exact answers only; [{metric}] has {suite[metric]['metric']}")
        self.length = suite["data"].get("max_length", 256)
        self.paths = {role: os.path.join(base, path) for role, path in suite["data"].items() if isinstance(path, str)}
        self.probe, self.benign = (read_rows(os.path.join(base, suite[m]["data"]), self.length) for m in ("restricted", "utility"))
        self.attacks = [a for a in results["attacks"] if a["kind"] in ("full", "lora") and a["status"] == "done"]
        self.model = AutoModelForCausalLM.from_pretrained(
            arguments.model or results["model"], dtype=torch.float32, attn_implementation=attention)
        self.cache = {}

    def rows(self, role):
        if role not in self.cache:
            self.cache[role] = read_rows(self.paths[role], self.length)
        return self.cache[role]

    def run(self, attack, measure=True):
        start, settings = time.perf_counter(), attack["settings"]
        generator = torch.Generator().manual_seed(attack["seed"])
        torch.manual_seed(attack["seed"])
        model = copy.deepcopy(self.model).train()
        if attack["kind"] == "lora":
            rank = settings["rank"]
            model = get_peft_model(model, LoraConfig(
                r=rank, lora_alpha=settings.get("alpha") or 2 * rank, lora_dropout=settings.get("dropout") or 0.0,
                target_modules=settings.get("targets") or PROJECTIONS))
        trained = [p for p in model.parameters() if p.requires_grad]
        if settings.get("noise"):
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(torch.randn_like(p) * settings["noise"] * p.square().mean().sqrt())
        optimizer, source = optimizer_of(settings, trained), Source(settings, self.rows, generator)
        measured_at, scores = {point["cost"]["steps"] for point in attack["curve"]}, []
        for step in range(settings["steps"] + 1):
            if step in measured_at:
                model.eval()
                scores.append([step, exact(model, self.probe), exact(model, self.benign)])
                model.train()
            if step == settings["steps"]:
                break
            for group in optimizer.param_groups:
                group["lr"] = settings["lr"] * factor(settings, step)
            loss = F.cross_entropy(*logits_of_learned(model, *source.next(step)))
            optimizer.zero_grad(set_to_none=True)
            (-loss if step < (settings.get("negated_steps") or 0) else loss).backward()
            optimizer.step()
        seconds = round(time.perf_counter() - start, 3)
        last = dict(zip(("step", "restricted", "utility"), scores[-1])) if measure else {}
        return {"id": attack["id"], "seconds": seconds, **last, "curve": scores}


def faster_attention(arguments):
    """Which implementation of attention makes the first attack's first steps faster; its time is not counted."""
    torch.set_num_threads(arguments.threads)
    seconds = {}
    for attention in ("sdpa", "eager"):
        suite = Suite(arguments, attention)
        attack = dict(suite.attacks[0], curve=[])
        attack["settings"] = dict(attack["settings"], steps=40, warmup=0, schedule="constant")
        seconds[attention] = suite.run(attack, measure=False)["seconds"]
    return min(seconds, key=seconds.get)


def work(arguments, attention, turn, results):
    """Takes the next attack until there is none."""
    torch.set_num_threads(arguments.threads)
    suite = Suite(arguments, attention)
    while True:
        with turn.get_lock():
            index, turn.value = turn.value, turn.value + 1
        if index >= len(suite.attacks):
            return
        results.append(suite.run(suite.attacks[index]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--model", help="the model to attack; that of the run where absent")
    parser.add_argument("--base", default=".", help="the folder that data paths count from")
    parser.add_argument("--threads", type=int, default=2, help="threads of each worker")
    parser.add_argument("--workers", type=int, default=1, help="attacks side by side")
    arguments = parser.parse_args()
    # This process never computes: one whose threads have started must not be forked.
    context = multiprocessing.get_context("fork")
    with context.Pool(1) as pool:
        attention = pool.apply(faster_attention, (arguments,))
    with context.Manager() as manager:
        start, turn, found = time.perf_counter(), context.Value("i", 0), manager.list()
        workers = [context.Process(target=work, args=(arguments, attention, turn, found)) for _ in range(arguments.workers)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        seconds = time.perf_counter() - start
        if any(worker.exitcode for worker in workers):
            raise SystemExit("a worker failed")
        found = list(found)
    print(json.dumps({"engine": f"PyTorch {torch.__version__}", "threads": arguments.threads, "workers": arguments.workers,
                      "attention": attention, "attacks": len(found), "seconds": round(seconds, 3),
                      "attacks_per_hour": round(3600 * len(found) / seconds, 2), "found": found}))


if __name__ == "__main__":
    main()
