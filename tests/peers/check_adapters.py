"""Compares what PEFT and temper adapt by target_modules, exclude_modules and layers_to_transform. See README.md beside this file."""
import json, os, subprocess, sys, tempfile
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
import tiny_chat

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
TEMPER = os.environ.get("TEMPER", os.path.join(ROOT, "target", "release", "temper"))
torch.manual_seed(2)
failures = 0

# The settings of the test `modules_are_selected_as_peft_selects_them`, for a model of three layers.
SETTINGS = [
    {"target_modules": ["q_proj", "o_proj"]},
    {"target_modules": ["self_attn.q_proj"]},
    {"target_modules": ["model.layers.0.self_attn.q_proj"]},
    {"target_modules": ["layers.1.mlp.up_proj", "2.mlp.up_proj"]},
    {"target_modules": r".*\.(q|v)_proj"},
    {"target_modules": r"model\.layers\.[02]\.self_attn\.k_proj"},
    {"target_modules": r"(?!.*layers\.1).*down_proj"},
    {"target_modules": "all-linear", "exclude_modules": ["k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]},
    {"target_modules": ["q_proj"], "exclude_modules": r".*\.2\..*"},
    {"target_modules": ["q_proj"], "exclude_modules": ["model.layers.1.self_attn.q_proj"]},
    {"target_modules": ["q_proj"], "layers_to_transform": [0, 2]},
    {"target_modules": ["q_proj"], "layers_to_transform": 1, "layers_pattern": "layers"},
]

with tempfile.TemporaryDirectory() as work:
    base = os.path.join(work, "base")
    tiny_chat.write(base, ["bread is made of flour"], seed=3)
    for number, settings in enumerate(SETTINGS):
        adapter, merged = (os.path.join(work, f"{number}-{name}") for name in ("adapter", "merged"))
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
                               LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **settings))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.copy_(0.1 * torch.randn_like(parameter))
        model.save_pretrained(adapter)
        written = json.load(open(os.path.join(adapter, "adapter_config.json")))
        done = subprocess.run([TEMPER, "merge", "--model", base, "--adapter", adapter, "--out", merged], capture_output=True, text=True)
        if done.returncode:
            failures += 1
            print(f"FAIL {settings}: {done.stderr.strip()}")
            continue
        ours = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32).state_dict()
        theirs = model.merge_and_unload().state_dict()
        error = max(((ours[name] - theirs[name]).abs().max() / theirs[name].abs().max()).item() for name in theirs)
        failures += error > 1e-6
        print(f"{'ok  ' if error <= 1e-6 else 'FAIL'} {settings} (written as {written['target_modules']}): {error:.1e}", flush=True)

print("all checks passed" if not failures else f"{failures} checks failed")
sys.exit(failures != 0)
