//! The losses of defences that need no attack: values and gradients are those of PyTorch.

use temper::huggingface::TensorFile;
use temper::model::{GradientDestinations, Gradients};
use temper::objective::{EntropyOver, LossBatch, LossPass, LossTape, Prepared, Subject, TermLoss};
use temper::ops::Backend;

use crate::reference::{Bounds, Reference, padded_batch};
use crate::support::models::fixture;
use crate::support::numbers::relative;

pub fn losses_of_defences_have_the_values_and_gradients_of_pytorch<B: Backend>(backend: &B, bounds: &Bounds) {
    for folder in ["llama3", "qwen3"] {
        let reference = Reference::open(backend, folder);
        let base = reference.base();
        let tensors = TensorFile::open(&fixture(&format!("{folder}/losses.safetensors"))).unwrap();
        let facts = std::fs::read_to_string(fixture(&format!("{folder}/losses.json"))).unwrap();
        let facts: serde_json::Value = serde_json::from_str(&facts).unwrap();
        let number = |name: &str| facts[name].as_f64().unwrap();
        let beta = number("beta") as f32;
        let over = EntropyOver::Learned;
        let batch = LossBatch::new(&reference.model, padded_batch(&reference)).unwrap();
        let mut evaluator = reference.evaluator();
        let mut beyond = Vec::new();
        let mut hold = |what: String, error: f64, bound: f64| {
            if error > bound || error.is_nan() {
                beyond.push(format!("{what}: {error:.3e} is above {bound:.1e}"));
            }
        };
        for (name, loss) in [
            ("npo", TermLoss::NegativePreference { beta, length_normalised: false }),
            ("npo_average", TermLoss::NegativePreference { beta, length_normalised: true }),
            ("simnpo", TermLoss::SimpleNegativePreference { beta, gamma: number("gamma") as f32 }),
            ("collapse", TermLoss::Collapse { token: number("token") as u32, over }),
            ("teacher", TermLoss::TeacherDivergence { over }),
        ] {
            let prepared = match loss.needs_reference() {
                true => loss.prepare(&mut evaluator, &base, &batch).unwrap(),
                false => Prepared::default(),
            };
            let mut gradients = Gradients::zeros(backend, "gradient", reference.model.layout()).unwrap();
            let mut tape = LossTape::new(backend, 1).unwrap();
            let pass = LossPass {
                subject: Subject::plain(&reference.weights),
                batch: &batch,
                scale: 1.0,
                destinations: Some(GradientDestinations::of_weights(&mut gradients)),
                loss: tape.slot(0),
            };
            loss.evaluate(&mut evaluator, pass, &prepared).unwrap();
            let ours = tape.read_one(backend, 0).unwrap();
            // The loss of NPO is a function of sequences' margins over the reference model, with a slope below 2.
            let bound = if name == "npo" { bounds.margins_of(folder) } else { bounds.loss };
            hold(format!("{name} of {folder}"), (ours / number(&format!("loss.{name}")) - 1.0).abs(), bound);
            let gradient = gradients.download(backend).unwrap();
            for entry in reference.model.layout().entries() {
                let part = &gradient[entry.block.range()];
                let norm = part.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
                let what = format!("{name} of {folder}: gradient of {}", entry.name);
                let expected = facts[format!("norms.{name}")][&entry.name].as_f64().unwrap();
                hold(format!("{what}, its norm"), (norm / expected - 1.0).abs(), bounds.gradient);
                if let Ok(theirs) = tensors.read_f32(&format!("grad.{name}.{}", entry.name)) {
                    hold(what, relative(part, &theirs), bounds.gradient);
                }
            }
        }
        assert!(beyond.is_empty(), "{beyond:#?}");
    }
}
