//! The plan against the published arithmetic of TAR on Llama-3-8B and against the buffers that are really allocated.

use std::path::Path;

use super::*;
use crate::backend::cpu::Cpu;
use crate::model::{Adapter, Workspace};
use crate::ops::{Backend, Tensor};

fn tiny() -> ModelConfig {
    ModelConfig {
        vocab_size: 100,
        hidden_size: 24,
        intermediate_size: 40,
        num_hidden_layers: 3,
        num_attention_heads: 3,
        num_key_value_heads: 1,
        head_dim: 8,
        ..ModelConfig::llama3_8b()
    }
}

fn preset(name: &str, overrides: &[&str]) -> RunConfig {
    let streams = match name {
        "bio" => &["forget", "camel", "adv_retain", "meta", "retain"][..],
        "refusal" => &["harmful", "meta", "retain"],
        _ => &["forget", "adv_retain", "meta", "retain"],
    };
    let paths: String = streams.iter().map(|s| format!("data.{s}.path = \"{s}.jsonl\"\n")).collect();
    let text = format!("preset = \"{name}\"\nmodel.path = \"m\"\n{paths}");
    let overrides: Vec<String> = overrides.iter().map(|o| o.to_string()).collect();
    RunConfig::from_text(&text, Path::new("/runs/run.toml"), &overrides).unwrap()
}

fn gpu_plan(run: &RunConfig, gpu: &str) -> Plan {
    Plan::new(run, &ModelConfig::llama3_8b(), Target::Gpu(Gpu::find(gpu).unwrap())).unwrap()
}

fn close(value: f64, expected: f64, tolerance: f64) {
    assert!((value / expected - 1.0).abs() <= tolerance, "{value:e} instead of {expected:e}");
}

/// 4.19e16 and 4.46e16 FLOP and 917,915 tokens: counted by hand from the authors' scripts.
#[test]
fn an_outer_step_costs_what_the_published_runs_cost() {
    let bio = gpu_plan(&preset("bio", &[]), "h200");
    close(bio.flop_per_outer_step, 4.19e16, 0.02);
    close(bio.flop, 3.15e19, 0.02);
    let trained: f64 = bio.work.iter().filter(|w| w.name != "reference hidden states").map(|w| w.tokens).sum();
    close(trained, 917_915.0, 0.001);
    close(gpu_plan(&preset("cyber", &[]), "h200").flop_per_outer_step, 4.46e16, 0.02);
}

/// The rooflines of a batch of 8 × 2048 tokens: 526.7 TFLOP for a LoRA attack step, 768.5 for a gradient of all weights.
#[test]
fn single_passes_cost_what_the_rooflines_say() {
    let shape =
        ["data.forget.batch=8", "data.forget.max_length=2048", "data.meta.batch=8", "data.meta.max_length=2048"];
    let mut overrides = shape.to_vec();
    overrides.extend(["tar.inner_steps=1", "tar.tr_every=1"]);
    overrides.push("tar.adversary=[{name=\"lora\", data=\"forget\", params=\"lora\", rank=16, lr=1e-5}]");
    let plan = gpu_plan(&preset("bio", &overrides), "h200");
    close(plan.work[0].flop, 526.7e12, 0.001);
    close(plan.work[1].flop, 768.5e12, 0.001);
}

/// The ledger of full-parameter TAR of an 8B model on one H200: (buffer, place, GB).
#[test]
fn full_parameter_tar_of_8b_fits_one_h200_as_the_ledger_says() {
    let plan = gpu_plan(&preset("bio", &[]), "h200");
    assert_eq!(plan.parameters, 8_030_261_248);
    assert_eq!(plan.largest_batch_tokens, 16_384);
    assert_eq!(plan.micro_batch_tokens, 8_192);
    for (name, place, gigabytes) in [
        ("attacked weights", Place::Device, 16.06),
        ("remainders of the weights", Place::Device, 16.06),
        ("meta-gradient", Place::Device, 32.1),
        ("attack optimizer", Place::Device, 32.1),
        ("activations", Place::Device, 24.7),
        ("unattacked weights", Place::Host, 32.1),
        ("outer optimizer", Place::Host, 64.2),
        ("reference weights", Place::Host, 16.06),
    ] {
        let buffer = plan.buffers.iter().find(|b| b.name == name && b.place == place).unwrap();
        close(buffer.bytes as f64 / 1e9, gigabytes, 0.005);
    }
    assert!(plan.fits());
    assert!((110e9..130e9).contains(&(plan.device_bytes as f64)), "{}", plan.device_bytes);
    let optimizer = plan.buffers.iter().find(|b| b.name == "attack optimizer").unwrap();
    assert_eq!(optimizer.choice, "bf16 states");
}

/// Activations of 16,384 tokens: 49.4 GB where norms are recomputed.
#[test]
fn a_lora_attack_on_8b_keeps_16k_tokens_on_an_h200() {
    let lora =
        "tar.adversary=[{name=\"lora\", data=\"forget\", params=\"lora\", targets=[\"q_proj\"], rank=1, lr=1e-5}]";
    let plan = gpu_plan(&preset("bio", &[lora]), "h200");
    assert!(plan.fits());
    assert_eq!(plan.micro_batch_tokens, 16_384);
    let activations = plan.buffers.iter().find(|b| b.name == "activations").unwrap();
    close(activations.bytes as f64, 49.4e9, 0.002);
}

#[test]
fn a_run_that_does_not_fit_is_answered_with_the_setting_that_makes_it_fit() {
    let run = preset("bio", &[]);
    let error = gpu_plan(&run, "h100").ensure_fits().unwrap_err();
    assert_eq!(error.exit_code(), 5);
    assert!(error.to_string().ends_with("; set params = \"lora\" for every [[tar.adversary]]"), "{error}");
    assert!(gpu_plan(&remedied(&run), "h100").fits());

    let enough = Plan::new(&run, &tiny(), Target::Cpu { available: None }).unwrap();
    assert!(enough.fits() && enough.remedy.is_none());
    let short = Plan::new(&run, &tiny(), Target::Cpu { available: Some(enough.device_bytes / 2) }).unwrap();
    let expected = "set data.adv_retain.batch = 16, data.camel.batch = 16, data.forget.batch = 16, \
                    data.meta.batch = 16, data.retain.batch = 16";
    assert_eq!(short.remedy.as_deref(), Some(expected));
    let smaller: Vec<String> = run.data.keys().map(|name| format!("data.{name}.batch=16")).collect();
    let smaller = preset("bio", &smaller.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(Plan::new(&smaller, &tiny(), Target::Cpu { available: Some(enough.device_bytes / 2) }).unwrap().fits());
    let nothing = Plan::new(&run, &tiny(), Target::Cpu { available: Some(1) }).unwrap();
    assert!(nothing.remedy.unwrap().starts_with("no setting of the run file makes it fit"));
}

fn remedied(run: &RunConfig) -> RunConfig {
    let mut changed = run.clone();
    changed.tar.adversary.iter_mut().for_each(|a| a.params = crate::config::ParameterChoice::Lora);
    changed
}

#[test]
fn sequences_longer_than_the_model_are_refused() {
    let error = Plan::new(&preset("bio", &["data.meta.max_length=9000"]), &tiny(), Target::Cpu { available: Some(1) });
    assert!(error.unwrap_err().to_string().starts_with("data.meta.max_length: is more than"));
}

#[test]
fn unknown_gpus_are_answered_with_the_known_ones() {
    assert_eq!(
        Gpu::find("h20").unwrap_err().to_string(),
        "--gpu: `h20` is not a GPU that temper knows; did you mean `h200`?"
    );
}

/// The planned activations are byte for byte those of the workspace that a run allocates, with and without adapters.
#[test]
fn planned_activations_are_the_allocated_ones() {
    let lora = "tar.adversary=[\
        {name=\"a\", data=\"forget\", params=\"lora\", rank=5, targets=[\"q_proj\", \"down_proj\"], lr=1e-5},\
        {name=\"b\", data=\"forget\", params=\"lora\", rank=3, lr=1e-5}]";
    for overrides in [&[][..], &[lora]] {
        let mut overrides = overrides.to_vec();
        overrides.push("data.meta.batch=2");
        let mut run = preset("bio", &overrides);
        run.data.values_mut().for_each(|data| (data.batch, data.max_length) = (3, 7));
        let model = tiny();
        let needs = memory::Needs::new(&run, &model).unwrap();
        assert_eq!(needs.largest_batch, 21);
        let adapters: Vec<Adapter<Cpu>> = (run.tar.adversary.iter())
            .filter_map(|a| a.adapter_config())
            .map(|config| Adapter::zeros(&Cpu, &model, config).unwrap())
            .collect();
        let workspace = Workspace::new(&Cpu, &model, 21, &adapters.iter().collect::<Vec<_>>()).unwrap();
        assert_eq!(needs.workspace_bytes(needs.adapter_columns), allocated(&workspace));
    }
}

fn allocated(workspace: &Workspace<Cpu>) -> u64 {
    let size = |tensor: &Tensor<Cpu>| 4 * Cpu.len(tensor.buffer()) as u64;
    let options = |all: &[Option<Tensor<Cpu>>]| all.iter().flatten().map(size).sum::<u64>();
    let layers = workspace.layers.iter().map(|l| {
        let tensors = [
            &l.input,
            &l.attention_input,
            &l.attention_inverse_rms,
            &l.qkv,
            &l.attention,
            &l.log_sum_exp,
            &l.middle,
            &l.mlp_input,
            &l.mlp_inverse_rms,
            &l.gate_up,
            &l.mlp_hidden,
        ];
        tensors.into_iter().map(size).sum::<u64>() + options(&l.low_rank)
    });
    let w = workspace;
    let outside = [
        &w.last_residual,
        &w.normed,
        &w.inverse_rms,
        &w.delta,
        &w.d_normed,
        &w.d_residual,
        &w.d_input,
        &w.d_qkv,
        &w.d_attention,
        &w.d_gate_up,
        &w.d_mlp_hidden,
        &w.values,
        &w.weights,
    ];
    layers.sum::<u64>() + outside.into_iter().map(size).sum::<u64>() + options(&w.d_low_rank)
}

/// 600 steps of 32 restricted and 64 retain sequences, as published for random mapping; the other methods also need what the
/// reference model computes.
#[test]
fn the_safeguard_costs_its_gradients_and_what_the_reference_computes() {
    let model = ModelConfig::llama3_8b();
    let flop = |method: &str| {
        let method = format!("safeguard.method={method}");
        let run = preset("bio", &[&method, "safeguard.data=forget", "safeguard.steps=600"]);
        Plan::new(&run, &model, Target::Cpu { available: None }).unwrap().safeguard_flop
    };
    // 45.4 GFLOP for a token forward and backward (research on the published runs), and a third of it forward.
    let (token, tokens) = (45.4e9, 256.0 * 600.0);
    close(flop("random_mapping"), 96.0 * tokens * token, 0.01);
    close(flop("max_entropy"), (96.0 + 64.0 / 3.0) * tokens * token, 0.01);
    close(flop("refusal"), (128.0 + 64.0 / 3.0 + 64.0 / 3.0) * tokens * token, 0.01);
    assert_eq!(Plan::new(&preset("bio", &[]), &model, Target::Cpu { available: None }).unwrap().safeguard_flop, 0.0);
}
