"""Shared by kernel_rows.py and step.py: the sizes of `temper bench`, device times by events, this device's own rates, and the
report with the fields of `temper bench --json`.

On the CPU (--device cpu) everything runs, wall clocks stand in for events, and the report says that it is no measurement.
"""
import argparse, json, math, os, platform, statistics, sys, time

import torch
import torch._functorch.config

# Rows run one backward pass again and again over the same forward pass.
torch._functorch.config.donated_buffer = False

# Model and batch of `temper bench --shapes` (src/bench/shapes.rs).
SHAPES = {
    "llama3-8b": dict(vocab=128_256, hidden=4096, intermediate=14_336, layers=32, heads=32, kv_heads=8, head_dim=128,
                      rope_theta=500_000.0, sequences=8, length=2048, short_length=256, full_sequences=4, rank=16,
                      attack=(32, 256), tamper_resistance=(64, 256),
                      elements=1_000_000_000, matmul=8192, copy_bytes=2 << 30, cold_bytes=192 << 20, most_sets=64),
    "tiny": dict(vocab=203, hidden=128, intermediate=160, layers=1, heads=2, kv_heads=1, head_dim=64,
                 rope_theta=10_000.0, sequences=2, length=24, short_length=8, full_sequences=1, rank=4,
                 attack=(3, 8), tamper_resistance=(5, 8),
                 elements=5003, matmul=128, copy_bytes=1 << 16, cold_bytes=192 << 20, most_sets=2),
}


class Shapes:
    def __init__(self, name):
        self.name = name
        vars(self).update(SHAPES[name])
        self.tokens = self.sequences * self.length
        self.q, self.kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        self.qkv = self.q + 2 * self.kv


def arguments(description, more=lambda parser: None):
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu to try the script")
    parser.add_argument("--shapes", default="llama3-8b", choices=SHAPES)
    parser.add_argument("--filter", help="only rows whose name contains this")
    parser.add_argument("--json", action="store_true", help="print the report alone, as one JSON document")
    parser.add_argument("--out", help="file for the report as JSON, written again with every row, so that a stop keeps those before")
    more(parser)
    parsed = parser.parse_args()
    if parsed.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit("no CUDA device: use --device cpu --shapes tiny to try the script")
    return parsed


class Timer:
    """Medians of device times; the method is that of src/bench/timer.rs."""
    BATCH = 16

    def __init__(self, device):
        self.cuda = device.type == "cuda"
        self.warm_up, self.minimum, self.samples = (100.0, 400.0, (10, 300)) if self.cuda else (0.0, 0.0, (2, 2))

    def mark(self):
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, start, end):
        if not self.cuda:
            return 1e3 * (end - start)
        end.synchronize()
        return start.elapsed_time(end)

    def synchronize(self):
        if self.cuda:
            torch.cuda.synchronize()

    def time(self, run):
        """Times `run(repetition)`; returns (median, fastest, slowest, samples) in milliseconds."""
        state = {"i": -1}

        def go():
            state["i"] += 1
            run(state["i"])

        def batch(count):
            go()  # not timed: keeps the device busy while the host queues the others
            marks = []
            for _ in range(count):
                start = self.mark()
                go()
                marks.append((start, self.mark()))
            return [self.between(*pair) for pair in marks]

        go()
        estimate = max(batch(1)[0], 1e-3)
        for _ in range(min(int(self.warm_up / estimate), self.samples[1])):
            go()
        wanted = min(max(math.ceil(self.minimum / estimate), self.samples[0]), self.samples[1])
        samples = []
        while len(samples) < wanted:
            samples += batch(min(self.BATCH, wanted - len(samples)))
        return statistics.median(samples), min(samples), max(samples), len(samples)


class Bench:
    def __init__(self, parsed):
        self.arguments, self.shapes = parsed, Shapes(parsed.shapes)
        self.device, self.dtype = torch.device(parsed.device), torch.bfloat16
        self.timer = Timer(self.device)
        torch.manual_seed(0)
        self.rates = self.measure_rates()
        self.rows, self.steps, self.not_run = [], [], []

    # Operands

    def normal(self, *size, dtype=None, deviation=1.0):
        return torch.randn(*size, device=self.device, dtype=torch.float32 if dtype == torch.float32 else self.dtype).mul_(deviation)

    def ids(self, count):
        return torch.randint(self.shapes.vocab, (count,), device=self.device)

    def sets(self, moved, make):
        """Sets of operands that repetitions take in turn, so that none is in a cache."""
        count = min(max(math.ceil(self.shapes.cold_bytes / max(moved, 1)), 1), self.shapes.most_sets)
        made = [make() for _ in range(count)]
        return lambda repetition: made[repetition % count]

    # Rates

    def measure_rates(self):
        n, s = self.shapes.matmul, self.shapes
        self.products = [(self.normal(n, n), self.normal(n, n), self.normal(n, n)) for _ in range(2)]
        source = self.normal(s.copy_bytes // 4, dtype=torch.float32)
        target = torch.empty_like(source)
        copy = self.timer.time(lambda i: target.copy_(source))[0]
        rate = self.matmul_rate()
        return dict(matmul_size=n, matmul_teraflops_per_second=rate, matmul_teraflops_per_second_at_end=rate,
                    own_matmul_teraflops_per_second=None, copy_bytes=s.copy_bytes,
                    copy_gigabytes_per_second=2 * s.copy_bytes / (copy * 1e6))

    def matmul_rate(self):
        def run(i):
            x, w, y = self.products[i % 2]
            torch.matmul(x, w.t(), out=y)
        return 2 * self.shapes.matmul ** 3 / (self.timer.time(run)[0] * 1e9)

    # Rows

    def wants(self, name):
        return self.arguments.filter is None or self.arguments.filter in name

    def row(self, name, variant, shape, flop, moved, setup):
        """Measures one row; `setup` makes the operands and returns what runs them."""
        if not self.wants(name):
            return
        try:
            timing = self.timer.time(setup())
        except Exception as error:  # the other rows are worth having
            self.failed(f"{name} ({variant})", error)
            return
        finally:
            if self.timer.cuda:
                torch.cuda.empty_cache()
        median, fastest, slowest, samples = timing
        arithmetic = flop / (self.rates["matmul_teraflops_per_second"] * 1e9)
        memory = moved / (self.rates["copy_gigabytes_per_second"] * 1e6)
        floor = max(arithmetic, memory)
        self.rows.append(dict(name=name, variant=variant, shape=shape, samples=samples, milliseconds=median,
                              fastest_milliseconds=fastest, slowest_milliseconds=slowest, flop=float(flop),
                              bytes=float(moved), floor_milliseconds=floor,
                              floor_by="arithmetic" if arithmetic > memory else "memory", ratio=median / floor,
                              teraflops_per_second=flop / (median * 1e9), gigabytes_per_second=moved / (median * 1e6),
                              library_milliseconds=None, factor_to_library=None))
        print(f"peers: {name} ({variant}): {median:.4f} ms", file=sys.stderr)
        self.keep(self.document())

    def failed(self, name, error):
        memory = isinstance(error, torch.OutOfMemoryError)
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        self.not_run.append(dict(name=name, reason=reason, out_of_memory=memory))
        print(f"peers: {name}: {reason}", file=sys.stderr)

    # Report

    def report(self):
        self.rates["matmul_teraflops_per_second_at_end"] = self.matmul_rate()
        return self.document()

    def keep(self, report):
        """Writes the report beside --out and gives it that name, so that there is always a whole one."""
        if self.arguments.out:
            with open(self.arguments.out + ".new", "w") as file:
                json.dump(report, file, indent=2)
            os.replace(self.arguments.out + ".new", self.arguments.out)

    def document(self):
        if self.timer.cuda:
            p = torch.cuda.get_device_properties(self.device)
            device = dict(name=p.name, compute_capability=f"{p.major}.{p.minor}", multiprocessors=p.multi_processor_count,
                          memory=p.total_memory, driver=None)
        else:
            device = dict(name=f"CPU {platform.machine()}", compute_capability="", multiprocessors=0, memory=0, driver=None)
        return dict(schema=1, engine=f"PyTorch {torch.__version__}", kernels_digest="", device=device,
                    simulated=not self.timer.cuda, precision="bf16", library=f"CUDA {torch.version.cuda}", tuning=None,
                    shapes=self.shapes.name, rates=self.rates, rows=self.rows, steps=self.steps, not_run=self.not_run)

    def print_report(self):
        report = self.report()
        self.keep(report)
        if self.arguments.json:
            print(json.dumps(report, indent=2))
            return
        if report["simulated"]:
            print("On a CPU: these figures are no measurement of a GPU.")
        r = report["rates"]
        print(f"{report['engine']} on {report['device']['name']}: {r['matmul_teraflops_per_second']:.4f} TFLOP/s for a "
              f"product, {r['copy_gigabytes_per_second']:.1f} GB/s for a copy")
        for row in report["rows"] + report["steps"]:
            print(f"{row['name']:36} {row['variant']:22} {row['milliseconds']:12.4f} ms   ratio {row['ratio']:8.2f}")
        for missing in report["not_run"]:
            print(f"not run: {missing['name']}: {missing['reason']}")
