"""The rows of `temper bench step` with PyTorch, Transformers and PEFT, eager and compiled, on one device.

    python benches/peers/step.py [--json] [--layers N] [--filter NAME] [--device cuda|cpu] [--shapes llama3-8b|tiny]

The same model, batches and losses. PyTorch gets what helps it: SDPA by its own choice and by cuDNN, fused AdamW, the loss
head in chunks so that all logits never exist at once, LoRA factors in bf16. Full-parameter steps come in two kinds: bf16
weights (fast, but an update of learning rate 2e-6 is mostly lost in them) and f32 weights under autocast, which train as
exactly as temper's bf16 + remainder. A step of TAR that does not fit runs once more with activations computed again.
"""
import contextlib, gc, math, statistics, time

import torch
from peft import LoraConfig, get_peft_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import LlamaConfig, LlamaForCausalLM

from losses import cross_entropy, negative_entropy
from measure import Bench, arguments

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def llama(b, layers, dtype):
    s = b.shapes
    config = LlamaConfig(vocab_size=s.vocab, hidden_size=s.hidden, intermediate_size=s.intermediate, num_hidden_layers=layers,
                         num_attention_heads=s.heads, num_key_value_heads=s.kv_heads, head_dim=s.head_dim,
                         max_position_embeddings=max(8192, s.length), rms_norm_eps=1e-5, tie_word_embeddings=False,
                         rope_parameters={"rope_type": "default", "rope_theta": s.rope_theta}, use_cache=False)
    config._attn_implementation = "sdpa"
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with b.device:
            return LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)


def batches(s):
    """Sequences and their length, by the names of temper's rows; those behind a / are batches of TAR."""
    in_tar = {f"{stem}/{n}x{length}": (n, length)
              for stem, (n, length) in (("full_attack_step", s.attack), ("tr_gradient", s.tamper_resistance))}
    return {"lora_attack_step": (s.sequences, s.length), "full_attack_step": (s.full_sequences, s.length),
            "tr_gradient": (s.sequences, s.length), **in_tar}


class Step:
    """Forward, the loss head in chunks, backward, and an optimizer's step where one is given."""

    def __init__(self, b, layers, kind, dtype, compile_it, attention, checkpointing=False):
        s = b.shapes
        self.b, self.kind, self.attention, self.autocast = b, kind.split("/")[0], attention, dtype == torch.float32
        self.sequences, self.length = batches(s)[kind]
        self.tokens = self.sequences * self.length
        self.model = llama(b, layers, dtype)
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self.factors = 0
        if checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        if self.kind == "lora_attack_step":
            config = LoraConfig(r=s.rank, lora_alpha=2 * s.rank, target_modules=PROJECTIONS, lora_dropout=0.0)
            self.model = get_peft_model(self.model, config, autocast_adapter_dtype=False).base_model.model
            self.factors = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = None if self.kind == "tr_gradient" else torch.optim.AdamW(trained, lr=2e-6, weight_decay=0.01, fused=True)
        self.body, self.loss = self.model.model, negative_entropy if self.kind == "tr_gradient" else cross_entropy
        if compile_it:
            self.body, self.loss = torch.compile(self.body, dynamic=False), torch.compile(self.loss, dynamic=False)
        self.batches = [b.ids(self.tokens).view(self.sequences, self.length) for _ in range(2)]

    def contexts(self):
        stack = contextlib.ExitStack()
        if self.attention == "cudnn":
            order = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
            stack.enter_context(sdpa_kernel(order, set_priority=True))
        if self.autocast:
            stack.enter_context(torch.autocast(self.b.device.type, torch.bfloat16))
        return stack

    def __call__(self, number):
        batch = self.batches[number % 2]
        if self.optimizer is not None:
            self.optimizer.zero_grad(set_to_none=True)
        with self.contexts():
            hidden = self.body(input_ids=batch, use_cache=False).last_hidden_state
            # The last token of a sequence has no target; the entropy is over every token.
            shift = 0 if self.kind == "tr_gradient" else 1
            length = batch.shape[1] - shift
            states = hidden[:, :length].reshape(-1, hidden.shape[-1])
            targets = (batch[:, shift:] if shift else batch).reshape(-1)
            leaf, total = states.detach().requires_grad_(True), torch.zeros((), device=batch.device)
            for first in range(0, leaf.shape[0], 4096):
                logits_of = leaf[first:first + 4096]
                loss = self.loss(logits_of, self.model.lm_head.weight, targets[first:first + 4096], leaf.shape[0])
                loss.backward()
                total += loss.detach()
        states.backward(leaf.grad)
        if self.optimizer is not None:
            self.optimizer.step()
        self.last = total


def flop(b, layers, step):
    s = b.shapes
    weights = layers * (s.hidden * (s.qkv + s.q) + 3 * s.hidden * s.intermediate) + s.vocab * s.hidden
    attention = layers * 4 * step.sequences * (step.length * (step.length + 1) / 2) * s.q
    products = 4 if step.kind == "lora_attack_step" else 6
    return step.tokens * (products * weights + 6 * step.factors) + 3.5 * attention


def queued_and_finished(b, step, count):
    b.timer.synchronize()
    start, queued = time.perf_counter(), 0.0
    for number in range(count):
        before = time.perf_counter()
        step(number)
        queued += time.perf_counter() - before
    b.timer.synchronize()
    return 1e3 * queued / count, 1e3 * (time.perf_counter() - start) / count


def device_milliseconds(b, step, samples, host):
    """As src/bench/steps.rs: the step is queued while the device is busy with something else."""
    x, w, y = b.products[0]
    product = 2 * b.shapes.matmul ** 3 / (b.rates["matmul_teraflops_per_second"] * 1e9)
    times = []
    for number in range(samples):
        for _ in range(min(max(math.ceil(2 * host / product), 1), 1000)):
            torch.matmul(x, w.t(), out=y)
        start = b.timer.mark()
        step(number)
        times.append(b.timer.between(start, b.timer.mark()))
    return statistics.median(times)


def measure(b, name, layers, variant, *how):
    step = Step(b, layers, name, *how)
    for number in range(2):
        step(number)
    host, wall = queued_and_finished(b, step, 1)
    fewest, most = b.timer.samples
    samples = min(max(math.ceil(4 * b.timer.minimum / wall), min(fewest, 5)), most)
    device = device_milliseconds(b, step, min(samples, 10), host)
    host, wall = queued_and_finished(b, step, samples)
    loss, work = step.last.item(), flop(b, layers, step)
    assert math.isfinite(loss), f"the loss is {loss}"
    floor = work / (b.rates["matmul_teraflops_per_second"] * 1e9)
    b.steps.append(dict(name=name, variant=variant, layers=layers, parameters=step.parameters, sequences=step.sequences,
                        tokens=step.tokens, memory=None, samples=samples, milliseconds=wall,
                        milliseconds_per_layer=wall / layers, device_milliseconds=device, host_milliseconds=host,
                        launch_gaps=1 - device / wall, flop=float(work),
                        floor_milliseconds=floor, ratio=wall / floor, teraflops_per_second=work / (wall * 1e9),
                        share_of_matmul_rate=floor / wall, tokens_per_second=step.tokens / wall * 1e3, loss=loss))
    b.keep(b.document())


def attempt(b, name, layers, variant, *how):
    """Measures one variant; what was wrong, where something was: the other variants are worth having."""
    try:
        return measure(b, name, layers, variant, *how)
    except Exception as error:
        b.failed(f"{name} ({variant})", error)
        return b.not_run[-1]
    finally:
        gc.collect()
        torch.compiler.reset()
        if b.timer.cuda:
            torch.cuda.empty_cache()


def main():
    parsed = arguments(__doc__.splitlines()[0], lambda p: p.add_argument("--layers", type=int))
    b = Bench(parsed)
    layers = parsed.layers or b.shapes.layers
    for name in batches(b.shapes):
        exact = [] if name == "lora_attack_step" else [torch.float32]
        for dtype in [torch.bfloat16] + exact if b.wants(name) else []:
            for compile_it in (False, True):
                for attention in ("default", "cudnn") if b.timer.cuda else ("default",):
                    variant = ", ".join(["compiled" if compile_it else "eager",
                                         "bf16" if dtype == torch.bfloat16 else "f32 autocast", f"{attention} attention"])
                    failed = attempt(b, name, layers, variant, dtype, compile_it, attention)
                    if failed and failed["out_of_memory"] and "/" in name:  # temper computes activations again there, too
                        attempt(b, name, layers, f"{variant}, checkpointing", dtype, compile_it, attention, True)
    b.print_report()


if __name__ == "__main__":
    main()
