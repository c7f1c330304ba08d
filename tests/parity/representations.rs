//! Losses on hidden states of chosen depths, as PyTorch computes them from the formulas of the papers.

use temper::huggingface::TensorFile;
use temper::model::{GradientDestinations, Gradients};
use temper::objective::{EntropyOver, HiddenKind, HiddenTerm, LossBatch, LossPass, LossTape, Subject, TermLoss};
use temper::ops::Backend;

use crate::reference::{Bounds, Reference, padded_batch, within};
use crate::support::numbers::relative;

pub fn losses_on_chosen_states_have_the_losses_and_gradients_of_pytorch<B: Backend>(backend: &B, bounds: &Bounds) {
    let reference = Reference::open(backend, "mistral");
    let base = reference.base();
    let theirs = TensorFile::open(&reference.path.join("representations.safetensors")).unwrap();
    let text = std::fs::read_to_string(reference.path.join("representations.json")).unwrap();
    let numbers: serde_json::Value = serde_json::from_str(&text).unwrap();
    let number = |name: &str| numbers[name].as_f64().unwrap();
    let control = HiddenKind::ControlVector { coefficient: number("coefficient") as f32, seed: number("seed") as u64 };
    // Cosines turn their sign, so that their gradients are as sensitive as those of random mapping.
    for (name, kind, bound) in [
        ("distance", HiddenKind::Distance, bounds.gradient),
        ("squared_distance", HiddenKind::SquaredDistance, bounds.gradient),
        ("control_vector", control, bounds.gradient),
        ("cosine", HiddenKind::Cosine, bounds.mapping_gradient),
        ("triplet", HiddenKind::Triplet { margin: number("margin") as f32 }, bounds.mapping_gradient),
    ] {
        let depths = numbers[format!("depths.{name}")].as_array().unwrap();
        let depths = depths.iter().map(|depth| depth.as_u64().unwrap() as usize).collect();
        let term = TermLoss::HiddenStates(HiddenTerm { kind, depths, over: EntropyOver::Valid });
        let batch = LossBatch::new(&reference.model, padded_batch(&reference)).unwrap();
        let mut evaluator = reference.evaluator();
        let mut gradients = Gradients::zeros(backend, "gradient", reference.model.layout()).unwrap();
        let mut tape = LossTape::new(backend, 2).unwrap();
        let prepared = term.prepare(&mut evaluator, &base, &batch).unwrap();
        for (slot, destinations) in [(0, Some(GradientDestinations::of_weights(&mut gradients))), (1, None)] {
            let subject = Subject::plain(&reference.weights);
            let pass = LossPass { subject, batch: &batch, scale: 1.0, destinations, loss: tape.slot(slot) };
            term.evaluate(&mut evaluator, pass, &prepared).unwrap();
        }
        let expected = number(&format!("loss.{name}"));
        for loss in tape.read(backend).unwrap() {
            within(&format!("{name} loss"), (loss / expected - 1.0).abs(), bounds.loss);
        }
        let values = gradients.download(backend).unwrap();
        let prefix = format!("grad.{name}.");
        let mut compared = 0;
        for entry in gradients.layout().entries() {
            let Ok(expected) = theirs.read_f32(&format!("{prefix}{}", entry.name)) else { continue };
            let ours = &values[entry.block.range()];
            within(&format!("{name} gradient of {}", entry.name), relative(ours, &expected), bound);
            compared += 1;
        }
        assert!(compared >= 3, "{name}: {compared} gradients");
    }
}
