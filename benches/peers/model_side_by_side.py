"""Runs benches/model_step.rs and model_step.py in turn on this machine and prints both and the ratio.

    python benches/peers/model_side_by_side.py [--threads 2] [--rounds 2]
"""
import argparse, json, os, subprocess, sys

ap = argparse.ArgumentParser()
ap.add_argument("--threads", type=int, default=2)
ap.add_argument("--rounds", type=int, default=2)
ap.add_argument("--program", help="benches/model_step.rs, built already; without it cargo builds it")
a = ap.parse_args()
here = os.path.dirname(os.path.abspath(__file__))
root = os.path.join(here, "..", "..")
env = os.environ | {"RAYON_NUM_THREADS": str(a.threads)}
ours = [a.program] if a.program else ["cargo", "bench", "--quiet", "--bench", "model_step"]
theirs = [sys.executable, os.path.join(here, "model_step.py"), "--threads", str(a.threads)]
if not a.program:
    subprocess.run(ours + ["--no-run"], check=True, cwd=root)
names = {"full_step_ms": "full step", "lora_step_ms": "LoRA step", "tr_gradient_ms": "TR gradient", "generation_ms": "generation"}
print(f"{'round':7}{'':14}{'temper':>12}{'PyTorch':>12}{'ratio':>9}")
rounds = []
for i in range(a.rounds):
    both = []
    for command in (ours, theirs):
        out = subprocess.run(command, check=True, capture_output=True, text=True, env=env, cwd=root)
        both.append(json.loads(out.stdout.strip().splitlines()[-1]))
    rounds.append(both)
    for key, name in names.items():
        x, y = (b[key] for b in both)
        print(f"{i + 1:<7}{name:14}{x:9.0f} ms{y:9.0f} ms{y / x:8.2f}x", flush=True)
print(json.dumps(rounds))
