"""The rows of `temper bench kernels` with PyTorch's own operations, eager and compiled, on one device.

    python benches/peers/kernel_rows.py [--json] [--filter NAME] [--device cuda|cpu] [--shapes llama3-8b|tiny]

Names, shapes, arithmetic and bytes are those of temper's rows; `variant` says how PyTorch did it. Each row is what a
training step in PyTorch runs in that place: where PyTorch cannot do the same thing in one operation (a fused residual, a
chunked loss head), the usual way to write it is timed, and torch.compile may fuse it.
(Not called kernels.py: Transformers would import it in place of a package of that name.)
"""
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from losses import cross_entropy, negative_entropy, teacher_divergence
from measure import Bench, arguments

E = 2  # bytes of a bf16


def compiled(function):
    return torch.compile(function, dynamic=False)


def variants(function):
    return [("eager", lambda: function), ("compiled", lambda: compiled(function))]


def backward_of(outputs, gradient, inputs):
    """Gradients of `inputs`, without running forward again."""
    return torch.autograd.grad(outputs, inputs, gradient, retain_graph=True)


def linear(b):
    s, t = b.shapes, b.shapes.tokens
    for name, o, i in [("qkv", s.qkv, s.hidden), ("output", s.hidden, s.q), ("gate_up", 2 * s.intermediate, s.hidden),
                       ("down", s.hidden, s.intermediate)]:
        shape, flop, moved = f"{t} × {o} × {i}", 2 * t * o * i, E * (t * o + t * i + o * i)

        def operands(o=o, i=i, moved=moved):
            return b.sets(moved, lambda: (b.normal(t, i), b.normal(o, i), b.normal(t, o)))

        def forward():
            at = operands()
            return lambda n: torch.matmul(at(n)[0], at(n)[1].t(), out=at(n)[2])

        def backward_input():
            at = operands()
            return lambda n: torch.matmul(at(n)[2], at(n)[1], out=at(n)[0])

        def backward_weight():  # as autograd does it: a bf16 gradient, added to the one that is there
            at, gradient = operands(), b.normal(o, i)
            return lambda n: gradient.add_(at(n)[2].t() @ at(n)[0])

        def backward_weight_fused():  # PyTorch at its best, which autograd does not do
            at, gradient = operands(), b.normal(o, i)
            return lambda n: torch.addmm(gradient, at(n)[2].t(), at(n)[0], out=gradient)

        b.row(f"linear_forward/{name}", "eager", shape, flop, moved, forward)
        b.row(f"linear_backward_input/{name}", "eager", shape, flop, moved, backward_input)
        moved = E * (t * o + t * i) + 8 * o * i
        b.row(f"linear_backward_weight/{name}", "eager, bf16 sum", shape, flop, moved, backward_weight)
        b.row(f"linear_backward_weight/{name}", "addmm, bf16 sum", shape, flop, moved, backward_weight_fused)


def lora(b):
    s, t, r = b.shapes, b.shapes.tokens, b.shapes.rank
    for name, outputs, i in [("qkv", [s.q, s.kv, s.kv], s.hidden), ("output", [s.hidden], s.q),
                             ("gate_up", [s.intermediate] * 2, s.hidden), ("down", [s.hidden], s.intermediate)]:
        o, n = sum(outputs), len(outputs)
        factors, shape = r * (n * i + o), f"{t} × {o} × {i}, r = {r}"
        forward_bytes = E * (t * i + factors + t * n * r + 2 * t * o)
        backward_bytes = E * (t * o + 3 * t * i + 2 * t * n * r + factors) + 8 * factors

        def update(x, y, ab):  # one projection after the other, as PEFT does it
            return [part + (x @ a.t()) @ w.t() for part, (a, w) in zip(y, ab)]

        def operands(grad, outputs=outputs, i=i, moved=forward_bytes):
            def make():
                ab = [(b.normal(r, i, deviation=0.02), b.normal(out, r, deviation=0.02)) for out in outputs]
                x, y = b.normal(t, i), [b.normal(t, out) for out in outputs]
                if grad:
                    for tensor in [x] + [f for pair in ab for f in pair]:
                        tensor.requires_grad_(True)
                return x, y, ab
            return b.sets(moved, make)

        for variant, function in variants(update):
            def forward():
                at, run = operands(False), function()
                return lambda k: run(*at(k))

            def backward():
                at, run = operands(True), function()
                graphs = {}

                def step(k):
                    x, y, ab = at(k)
                    if id(x) not in graphs:
                        graphs[id(x)] = run(x, y, ab)
                    backward_of(graphs[id(x)], y, [x] + [f for pair in ab for f in pair])
                return step

            b.row(f"lora_forward/{name}", variant, shape, 2 * t * factors, forward_bytes, forward)
            b.row(f"lora_backward/{name}", variant, shape, 4 * t * factors, backward_bytes, backward)


def attention(b):
    s = b.shapes
    kinds = [("flash", SDPBackend.FLASH_ATTENTION), ("cudnn", SDPBackend.CUDNN_ATTENTION)]
    for sequences, length in ((s.sequences, s.length), s.attack, s.tamper_resistance):
        t, pairs = sequences * length, length * (length + 1) / 2
        flop = 4 * sequences * pairs * s.q
        forward_bytes = E * t * (s.qkv + s.q) + 4 * t * s.heads
        backward_bytes = 2 * E * t * (s.qkv + s.q) + 4 * t * s.heads
        shape = f"{sequences} × {length}, causal, {s.heads} and {s.kv_heads} heads of {s.head_dim}"

        def operands(grad, sequences=sequences, length=length, moved=forward_bytes):
            def make():
                q, k, v = (b.normal(sequences, h, length, s.head_dim).requires_grad_(grad)
                           for h in (s.heads, s.kv_heads, s.kv_heads))
                return q, k, v, b.normal(sequences, s.heads, length, s.head_dim)
            return b.sets(moved, make)

        def call(q, k, v, kind, causal=True):
            with sdpa_kernel(kind):
                return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)

        for variant, kind in kinds if b.timer.cuda else [("math", SDPBackend.MATH)]:
            def forward():
                at = operands(False)
                return lambda n: call(*at(n)[:3], kind)

            def backward():
                at, graphs = operands(True), {}

                def step(n):
                    q, k, v, d = at(n)
                    if id(q) not in graphs:
                        graphs[id(q)] = call(q, k, v, kind)
                    backward_of(graphs[id(q)], d, (q, k, v))
                return step

            b.row(f"attention_forward/{sequences}x{length}", variant, shape, flop, forward_bytes, forward)
            b.row(f"attention_backward/{sequences}x{length}", variant, shape, 2.5 * flop, backward_bytes, backward)

    for length in (s.length, s.short_length):
        slot = 2 * s.kv_heads * s.head_dim
        cached_bytes = E * s.sequences * (s.qkv + s.q + slot + length * slot) + 4 * s.sequences * (length + 3)

        def cached_operands(length=length):  # a cache that lies in one piece: a list of slots has no kernel in PyTorch
            q, k, v = (b.normal(s.sequences, h, 1, s.head_dim) for h in (s.heads, s.kv_heads, s.kv_heads))
            return q, k, v, *(b.normal(s.sequences, s.kv_heads, length, s.head_dim) for _ in range(2))

        for variant, kind in kinds if b.timer.cuda else [("math", SDPBackend.MATH)]:
            def cached():
                at = b.sets(cached_bytes, cached_operands)

                def step(n):
                    q, k, v, keys, values = at(n)
                    keys[:, :, -1:], values[:, :, -1:] = k, v
                    return call(q, keys, values, kind, causal=False)
                return step

            shape = f"{s.sequences} × 1 after {length - 1}, {s.heads} and {s.kv_heads} heads of {s.head_dim}"
            b.row(f"attention_cached/{s.sequences}x{length}", variant, shape, 4 * s.sequences * length * s.q, cached_bytes, cached)


def loss_head(b):
    """Forward and gradients, in chunks of 4096 tokens: all logits at once in f32 take 8 GB, and their gradient as much."""
    s, t, v, d = b.shapes, b.shapes.tokens, b.shapes.vocab, b.shapes.hidden
    chunk, shape = min(4096, t), f"{t} × {v} × {d}"
    for suffix, with_head in [("", False), ("/d_head", True)]:
        flop = (3 if with_head else 2) * 2 * t * v * d
        moved = E * (2 * t * d + v * d) + (8 * v * d if with_head else 0) + 12 * t
        for name, loss in [("cross_entropy", cross_entropy), ("negative_entropy", negative_entropy)]:
            for variant, function in variants(loss):
                def setup():
                    run, targets = function(), b.ids(t)
                    head = b.normal(v, d, deviation=0.02).requires_grad_(with_head)
                    at = b.sets(moved, lambda: b.normal(t, d))

                    def step(n):
                        for first in range(0, t, chunk):
                            h = at(n)[first:first + chunk].detach().requires_grad_(True)
                            run(h, head, targets[first:first + chunk], t).backward()
                    return step
                b.row(f"loss_head/{name}{suffix}", f"{variant}, chunked", shape, flop, moved, setup)

        taught_flop, taught_bytes = flop + 2 * t * v * d, moved + E * (t * d + v * d)
        for variant, function in variants(teacher_divergence):
            def taught():
                run, teacher_head = function(), b.normal(v, d, deviation=0.02)
                head = b.normal(v, d, deviation=0.02).requires_grad_(with_head)
                at = b.sets(taught_bytes, lambda: (b.normal(t, d), b.normal(t, d)))

                def step(n):
                    hidden, teacher = at(n)
                    for first in range(0, t, chunk):
                        h = hidden[first:first + chunk].detach().requires_grad_(True)
                        run(h, head, teacher[first:first + chunk], teacher_head, t).backward()
                return step
            b.row(f"loss_head/teacher_divergence{suffix}", f"{variant}, chunked", shape, taught_flop, taught_bytes, taught)


def element(b):
    s, t, d, f = b.shapes, b.shapes.tokens, b.shapes.hidden, b.shapes.intermediate

    def norm(residual, delta, weight):
        total = residual + delta
        return total, F.rms_norm(total, (d,), weight, 1e-5)

    def llama_norm(x, weight):
        wide = x.float()
        return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)).to(x.dtype)

    def swiglu(gate_up):
        gate, up = gate_up.chunk(2, -1)
        return F.silu(gate) * up

    def rotate(x, cos, sin):
        left, right = x.chunk(2, -1)
        return x * cos + torch.cat((-right, left), -1) * sin

    for variant, function in variants(norm):
        def forward():
            run, weight = function(), b.normal(d)
            at = b.sets(4 * E * t * d, lambda: (b.normal(t, d), b.normal(t, d)))
            return lambda n: run(*at(n), weight)
        b.row("rms_norm_forward", variant, f"{t} × {d}, with residual", 0, 4 * E * t * d + 4 * t + E * d, forward)

    def backward_rows(name, variant, function, moved, shape, make, inputs):
        """Backward of `function` on `make()`, for the first `inputs` operands, added to gradients that are there."""
        def setup():
            run, at, graphs = function(), b.sets(moved, make), {}

            def step(n):
                operands = at(n)
                if id(operands[0]) not in graphs:
                    out = run(*operands)
                    graphs[id(operands[0])] = out, torch.randn_like(out)
                out, gradient = graphs[id(operands[0])]
                torch.autograd.backward(out, gradient, retain_graph=True, inputs=list(operands[:inputs]))
            return step
        b.row(name, variant, shape, 0, moved, setup)

    needs = lambda tensor: tensor.requires_grad_(True)
    for variant, function in variants(llama_norm):
        for name, inputs, extra in [("rms_norm_backward", 1, 0), ("rms_norm_backward/d_weight", 2, 8 * d)]:
            backward_rows(name, variant, function, 4 * E * t * d + 4 * t + E * d + extra, f"{t} × {d}",
                          lambda: (needs(b.normal(t, d)), needs(b.normal(d))), inputs)
    for variant, function in variants(swiglu):
        def forward():
            run, at = function(), b.sets(3 * E * t * f, lambda: b.normal(t, 2 * f))
            return lambda n: run(at(n))
        b.row("swiglu_forward", variant, f"{t} × {f}", 0, 3 * E * t * f, forward)
        backward_rows("swiglu_backward", variant, function, 5 * E * t * f, f"{t} × {f}", lambda: (needs(b.normal(t, 2 * f)),), 1)

    for variant, function in variants(lambda y, bias: y + bias):
        def forward():
            run, bias, at = function(), b.normal(s.qkv), b.sets(E * t * s.qkv, lambda: b.normal(t, s.qkv))
            return lambda n: run(at(n), bias)
        b.row("add_bias", variant, f"{t} × {s.qkv}", 0, 2 * E * t * s.qkv + E * s.qkv, forward)

    def bias_backward():
        gradient, at = b.normal(s.qkv), b.sets(E * t * s.qkv, lambda: b.normal(t, s.qkv))
        return lambda n: gradient.add_(at(n).sum(0))
    b.row("bias_backward", "eager, bf16 sum", f"{t} × {s.qkv}", 0, E * t * s.qkv + 8 * s.qkv, bias_backward)

    heads, half = s.heads + s.kv_heads, s.head_dim // 2
    for variant, function in variants(llama_norm):  # query and key heads; temper's forward also copies the values
        def forward():
            run, weight = function(), b.normal(s.head_dim)
            at = b.sets(E * t * s.qkv, lambda: b.normal(t, heads, s.head_dim))
            return lambda n: run(at(n), weight)
        b.row("head_norm_forward", variant, f"{t} × {s.qkv}", 0, 2 * E * t * s.qkv + 2 * E * s.head_dim, forward)
        for name, inputs, extra in [("head_norm_backward", 1, 0), ("head_norm_backward/d_weight", 2, 16 * s.head_dim)]:
            moved = 3 * E * t * heads * s.head_dim + 2 * E * s.head_dim + extra
            backward_rows(name, variant, function, moved, f"{t} × {heads * s.head_dim}",
                          lambda: (needs(b.normal(t, heads, s.head_dim)), needs(b.normal(s.head_dim))), inputs)
    for variant, function in variants(rotate):
        def forward():
            run = function()
            angles = torch.outer(torch.arange(s.length, device=b.device).float(), s.rope_theta ** (-torch.arange(half, device=b.device) / half))
            cos, sin = (torch.cat((a, a), -1).to(b.dtype) for a in (angles.cos(), angles.sin()))
            at = b.sets(E * t * heads * s.head_dim, lambda: b.normal(s.sequences, heads, s.length, s.head_dim))
            return lambda n: run(at(n), cos, sin)
        moved = 2 * E * t * heads * s.head_dim + 4 * t + 8 * s.length * half
        b.row("rope", variant, f"{t} × {heads * s.head_dim}", 0, moved, forward)


def tables(b):
    s, t, v, d = b.shapes, b.shapes.tokens, b.shapes.vocab, b.shapes.hidden
    ids = b.ids(t)
    different = ids.unique().numel()

    def forward():
        table = b.normal(v, d)
        return lambda n: F.embedding(ids, table)

    def backward():
        table, at = b.normal(v, d).requires_grad_(True), b.sets(E * t * d, lambda: b.normal(t, d))
        out = F.embedding(ids, table)
        return lambda n: torch.autograd.backward(out, at(n), retain_graph=True, inputs=[table])

    b.row("gather_rows", "eager", f"{t} of {v} × {d}", 0, E * t * d + 4 * t + E * different * d, forward)
    b.row("embedding_backward", "eager, bf16 sum", f"{t} of {v} × {d}", 0, E * t * d + 4 * t + 8 * different * d, backward)

    def distance(hidden, reference):
        return (hidden - reference).float().norm(dim=-1).mean()

    def cosine(hidden, away):
        return F.relu(F.cosine_similarity(hidden.float(), away.float(), dim=-1) + 1).mean()

    def cosines(hidden, away, toward):
        away, toward = (F.cosine_similarity(hidden.float(), x.float(), dim=-1) for x in (away, toward))
        return F.relu(away - toward + 1).mean()

    def mapping(hidden, table):
        return (1 - F.cosine_similarity(hidden.float(), F.embedding(ids, table), dim=-1).abs()).mean()

    def step_of(function, at):
        def step(n):
            operands = at(n)
            function(*operands).backward()  # adds to the gradient that is there
        return step

    grad = lambda: b.normal(t, d).requires_grad_(True)
    for variant, function in variants(distance):
        b.row("representation_distance", variant, f"{t} × {d}", 0, 4 * E * t * d + 8 * t,
              lambda: step_of(function(), b.sets(4 * E * t * d, lambda: (grad(), b.normal(t, d)))))
    for name, loss, others in (("cosine_margin", cosine, 1), ("cosine_margin/two", cosines, 2)):
        for variant, function in variants(loss):
            b.row(name, variant, f"{t} × {d}", 0, (3 + others) * E * t * d + 8 * t,
                  lambda: step_of(function(), b.sets((3 + others) * E * t * d,
                                                     lambda: (grad(), *(b.normal(t, d) for _ in range(others))))))
    for variant, function in variants(mapping):
        def setup():
            table = b.normal(v, d, dtype=torch.float32)
            return step_of(function(), b.sets(3 * E * t * d, lambda: (grad(), table)))
        b.row("random_mapping", variant, f"{t} of {v} × {d}", 0, 3 * E * t * d + 12 * t + 4 * different * d, setup)


def vectors(b):
    """PyTorch keeps f32 weights for exact training: 4 bytes a weight, as temper's bf16 and remainder together."""
    n = b.shapes.elements
    kinds = [("adam", lambda p: torch.optim.AdamW([p], lr=1e-5, fused=True), "fused AdamW, f32", 28),
             ("sgd", lambda p: torch.optim.SGD([p], lr=1e-5, momentum=0.9, fused=True), "fused, f32", 20),
             ("adagrad", lambda p: torch.optim.Adagrad([p], lr=1e-5), "foreach, f32", 20),
             ("adadelta", lambda p: torch.optim.Adadelta([p], lr=1e-5), "foreach, f32", 28),
             ("nadam", lambda p: torch.optim.NAdam([p], lr=1e-5), "foreach, f32", 28),
             ("radam", lambda p: torch.optim.RAdam([p], lr=1e-5), "foreach, f32", 28)]
    for name, make, variant, size in kinds:
        def setup():
            weights = b.normal(n, dtype=torch.float32, deviation=0.02).requires_grad_(True)
            weights.grad = b.normal(n, dtype=torch.float32, deviation=0.01)
            optimizer = make(weights)
            return lambda k: optimizer.step()
        b.row(f"optimizer/{name}", variant, f"{n} elements", 0, size * n, setup)

    def pair(step):
        x, y = b.normal(n, dtype=torch.float32), b.normal(n, dtype=torch.float32)
        return lambda k: step(x, y)
    b.row("weights_copy", "eager", f"{n} elements", 0, 8 * n, lambda: pair(lambda x, y: y.copy_(x)))
    b.row("squared_norm", "eager", f"{n} elements", 0, 4 * n, lambda: pair(lambda x, y: torch.linalg.vector_norm(x).item()))

    def mask(masked, accumulated, gradient):
        accumulated.mul_(0.95).add_(gradient, alpha=0.05)
        torch.add(accumulated, masked * (accumulated.sign() == masked.sign()), alpha=0.1, out=gradient)

    def gradients():
        three = [b.normal(n, dtype=torch.float32) for _ in range(3)]
        return lambda k: mask(*three)

    b.row("sign_mask", "eager", f"{n} elements", 0, 20 * n, gradients)


def main():
    bench = Bench(arguments(__doc__.splitlines()[0]))
    for family in (linear, lora, attention, loss_head, element, tables, vectors):
        family(bench)
    bench.print_report()


if __name__ == "__main__":
    main()
