"""Runs a benchmark of steps on the CPU and the same steps in PyTorch in turn on this machine, and prints both and the ratio.

    python benches/peers/side_by_side.py [demo_step | model_step] [--threads 2] [--rounds 3]

demo_step: the demonstration's model; model_step: the size of SmolLM2-135M. Each is benches/NAME.rs and NAME.py beside this file.
"""
import argparse, json, os, subprocess, sys

ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
ap.add_argument("bench", nargs="?", default="demo_step", choices=["demo_step", "model_step"])
ap.add_argument("--threads", type=int, default=2)
ap.add_argument("--rounds", type=int, default=3)
a = ap.parse_args()
here = os.path.dirname(os.path.abspath(__file__))
root = os.path.join(here, "..", "..")
env = os.environ | {"RAYON_NUM_THREADS": str(a.threads)}
ours = ["cargo", "bench", "--quiet", "--bench", a.bench]
theirs = [sys.executable, os.path.join(here, a.bench + ".py"), "--threads", str(a.threads)]
subprocess.run(ours + ["--no-run"], check=True, cwd=root)
print(f"{'round':8}{'':20}{'temper':>14}{'PyTorch':>14}{'ratio':>9}")
rounds = []
for i in range(a.rounds):
    both = []
    for command in (ours, theirs):
        out = subprocess.run(command, check=True, capture_output=True, text=True, env=env, cwd=root)
        both.append(json.loads(out.stdout.strip().splitlines()[-1]))
    rounds.append(both)
    for key in [key for key in both[0] if key.endswith("_ms")]:
        x, y = (b[key] for b in both)
        print(f"{i + 1:<8}{key[:-3]:20}{x:11.3f} ms{y:11.3f} ms{y / x:8.2f}x", flush=True)
print(json.dumps(rounds))
