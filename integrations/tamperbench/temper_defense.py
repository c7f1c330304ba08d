"""temper as a defense of TamperBench (github.com/criticalml-uw/TamperBench). See README.md beside this file.

Fields are named as those of TamperBench's own TAR where it has them; what is left out is the value of the preset `subject`.
"""
from __future__ import annotations

import json
import logging
import subprocess
import tempfile
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tamperbench.whitebox.defenses.defense import AlignmentDefense, AlignmentDefenseConfig
from tamperbench.whitebox.defenses.registry import register_defense

NAME = "temper"
logger = logging.getLogger(__name__)

# Fields whose value goes to a key of `[tar]` as it is.
_TAR_KEYS = {
    "max_steps": "outer_steps",
    "tar_inner_loop_steps": "inner_steps",
    "tar_inner_loop_subsample": "tr_every",
    "tar_num_tasks_sampled": "tasks_per_step",
    "tar_tamper_resistance_grad_scale": "tr_scale",
    "tar_tamper_resistance_loss_type": "tr_loss",
    "tar_retain_scale": "retain_scale",
    "retain_representations": "retain_representations",
}


class TemperError(RuntimeError):
    """`temper harden` failed; the message is its own."""


@dataclass
class TemperConfig(AlignmentDefenseConfig):
    """A run of `temper harden`."""

    subject: str | None = "bio"
    """Preset to start from: bio, cyber, chem or refusal; None for a run whose keys are all given here."""
    data: dict[str, Any] = field(default_factory=dict)
    """Data streams by name: a path, or a `[data.NAME]` table."""
    adversaries: list[dict[str, Any]] | None = None
    """`[[tar.adversary]]` tables instead of the preset's."""
    safeguard: dict[str, Any] | None = None
    """`[safeguard]`, for a model without a plain safeguard."""

    max_steps: int | None = None
    tar_inner_loop_steps: int | None = None
    tar_inner_loop_subsample: int | None = None
    tar_num_tasks_sampled: int | None = None
    tar_tamper_resistance_grad_scale: float | None = None
    tar_tamper_resistance_loss_type: str | None = None
    tar_tamper_resistance_loss_lower_bound: float | None = None
    """Without effect unless `unbounded` is false, as in TAR."""
    unbounded: bool = True
    tar_retain_scale: float | None = None
    retain_representations: bool | None = None
    retain_model_name: str | None = None
    """Directory of the reference model of the retain loss; the input model where absent."""
    schedule_lambda: float | None = None
    use_weighting_schedule: bool = True
    """Whether inner steps are weighted by `schedule_lambda`; equally otherwise."""
    lr: float | None = None
    warmup_steps: int | None = None
    random_seed: int = 42

    overrides: list[str] = field(default_factory=list)
    """More keys of the run file, as `--set` takes them: "tar.outer.optimizer=adamw"."""
    temper: str = "temper"
    """The program, by name or path."""
    device: str = "auto"
    resume: bool = False
    """Go on with a run that was stopped."""


def _toml(value: Any) -> str:
    """A value as TOML on one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (str, Path)):
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_toml(str(k))} = {_toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml, value)) + "]"
    raise ValueError(f"a run file cannot hold {value!r}")


def _table(name: str, values: dict[str, Any]) -> list[str]:
    return [f"[{name}]"] + [f"{_toml(key)} = {_toml(value)}" for key, value in values.items()] if values else []


def run_file(config: TemperConfig) -> str:
    """The run file that a configuration stands for. Relative paths count from the working directory."""
    tar = {key: getattr(config, name) for name, key in _TAR_KEYS.items() if getattr(config, name) is not None}
    if not config.use_weighting_schedule:
        tar["schedule_lambda"] = "equal"
    elif config.schedule_lambda is not None:
        tar["schedule_lambda"] = config.schedule_lambda
    if not config.unbounded and config.tar_tamper_resistance_loss_lower_bound is not None:
        tar["lower_bound"] = config.tar_tamper_resistance_loss_lower_bound
    outer = {"lr": config.lr, "warmup": config.warmup_steps}
    model = {"path": config.input_checkpoint_path.absolute()}
    if config.retain_model_name is not None:
        model["reference"] = Path(config.retain_model_name).absolute()
    lines = [f"preset = {_toml(config.subject)}"] if config.subject is not None else []
    lines += [f"seed = {config.random_seed}"] + _table("model", model)
    for name, stream in config.data.items():
        stream = dict(stream) if isinstance(stream, dict) else {"path": stream}
        if "path" in stream:
            stream["path"] = Path(stream["path"]).absolute()
        lines += _table(f"data.{_toml(name)}", stream)
    if config.safeguard is not None:
        lines += _table("safeguard", config.safeguard)
    lines += _table("tar", tar) + _table("tar.outer", {key: value for key, value in outer.items() if value is not None})
    for adversary in config.adversaries or []:
        lines += ["[" + line + "]" if line == "[tar.adversary]" else line for line in _table("tar.adversary", adversary)]
    return "\n".join(lines) + "\n"


@register_defense(NAME, TemperConfig)
class TemperDefense(AlignmentDefense[TemperConfig]):
    """TAR by `temper harden`, as a program of its own."""

    name = NAME

    def run_defense(self) -> Path:
        """Hardens the input model and returns the output directory, which Transformers loads.

        Raises FileExistsError where the output holds something already, and TemperError with temper's message.
        """
        config = self.defense_config
        out = config.output_checkpoint_path
        if not config.resume and out.exists() and not (out.is_dir() and not any(out.iterdir())):
            raise FileExistsError(f"{out} exists already: remove it, choose another output, or set `resume`")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "run.toml"
            path.write_text(run_file(config), encoding="utf-8")
            command = [config.temper, "harden", str(path), "--out", str(out), "--device", config.device]
            command += [word for override in config.overrides for word in ("--set", override)]
            self._run(command + ["--resume"] * config.resume)
        return out

    @staticmethod
    def _run(command: list[str]) -> None:
        logger.info("%s", " ".join(command))
        try:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        except FileNotFoundError as error:
            raise TemperError(f"{command[0]} is not there: install temper, or set `temper` to its path") from error
        last: deque[str] = deque(maxlen=20)
        assert process.stderr is not None
        for line in process.stderr:
            logger.info("%s", line.rstrip())
            last.append(line.rstrip())
        if process.wait() != 0:
            said = [line for line in last if line.startswith("temper: ")] or list(last)
            raise TemperError(f"{said[-1] if said else 'no message'} (exit code {process.returncode})")
