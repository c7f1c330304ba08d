"""Runs benches/demo_step.rs and demo_step.py in turn on this machine and prints both and the ratio.

    python benches/peers/side_by_side.py [--threads 2] [--rounds 3]
"""
import argparse, json, os, subprocess, sys

ap = argparse.ArgumentParser()
ap.add_argument("--threads", type=int, default=2)
ap.add_argument("--rounds", type=int, default=3)
a = ap.parse_args()
here = os.path.dirname(os.path.abspath(__file__))
env = os.environ | {"RAYON_NUM_THREADS": str(a.threads)}
ours = ["cargo", "bench", "--quiet", "--bench", "demo_step"]
theirs = [sys.executable, os.path.join(here, "demo_step.py"), "--threads", str(a.threads)]
subprocess.run(ours + ["--no-run"], check=True, cwd=os.path.join(here, "..", ".."))
print(f"{'':8}{'attack step':>28}{'':12}{'tamper-resistance gradient':>28}")
print(f"{'round':8}{'temper':>14}{'PyTorch':>14}{'ratio':>12}{'temper':>14}{'PyTorch':>14}{'ratio':>12}")
for i in range(a.rounds):
    both = []
    for command in (ours, theirs):
        out = subprocess.run(command, check=True, capture_output=True, text=True, env=env, cwd=os.path.join(here, "..", ".."))
        both.append(json.loads(out.stdout.strip().splitlines()[-1]))
    row = [f"{i + 1:<8}"]
    for key in ("attack_step_ms", "tr_gradient_ms"):
        x, y = (b[key] for b in both)
        row.append(f"{x:11.3f} ms{y:11.3f} ms{y / x:11.2f}x")
    print("".join(row), flush=True)
print(json.dumps(both))
