//! Parity with PyTorch, Transformers and PEFT on the folders of `tests/fixtures`: forward, every loss's gradients, every
//! optimizer, LoRA. `main.rs` runs these checks on every backend.

use crate::reference::{Bounds, Reference, load, padded_batch, within};
use crate::support::models::FOLDERS;
use crate::support::numbers::{relative, relative_to_update};
use temper::huggingface::read_adapter;
use temper::model::{Adapter, GradientDestinations, Gradients, ParameterLayout, Parameters};
use temper::objective::{
    Directions, EntropyOver, Evaluator, LossBatch, LossPass, LossTape, PreferencePairs, Representations, Subject,
};
use temper::ops::{Backend, Tensor};
use temper::optimizer::{OptimizerConfig, OptimizerKind, Schedule};
use temper::training::Trainer;

pub fn logits_and_hidden_states_are_those_of_transformers<B: Backend>(backend: &B, bounds: &Bounds) {
    for folder in FOLDERS {
        let reference = Reference::open(backend, folder);
        let mut evaluator = reference.evaluator();
        let batch = LossBatch::new(&reference.model, padded_batch(&reference)).unwrap();
        evaluator.forward(Subject::plain(&reference.weights), &batch).unwrap();
        let tokens = batch.host().len();
        let all: Vec<u32> = (0..tokens as u32).collect();
        let logits = reference.model.logits(&reference.weights, evaluator.workspace(), &all).unwrap();
        within(&format!("{folder} logits"), relative(&logits, &reference.f32("logits")), bounds.forward);
        for level in 0..=reference.model.config.num_hidden_layers {
            let hidden = evaluator.workspace().hidden_state(level, tokens);
            let ours = backend.download_f32(hidden.buffer, hidden.offset, hidden.len()).unwrap();
            let theirs = reference.f32(&format!("hidden.{level}"));
            within(&format!("{folder} hidden state {level}"), relative(&ours, &theirs), bounds.forward);
        }
    }
}

/// Checks every gradient tensor of `grad.<loss>.*`.
fn check_gradients<B: Backend>(reference: &Reference<B>, bounds: &Bounds, loss: &str, gradients: &Gradients<B>) {
    let values = gradients.download(reference.backend()).unwrap();
    for entry in gradients.layout().entries() {
        let ours = &values[entry.block.range()];
        let name = format!("grad.{loss}.{}", entry.name);
        if reference.tensors.info(&name).is_none() {
            // PyTorch has no gradient where the loss does not reach: random mapping ends before the head.
            assert_eq!((loss, entry.name.as_str()), ("random_mapping", "lm_head.weight"));
            assert!(ours.iter().all(|g| *g == 0.0));
            continue;
        }
        let theirs = reference.f32(&name);
        let folder = &reference.folder;
        let bound = if loss == "random_mapping" { bounds.mapping_gradient_of(folder) } else { bounds.gradient };
        within(&format!("{folder}: {loss} gradient of {}", entry.name), relative(ours, &theirs), bound);
    }
}

struct Run<'a, B: Backend> {
    reference: &'a Reference<B>,
    bounds: &'a Bounds,
    evaluator: Evaluator<B>,
    gradients: Gradients<B>,
    tape: LossTape<B>,
}

impl<'a, B: Backend> Run<'a, B> {
    fn new(reference: &'a Reference<B>, bounds: &'a Bounds) -> Self {
        let backend = reference.backend();
        Self {
            reference,
            bounds,
            evaluator: reference.evaluator(),
            gradients: Gradients::zeros(backend, "gradient", reference.model.layout()).unwrap(),
            tape: LossTape::new(backend, 2).unwrap(),
        }
    }

    /// Runs `loss` on `batch`, checks its gradients, and returns the losses.
    fn gradients(
        &mut self,
        name: &str,
        batch: &LossBatch<B>,
        loss: impl FnOnce(&mut Evaluator<B>, LossPass<B>),
    ) -> Vec<f64> {
        let backend = self.reference.backend();
        self.gradients.clear(backend).unwrap();
        self.tape.clear(backend).unwrap();
        let pass = LossPass {
            subject: Subject::plain(&self.reference.weights),
            batch,
            scale: 1.0,
            destinations: Some(GradientDestinations::of_weights(&mut self.gradients)),
            loss: self.tape.slot(0),
        };
        loss(&mut self.evaluator, pass);
        check_gradients(self.reference, self.bounds, name, &self.gradients);
        self.tape.read(backend).unwrap()
    }

    /// The losses that `loss` computes on `batch` where nobody wants its gradient.
    fn losses(&mut self, batch: &LossBatch<B>, loss: impl FnOnce(&mut Evaluator<B>, LossPass<B>)) -> Vec<f64> {
        let backend = self.reference.backend();
        self.tape.clear(backend).unwrap();
        let subject = Subject::plain(&self.reference.weights);
        let pass = LossPass { subject, batch, scale: 1.0, destinations: None, loss: self.tape.slot(0) };
        loss(&mut self.evaluator, pass);
        self.tape.read(backend).unwrap()
    }

    fn check_loss(&self, name: &str, ours: f64) {
        let theirs = self.reference.scalar(name);
        within(&format!("{name} of {}", self.reference.path.display()), (ours / theirs - 1.0).abs(), self.bounds.loss);
    }
}

pub fn cross_entropy_and_entropy_have_the_losses_and_gradients_of_pytorch<B: Backend>(backend: &B, bounds: &Bounds) {
    for folder in FOLDERS {
        let reference = Reference::open(backend, folder);
        let batch = LossBatch::new(&reference.model, padded_batch(&reference)).unwrap();
        let mut run = Run::new(&reference, bounds);
        let losses = run.gradients("ce", &batch, |evaluator, pass| evaluator.cross_entropy(pass).unwrap());
        run.check_loss("loss.ce", losses[0]);
        let losses = run.gradients("entropy_valid", &batch, |evaluator, pass| {
            evaluator.negative_entropy(pass, EntropyOver::Valid).unwrap();
        });
        run.check_loss("loss.entropy_valid", losses[0]);
        let losses = run.losses(&batch, |evaluator, pass| evaluator.negative_entropy(pass, EntropyOver::All).unwrap());
        run.check_loss("loss.entropy_all", losses[0]);
    }
}

pub fn retain_and_random_mapping_have_the_losses_and_gradients_of_pytorch<B: Backend>(backend: &B, bounds: &Bounds) {
    for folder in FOLDERS {
        let reference = Reference::open(backend, folder);
        let base = reference.base();
        let batch = LossBatch::new(&reference.model, reference.batch("retain_ids")).unwrap();
        let config = &reference.model.config;
        let directions = reference.f32("random_mapping_table");
        let table = Tensor::from_f32(backend, "table", config.vocab_size, config.hidden_size, &directions).unwrap();
        let mut run = Run::new(&reference, bounds);
        let over = EntropyOver::All;
        let retain = |evaluator: &mut Evaluator<B>, pass: LossPass<B>| {
            let reference = evaluator.hidden_states(&base, &batch).unwrap();
            evaluator.retain(pass, Representations { reference: &reference, over }).unwrap();
        };
        let random_mapping = |evaluator: &mut Evaluator<B>, pass: LossPass<B>| {
            evaluator.random_mapping(pass, Directions { table: &table, over }).unwrap();
        };
        let with_gradients = run.gradients("retain", &batch, retain);
        for losses in [with_gradients, run.losses(&batch, retain)] {
            run.check_loss("loss.retain_lm", losses[0]);
            run.check_loss("loss.retain_representation", losses[1]);
        }
        let with_gradients = run.gradients("random_mapping", &batch, random_mapping);
        for losses in [with_gradients, run.losses(&batch, random_mapping)] {
            run.check_loss("loss.random_mapping", losses[0]);
        }
    }
}

pub fn preference_loss_has_the_loss_and_gradients_of_pytorch<B: Backend>(backend: &B, bounds: &Bounds) {
    for folder in FOLDERS {
        let reference = Reference::open(backend, folder);
        let batch = LossBatch::new(&reference.model, preference_pairs(&reference)).unwrap();
        let theirs = |name: &str| reference.f32(name);
        let margins: Vec<f32> =
            theirs("dpo.ref_chosen").iter().zip(theirs("dpo.ref_rejected")).map(|(c, r)| c - r).collect();
        let mut run = Run::new(&reference, bounds);
        let base = reference.base();
        let ours = run.evaluator.preference_margins(Subject::plain(&base), &batch).unwrap();
        within(&format!("{folder}: reference margins"), relative(&ours, &margins), bounds.margins_of(folder));
        let beta = reference.scalar("dpo.beta") as f32;
        let losses = run.gradients("dpo", &batch, |evaluator, pass| {
            evaluator.preference(pass, PreferencePairs { reference_margins: &margins, beta }).unwrap();
        });
        run.check_loss("loss.dpo", losses[0]);
    }
}

/// `dpo.chosen` and `dpo.rejected`, interleaved; the first 8 tokens are the prompt.
fn preference_pairs<B: Backend>(reference: &Reference<B>) -> temper::model::Batch {
    let chosen = reference.batch("dpo.chosen");
    let rejected = reference.batch("dpo.rejected");
    let mut pairs = temper::model::Batch::default();
    for (a, b) in chosen.segments.iter().zip(&rejected.segments) {
        for (batch, s) in [(&chosen, a), (&rejected, b)] {
            let tokens = &batch.tokens[s.start..s.start + s.length];
            let mut labels = tokens.to_vec();
            labels[..8].fill(temper::ops::IGNORE_INDEX);
            pairs.push(tokens, &labels, tokens.len());
        }
    }
    pairs
}

/// (name in the reference, kind, learning rate, warm-up) of every attack in `generate.py`.
const ATTACKS: [(&str, OptimizerKind, f64, u64); 9] = [
    ("adamw", OptimizerKind::AdamW, 1e-3, 0),
    ("adam", OptimizerKind::Adam, 1e-3, 0),
    ("sgd_momentum", OptimizerKind::SgdMomentum, 1e-2, 0),
    ("sgd_nesterov", OptimizerKind::SgdNesterov, 1e-2, 0),
    ("adagrad", OptimizerKind::Adagrad, 1e-2, 0),
    ("adadelta", OptimizerKind::Adadelta, 1.0, 0),
    ("nadam", OptimizerKind::NAdam, 1e-3, 0),
    ("radam", OptimizerKind::RAdam, 1e-3, 0),
    ("schedulefree_adamw", OptimizerKind::ScheduleFreeAdamW, 1e-3, 4),
];

/// Runs eight attack steps on `attack.batch.*` and returns their losses.
fn attack<B: Backend>(reference: &Reference<B>, trainer: &mut Trainer<B>, weights: &mut Parameters<B>) -> Vec<f64> {
    let backend = reference.backend();
    let mut evaluator = match trainer.adapter() {
        None => reference.evaluator(),
        Some(adapter) => Evaluator::new(reference.model.clone(), 256, &[adapter]).unwrap(),
    };
    let mut tape = LossTape::new(backend, 8).unwrap();
    for step in 0..8 {
        let batch = LossBatch::new(&reference.model, reference.batch(&format!("attack.batch.{step}"))).unwrap();
        trainer.cross_entropy_step(&mut evaluator, weights, &batch, 1.0, tape.slot(step)).unwrap();
    }
    tape.read(backend).unwrap()
}

fn check_losses(bounds: &Bounds, what: &str, ours: &[f64], theirs: &[f64]) {
    for (step, (a, b)) in ours.iter().zip(theirs).enumerate() {
        within(&format!("{what}, loss of step {step}"), (a / b - 1.0).abs(), bounds.loss);
    }
}

pub fn full_parameter_attacks_follow_every_optimizer_of_pytorch<B: Backend>(backend: &B, bounds: &Bounds) {
    let reference = Reference::open(backend, "llama3");
    let start = reference.weights.download(backend).unwrap();
    for (name, kind, lr, warmup) in ATTACKS {
        let schedule = Schedule { warmup, ..Schedule::constant() };
        let config = OptimizerConfig { schedule, ..OptimizerConfig::new(kind, lr) };
        let mut trainer = Trainer::full(backend, reference.model.layout(), config).unwrap();
        let mut weights = Parameters::from_host(backend, "weights", reference.model.layout(), &start).unwrap();
        let losses = attack(&reference, &mut trainer, &mut weights);
        check_losses(bounds, name, &losses, &reference.losses(&format!("attack.full.{name}.losses")));
        let tensor = "model.layers.1.mlp.down_proj.weight";
        let block = reference.model.layout().find(tensor).unwrap().block;
        let place = block.range();
        let after = weights.download(backend).unwrap();
        let theirs = reference.f32(&format!("attack.full.{name}.{tensor}"));
        let error = relative_to_update(&after[place.clone()], &theirs, &start[place]);
        within(&format!("{name} weights"), error, bounds.update);
    }
}

/// The adapter of the folder, as a trainer with AdamW at 1e-3.
fn lora_trainer<B: Backend>(reference: &Reference<B>) -> Trainer<B> {
    let backend = reference.backend();
    let (config, factors) = read_adapter(&reference.path.join("adapter"), &reference.model.config).unwrap();
    let mut adapter = Adapter::zeros(backend, &reference.model.config, config).unwrap();
    adapter.parameters.upload(backend, &factors).unwrap();
    Trainer::lora(backend, adapter, OptimizerConfig::new(OptimizerKind::AdamW, 1e-3), 0).unwrap()
}

/// PEFT's name of a factor inside a training process.
fn peft_name(name: &str) -> String {
    name.replace(".weight", ".default.weight")
}

pub fn lora_attacks_follow_peft<B: Backend>(backend: &B, bounds: &Bounds) {
    for folder in FOLDERS {
        let reference = Reference::open(backend, folder);
        let mut trainer = lora_trainer(&reference);
        let start = trainer.adapter().unwrap().parameters.download(backend).unwrap();
        check_lora_gradients(&reference, bounds, &mut trainer);
        let mut weights = load(&reference.model, &reference.path);
        let losses = attack(&reference, &mut trainer, &mut weights);
        check_losses(bounds, folder, &losses, &reference.losses("attack.lora.adamw.losses"));
        let adapter = &trainer.adapter().unwrap().parameters;
        let after = adapter.download(backend).unwrap();
        let mut quiet = [const { Vec::new() }; 3];
        for entry in adapter.layout().entries() {
            let place = entry.block.range();
            let theirs = reference.f32(&format!("lora.after.{}", peft_name(&entry.name)));
            let values = [&after[place.clone()], &theirs, &start[place]];
            let error = relative_to_update(values[0], values[1], values[2]);
            within(&format!("{folder} {}", entry.name), error, factor_bound(bounds, folder, &entry.name));
            if !NOISY.iter().any(|noisy| (noisy.0, noisy.1) == (folder, entry.name.as_str())) {
                quiet.iter_mut().zip(values).for_each(|(all, part)| all.extend_from_slice(part));
            }
        }
        let [after, theirs, start] = quiet;
        within(&format!("{folder}, all quiet factors"), relative_to_update(&after, &theirs, &start), bounds.update);
    }
}

/// Factors that hold an element whose first gradient is rounding noise (1e-8, where the others' are 4e-3), of which Adam makes
/// a whole step; and how far apart they may end. PyTorch's own two attention implementations end 2.6e-4 and 3.5e-4 apart.
const NOISY: [(&str, &str, f64); 2] = [
    ("llama31", "base_model.model.model.layers.1.mlp.gate_proj.lora_A.weight", 3e-4),
    ("qwen3-yarn", "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight", 1e-3),
];

/// 1e-4 of the update's norm, but for noisy factors.
fn factor_bound(bounds: &Bounds, folder: &str, name: &str) -> f64 {
    let noisy = NOISY.iter().find(|noisy| (noisy.0, noisy.1) == (folder, name));
    noisy.map_or(bounds.update, |(_, _, bound)| bounds.update.max(*bound))
}

fn check_lora_gradients<B: Backend>(reference: &Reference<B>, bounds: &Bounds, trainer: &mut Trainer<B>) {
    let backend = reference.backend();
    let adapter = trainer.adapter().unwrap();
    let mut evaluator = Evaluator::new(reference.model.clone(), 256, &[adapter]).unwrap();
    let batch = LossBatch::new(&reference.model, reference.batch("attack.batch.0")).unwrap();
    let mut tape = LossTape::new(backend, 1).unwrap();
    trainer.clear_gradients(backend).unwrap();
    let (subject, destinations) = trainer.pass(&reference.weights);
    let destinations = Some(destinations);
    let pass = LossPass { subject, batch: &batch, scale: 1.0, destinations, loss: tape.slot(0) };
    evaluator.cross_entropy(pass).unwrap();
    let gradients = trainer.gradients().download(backend).unwrap();
    for entry in trainer.gradients().layout().entries() {
        let ours = &gradients[entry.block.range()];
        let theirs = reference.f32(&format!("lora.grad.{}", peft_name(&entry.name)));
        within(&format!("gradient of {}", entry.name), relative(ours, &theirs), bounds.gradient);
    }
}

/// TAR with a LoRA adversary: the tamper-resistance gradient is taken at the merged weights. The factors are those that PEFT
/// ended on, since the noise of an attack's first steps is not what this is about.
pub fn the_gradient_of_full_weights_under_an_adapter_is_that_of_the_merged_weights<B: Backend>(
    backend: &B,
    bounds: &Bounds,
) {
    for folder in FOLDERS {
        let reference = Reference::open(backend, folder);
        let mut trainer = lora_trainer(&reference);
        let weights = load(&reference.model, &reference.path);
        let factors = &mut trainer.adapter_mut().unwrap().parameters;
        let names = factors.layout().entries().iter().map(|entry| format!("lora.after.{}", peft_name(&entry.name)));
        let trained: Vec<f32> = names.flat_map(|name| reference.f32(&name)).collect();
        factors.upload(backend, &trained).unwrap();
        let adapter = trainer.adapter().unwrap();
        let mut evaluator = Evaluator::new(reference.model.clone(), 256, &[adapter]).unwrap();
        let mut gradients = Gradients::zeros(backend, "gradient", reference.model.layout()).unwrap();
        let mut tape = LossTape::new(backend, 1).unwrap();
        let batch = LossBatch::new(&reference.model, reference.batch("attack.batch.7")).unwrap();
        let pass = LossPass {
            subject: trainer.subject(&weights),
            batch: &batch,
            scale: 1.0,
            destinations: Some(GradientDestinations::of_weights(&mut gradients)),
            loss: tape.slot(0),
        };
        evaluator.negative_entropy(pass, EntropyOver::All).unwrap();
        let loss = tape.read_one(backend, 0).unwrap();
        within("entropy", (loss / reference.scalar("loss.entropy_after_lora") - 1.0).abs(), bounds.loss);
        let values = gradients.download(backend).unwrap();
        let layout: &ParameterLayout = gradients.layout();
        for entry in layout.entries() {
            let ours = &values[entry.block.range()];
            let theirs = reference.f32(&format!("grad.entropy_after_lora.{}", entry.name));
            within(&format!("{folder} {}", entry.name), relative(ours, &theirs), bounds.gradient);
        }
    }
}
