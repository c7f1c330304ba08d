"""Runs `temper bench` and the PyTorch peers one after the other on this machine and prints one table.

    cargo build --release
    python benches/peers/compare.py [kernels|step|both] [--layers N] [--filter NAME] [--device cuda] [--out FOLDER]

The factor is PyTorch's time over temper's: above 1 where temper is faster. PyTorch's best variant of each row counts. Both
reports are kept in --out. --device cpu --shapes tiny tries the script: temper on its simulator, PyTorch on the CPU.
"""
import argparse, json, os, subprocess, sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.join(HERE, "..", "..")


def run(command):
    """The JSON that a command prints. Its progress goes to stderr, where it belongs; a row that failed is in the report."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if not done.stdout.strip():
        sys.exit(f"{' '.join(command)} printed no report (exit code {done.returncode})")
    return json.loads(done.stdout)


def best(rows):
    found = {}
    for row in rows:
        if row["name"] not in found or row["milliseconds"] < found[row["name"]]["milliseconds"]:
            found[row["name"]] = row
    return found


def table(ours, theirs):
    theirs = best(theirs)
    print(f"{'':36}{'temper':>12}{'of floor':>10}{'PyTorch':>12}{'of floor':>10}{'factor':>9}  PyTorch's best variant")
    for row in ours:
        peer = theirs.get(row["name"])
        line = f"{row['name']:36}{row['milliseconds']:9.3f} ms{row['ratio']:9.2f}x"
        if peer:
            line += (f"{peer['milliseconds']:9.3f} ms{peer['ratio']:9.2f}x"
                     f"{peer['milliseconds'] / row['milliseconds']:8.2f}x  {peer['variant']}")
        print(line)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", default="both", choices=["kernels", "step", "both"])
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu to try the script")
    parser.add_argument("--shapes", default="llama3-8b")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--filter")
    parser.add_argument("--temper", default=os.path.join(ROOT, "target", "release", "temper"), help="the program")
    parser.add_argument("--out", help="folder for both reports")
    a = parser.parse_args()
    for what in ["kernels", "step"] if a.what == "both" else [a.what]:
        shared = ["--json", "--shapes", a.shapes] + (["--filter", a.filter] if a.filter else [])
        shared += ["--layers", str(a.layers)] if what == "step" and a.layers else []
        device = "sim" if a.device == "cpu" else a.device
        ours = run([a.temper, "bench", what, "--device", device] + shared)
        script = "kernel_rows.py" if what == "kernels" else "step.py"
        theirs = run([sys.executable, os.path.join(HERE, script), "--device", a.device] + shared)
        if a.out:
            os.makedirs(a.out, exist_ok=True)
            for name, report in (("temper", ours), ("pytorch", theirs)):
                with open(os.path.join(a.out, f"{what}-{name}.json"), "w") as file:
                    json.dump(report, file, indent=2)
        for report in (ours, theirs):
            rates = report["rates"]
            print(f"{report['engine']} on {report['device']['name']}: {rates['matmul_teraflops_per_second']:.4f} TFLOP/s, "
                  f"{rates['copy_gigabytes_per_second']:.1f} GB/s" + ("; NO MEASUREMENT OF A GPU" if report["simulated"] else ""))
        key = "rows" if what == "kernels" else "steps"
        table(ours[key], theirs[key])
        for report in (ours, theirs):
            for missing in report["not_run"]:
                print(f"not run by {report['engine']}: {missing['name']}: {missing['reason']}")


if __name__ == "__main__":
    main()
