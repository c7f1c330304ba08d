//! Every loss that a defence is composed of gives the bits of the evaluator's own method, in the loss and in the gradient.

use std::sync::Arc;

use temper::backend::cpu::Cpu;
use temper::error::Error;
use temper::model::{Batch, GradientDestinations, Gradients, Model, Parameters};
use temper::objective::{
    EntropyOver, Evaluator, LossBatch, LossPass, LossTape, Margin, NegativePreferences, PreferencePairs, Prepared,
    Representations, Subject, Teaching, TermLoss,
};
use temper::ops::IGNORE_INDEX;
use temper::random::{Random, Stream};

use crate::support::models::tiny;
use crate::support::numbers::{bits, normals};

const SCALE: f32 = -0.75;

struct Bench {
    model: Arc<Model<Cpu>>,
    evaluator: Evaluator<Cpu>,
    weights: Parameters<Cpu>,
    reference: Parameters<Cpu>,
    batch: LossBatch<Cpu>,
}

/// Four sequences, two of them with padding and one with a prompt that is not learned.
fn batch() -> Batch {
    let mut random = Random::new(3, Stream::Data, 0, 0);
    let mut batch = Batch::default();
    for (length, valid, prompt) in [(8, 8, 1), (6, 4, 1), (11, 11, 5), (3, 2, 1)] {
        let tokens: Vec<u32> = (0..length).map(|_| random.below(37) as u32).collect();
        let mut labels = tokens.clone();
        labels[valid..].fill(IGNORE_INDEX);
        labels[..prompt].fill(IGNORE_INDEX);
        batch.push(&tokens, &labels, valid);
    }
    batch
}

impl Bench {
    fn new() -> Self {
        let model = Arc::new(Model::new(Cpu, tiny(), 64).unwrap());
        let parameters = |seed| {
            let values = normals(seed, model.layout().len(), 0.25);
            Parameters::from_host(&Cpu, "weights", model.layout(), &values).unwrap()
        };
        Self {
            evaluator: Evaluator::new(Arc::clone(&model), 64, &[]).unwrap(),
            weights: parameters(1),
            reference: parameters(2),
            batch: LossBatch::new(&model, batch()).unwrap(),
            model,
        }
    }

    /// The losses and the gradient that `work` leaves.
    fn outcome(
        &mut self,
        work: impl FnOnce(&mut Evaluator<Cpu>, LossPass<Cpu>, &Parameters<Cpu>),
    ) -> (Vec<f64>, Vec<u32>) {
        let mut tape = LossTape::new(&Cpu, 2).unwrap();
        let mut gradients = Gradients::zeros(&Cpu, "gradient", self.model.layout()).unwrap();
        let pass = LossPass {
            subject: Subject::plain(&self.weights),
            batch: &self.batch,
            scale: SCALE,
            destinations: Some(GradientDestinations::of_weights(&mut gradients)),
            loss: tape.slot(0),
        };
        work(&mut self.evaluator, pass, &self.reference);
        (tape.read(&Cpu).unwrap(), bits(&gradients.download(&Cpu).unwrap()))
    }

    /// Holds a term's loss to the evaluator's own method, twice with what was prepared once.
    fn compare(&mut self, loss: &TermLoss, own: impl FnOnce(&mut Evaluator<Cpu>, LossPass<Cpu>, &Parameters<Cpu>)) {
        let expected = self.outcome(own);
        let filled = expected.0.iter().take_while(|&&value| value != 0.0).count();
        assert_eq!(loss.slots(), filled, "{loss:?}");
        let prepared = match loss.needs_reference() {
            true => loss.prepare(&mut self.evaluator, &self.reference, &self.batch).unwrap(),
            false => Prepared::default(),
        };
        for _ in 0..2 {
            let found = self.outcome(|evaluator, pass, _| loss.evaluate(evaluator, pass, &prepared).unwrap());
            assert!(found == expected, "{loss:?}: {:?} and {:?}, or other gradients", found.0, expected.0);
        }
        prepared.give_back(&mut self.evaluator);
    }
}

#[test]
fn terms_give_the_bits_of_the_losses_that_they_name() {
    let mut bench = Bench::new();
    bench.compare(&TermLoss::CrossEntropy, |evaluator, pass, _| evaluator.cross_entropy(pass).unwrap());
    for over in [EntropyOver::Valid, EntropyOver::All, EntropyOver::Learned] {
        bench.compare(&TermLoss::NegativeEntropy { over }, |evaluator, pass, _| {
            evaluator.negative_entropy(pass, over).unwrap();
        });
        bench.compare(&TermLoss::Collapse { token: 9, over }, |evaluator, pass, _| {
            evaluator.collapse(pass, 9, over).unwrap();
        });
        bench.compare(&TermLoss::TeacherDivergence { over }, |evaluator, pass, reference| {
            let teacher = evaluator.teacher(reference, pass.batch).unwrap();
            evaluator.teacher_divergence(pass, Teaching { teacher: &teacher, over }).unwrap();
        });
        bench.compare(&TermLoss::Retain { over }, |evaluator, pass, reference| {
            let states = evaluator.hidden_states(reference, pass.batch).unwrap();
            evaluator.retain(pass, Representations { reference: &states, over }).unwrap();
        });
    }
    bench.compare(&TermLoss::Preference { beta: 0.3 }, |evaluator, pass, reference| {
        let margins = evaluator.preference_margins(Subject::plain(reference), pass.batch).unwrap();
        evaluator.preference(pass, PreferencePairs { reference_margins: &margins, beta: 0.3 }).unwrap();
    });
    for length_normalised in [false, true] {
        let loss = TermLoss::NegativePreference { beta: 0.3, length_normalised };
        bench.compare(&loss, |evaluator, pass, reference| {
            let log_probabilities =
                evaluator.sequence_log_probabilities(Subject::plain(reference), pass.batch).unwrap();
            let reference_log_probabilities = &log_probabilities;
            let preferences = NegativePreferences { reference_log_probabilities, beta: 0.3, length_normalised };
            evaluator.negative_preference(pass, preferences).unwrap();
        });
    }
    bench.compare(&TermLoss::SimpleNegativePreference { beta: 0.3, gamma: 0.2 }, |evaluator, pass, _| {
        evaluator.simple_negative_preference(pass, Margin { beta: 0.3, gamma: 0.2 }).unwrap();
    });
}

#[test]
fn a_loss_against_the_reference_model_refuses_what_was_prepared_for_another() {
    let mut bench = Bench::new();
    let over = EntropyOver::Valid;
    for loss in [
        TermLoss::Preference { beta: 0.3 },
        TermLoss::NegativePreference { beta: 0.3, length_normalised: false },
        TermLoss::Retain { over },
        TermLoss::TeacherDivergence { over },
    ] {
        let (losses, _) = bench.outcome(|evaluator, pass, _| {
            let error = loss.evaluate(evaluator, pass, &Prepared::default()).unwrap_err();
            assert!(matches!(error, Error::Defect(_)), "{error}");
        });
        assert_eq!(losses, [0.0, 0.0]);
    }
}

#[test]
fn a_model_cannot_collapse_to_a_token_that_it_does_not_have() {
    let mut bench = Bench::new();
    let loss = TermLoss::Collapse { token: 37, over: EntropyOver::Valid };
    bench.outcome(|evaluator, pass, _| {
        let error = loss.evaluate(evaluator, pass, &Prepared::default()).unwrap_err().to_string();
        assert!(error.starts_with("collapse.token: 37 is no token of a vocabulary of 37"), "{error}");
    });
}

/// A teacher of other weights diverges; the model itself does not, and teaches it nothing.
#[test]
fn a_model_learns_nothing_from_itself() {
    let mut bench = Bench::new();
    let loss = TermLoss::TeacherDivergence { over: EntropyOver::Valid };
    let prepared = loss.prepare(&mut bench.evaluator, &bench.weights, &bench.batch).unwrap();
    let (losses, gradient) = bench.outcome(|evaluator, pass, _| loss.evaluate(evaluator, pass, &prepared).unwrap());
    assert_eq!(losses[0], 0.0);
    assert!(gradient.iter().all(|bits| f32::from_bits(*bits) == 0.0));
}
