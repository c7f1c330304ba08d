"""Runs the TamperBench plug-in on a tiny model and loads what it returns. See README.md beside this file.

    python tests/peers/check_tamperbench.py [--temper target/release/temper]
"""
import argparse, json, os, sys, tempfile, tomllib, types
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Generic, TypeVar

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).resolve().parent.parent.parent
parser = argparse.ArgumentParser()
parser.add_argument("--temper", default=str(ROOT / "target" / "release" / "temper"))
TEMPER = os.path.abspath(parser.parse_args().temper)


def stand_in():
    """TamperBench's two base classes and its registry, as far as a defense sees them."""
    @dataclass
    class AlignmentDefenseConfig:
        input_checkpoint_path: Path
        output_checkpoint_path: Path

        def __post_init__(self):
            self.input_checkpoint_path, self.output_checkpoint_path = map(Path, (self.input_checkpoint_path, self.output_checkpoint_path))

        @classmethod
        def from_dict(cls, data):
            unknown = set(data) - {f.name for f in fields(cls)}
            missing = {f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING} - set(data)
            if unknown or missing:
                raise ValueError(f"unknown {unknown}, missing {missing}")
            return cls(**data)

    class AlignmentDefense(Generic[TypeVar("H")]):
        def __init__(self, defense_config):
            self.defense_config = defense_config

    registry = {}

    def register_defense(name, config_class):
        return lambda defense: registry.__setitem__(name, (config_class, defense)) or defense

    for name in ("tamperbench", "tamperbench.whitebox", "tamperbench.whitebox.defenses"):
        sys.modules[name] = types.ModuleType(name)
    base, entries = (types.ModuleType(f"tamperbench.whitebox.defenses.{n}") for n in ("defense", "registry"))
    base.AlignmentDefense, base.AlignmentDefenseConfig = AlignmentDefense, AlignmentDefenseConfig
    entries.register_defense, entries.DEFENSES_REGISTRY = register_defense, registry
    sys.modules[base.__name__], sys.modules[entries.__name__] = base, entries


try:
    import tamperbench.whitebox.defenses.registry
    print("with TamperBench itself")
except ImportError:
    stand_in()
    print("with a stand-in of TamperBench's base classes")
sys.path.insert(0, str(ROOT / "integrations" / "tamperbench"))
import temper_defense
from tamperbench.whitebox.defenses.registry import DEFENSES_REGISTRY

config_class, defense_class = DEFENSES_REGISTRY["temper"]


def refused(what, kind, words, work):
    try:
        work()
    except kind as error:
        assert words in str(error), f"{what}: {error}"
        print(f"ok   {what}: {error}")
    else:
        sys.exit(f"FAIL {what} was not refused")


with tempfile.TemporaryDirectory() as folder:
    folder = Path(folder)
    torch.manual_seed(1)
    LlamaForCausalLM(LlamaConfig(vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
                                 num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2,
                                 tie_word_embeddings=False)).save_pretrained(folder / "base")
    rows = folder / "rows \"of\" the data.jsonl"
    rows.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in torch.randint(3, 300, (16, 12)).tolist()))
    out = folder / "hardened"
    given = {
        "input_checkpoint_path": str(folder / "base"), "output_checkpoint_path": str(out), "subject": None, "random_seed": 5,
        "data": {"forget": {"path": str(rows), "batch": 4}, "meta": str(rows), "retain": str(rows)},
        "adversaries": [{"name": "one", "data": "forget", "lr": [1e-3, 2e-3]},
                        {"name": "two", "data": {"forget": 0.5, "retain": 0.5}, "lr": 1e-3, "params": "lora", "rank": 2}],
        "max_steps": 3, "tar_inner_loop_steps": 4, "tar_inner_loop_subsample": 2, "tar_tamper_resistance_grad_scale": 2.5,
        "tar_retain_scale": 0.5, "use_weighting_schedule": False, "unbounded": False,
        "tar_tamper_resistance_loss_lower_bound": -3.5, "lr": 1e-3, "warmup_steps": 1, "retain_representations": False,
        "overrides": ["tar.outer.optimizer=adamw"], "temper": TEMPER, "device": "cpu",
    }
    defense = lambda **changed: defense_class(defense_config=config_class.from_dict(given | changed))
    assert defense().run_defense() == out
    tar = tomllib.loads((out / "temper" / "run.toml").read_text())["tar"]
    expected = dict(outer_steps=3, inner_steps=4, tr_every=2, tr_scale=2.5, retain_scale=0.5, schedule_lambda="equal",
                    lower_bound=-3.5, retain_representations=False)
    assert {key: tar[key] for key in expected} == expected, tar
    assert (tar["outer"]["lr"], tar["outer"]["warmup"], tar["outer"]["optimizer"]) == (1e-3, 1, "adamw")
    assert [a["name"] for a in tar["adversary"]] == ["one", "two"] and tar["adversary"][0]["lr"] == [1e-3, 2e-3]
    print("ok   every field arrived in the run file")
    base, hardened = (AutoModelForCausalLM.from_pretrained(path) for path in (folder / "base", out))
    moved = max((a - b).abs().max().item() for a, b in zip(base.parameters(), hardened.parameters()))
    assert 1e-4 < moved < 1.0, moved
    print(f"ok   Transformers loads the hardened model; its weights moved by at most {moved:.1e}")

    refused("an output that exists", FileExistsError, "exists already", lambda: defense().run_defense())
    other = {"output_checkpoint_path": str(folder / "other")}
    refused("an unknown key", ValueError, "max_stepz", lambda: defense(max_stepz=1))
    refused("a wrong key of the run file", temper_defense.TemperError, "did you mean `outer_steps`",
            lambda: defense(**other, overrides=["tar.outer_step=1"]).run_defense())
    refused("a program that is not there", temper_defense.TemperError, "is not there",
            lambda: defense(**other, temper="/nowhere/temper").run_defense())
    assert not (folder / "other").exists()
    (folder / "empty").mkdir()
    defense(output_checkpoint_path=str(folder / "empty"), max_steps=1).run_defense()
    print("ok   an empty output directory is taken")
print("all checks passed")
