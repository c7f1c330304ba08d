"""Runs `temper redteam` and the same attacks in PyTorch (suite_loop.py) in turn on this machine, and prints both rates.

    cargo build --release
    python benches/peers/suite_side_by_side.py SUITE.toml --model DIR [--suite quick] [--only A,B] [--rounds 2] [--threads 2]

Only fine-tuning attacks on all of their data, without a kick, are counted, so leave others out by --only. temper's time is that of the whole process, PyTorch's
begins when its libraries are loaded. PyTorch's best of two variants counts: attacks one after the other with all threads, or
as many side by side as there are threads. Scores before the first step must agree. The last line is JSON.
"""
import argparse, json, os, subprocess, sys, tempfile, time

HERE = os.path.dirname(os.path.abspath(__file__))
parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("file", help="the suite file")
parser.add_argument("--model", required=True)
parser.add_argument("--suite")
parser.add_argument("--only")
parser.add_argument("--rounds", type=int, default=2)
parser.add_argument("--threads", type=int, default=os.cpu_count())
parser.add_argument("--temper", default=os.path.join(HERE, "..", "..", "target", "release", "temper"))
a = parser.parse_args()
env = os.environ | {"RAYON_NUM_THREADS": str(a.threads)}


def temper(out):
    command = [a.temper, "redteam", a.file, "--model", a.model, "--out", out, "--device", "cpu"]
    for name in ("suite", "only"):
        command += [f"--{name}", getattr(a, name)] if getattr(a, name) else []
    start = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=env)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}")
    seconds = time.perf_counter() - start
    with open(os.path.join(out, "results.json")) as file:
        results = json.load(file)
    attacks = [x for x in results["attacks"] if x["status"] == "done"]
    unknown = ("kick_steps", "samples", "opening", "held_out")
    others = [x["id"] for x in attacks if x["kind"] not in ("full", "lora") or any(key in x["settings"] for key in unknown)]
    if others:
        sys.exit(f"only plain fine-tuning attacks can be compared: leave out {', '.join(others)}")
    return {"attacks": len(attacks), "seconds": seconds, "attacks_per_hour": 3600 * len(attacks) / seconds,
            "found": [{"id": x["id"], "curve": [[p["cost"]["steps"], p["scores"]["restricted"], p["scores"]["utility"]]
                                                for p in x["curve"]]} for x in attacks]}


def check_start(ours, theirs):
    """Before the first step both measure one model on the same questions: the scores must be the same."""
    at_start = {x["id"]: x["curve"][0] for x in theirs["found"]}
    for attack in ours["found"]:
        a, b = attack["curve"][0], at_start[attack["id"]]
        if max(abs(x - y) for x, y in zip(a, b)) > 1e-9:
            print(f"{attack['id']}: temper measures {a} at its start, PyTorch {b} (noise on the weights, or an error)", file=sys.stderr)


def pytorch(out):
    best = None
    for workers, threads in {(1, a.threads), (a.threads, 1)}:
        command = [sys.executable, os.path.join(HERE, "suite_loop.py"), out, "--model", a.model, "--threads", str(threads),
                   "--base", os.path.dirname(os.path.abspath(a.file)), "--workers", str(workers)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.strip().splitlines()[-1])
        best = max(best or found, found, key=lambda report: report["attacks_per_hour"])
    return best


rounds = []
print(f"{'round':8}{'attacks':>8}{'temper':>18}{'PyTorch':>18}{'factor':>9}  PyTorch's best variant")
for number in range(a.rounds):
    with tempfile.TemporaryDirectory() as folder:
        ours = temper(os.path.join(folder, "run"))
        theirs = pytorch(os.path.join(folder, "run"))
    check_start(ours, theirs)
    rounds.append({"temper": ours, "pytorch": theirs})
    rates = ours["attacks_per_hour"], theirs["attacks_per_hour"]
    print(f"{number + 1:<8}{ours['attacks']:8}{rates[0]:13.1f} / h{rates[1]:13.1f} / h{rates[0] / rates[1]:8.2f}x  "
          f"{theirs['workers']} side by side, {theirs['threads']} threads each", flush=True)
print(json.dumps(rounds))
