//! Recorded steps on the simulated device: the same bits as steps that are queued call by call, and an error where a
//! recording is not what would be queued now.

use std::cell::Cell;
use std::sync::Arc;

use temper::backend::cuda::{Cuda, Driver};
use temper::model::{Adapter, AdapterConfig, Batch, Model, ModelConfig, Parameters};
use temper::objective::{Evaluator, LossBatch, LossTape};
use temper::ops::{self, Backend, DType, Tensor};
use temper::optimizer::{OptimizerConfig, OptimizerKind};
use temper::random::{Random, Stream};
use temper::training::{AnyTrainer, MemorySettings, Moments, Trainer};

use crate::support::models::tiny;
use crate::support::numbers::normals;

/// A hidden state of whole vectors, and a vocabulary that fills none.
fn config() -> ModelConfig {
    ModelConfig { vocab_size: 41, hidden_size: 32, intermediate_size: 48, ..tiny() }
}

/// Random weights.
fn start(model: &Model<Cuda>) -> Vec<f32> {
    normals(1, model.layout().len(), 0.2)
}

/// A batch of sequences of these lengths, with tokens drawn from `seed`.
fn batch(lengths: &[usize], seed: u64) -> Batch {
    let mut random = Random::new(seed, Stream::Data, 0, 0);
    let mut batch = Batch::default();
    for &length in lengths {
        let tokens: Vec<u32> = (0..length).map(|_| random.below(41) as u32).collect();
        batch.push(&tokens, &tokens, length);
    }
    batch
}

/// Recordings that the device has made so far.
fn recordings(driver: &dyn Driver) -> u64 {
    driver.begin_recording().unwrap();
    let graph = driver.end_recording().unwrap();
    driver.forget(graph);
    graph.0 - 1
}

#[derive(Clone, Copy, Debug)]
enum Trains {
    Weights,
    /// With the optimizer's step within the backward pass, and moments in bf16 where the weights are.
    WeightsByParts,
    Adapter {
        dropout: f64,
    },
}

/// Trained weights and losses after steps on two shapes in turn (three of one, two of the other), through one memory or
/// each batch in its own, and the recordings that were made.
fn train(dtype: DType, what: Trains, one_memory: bool) -> (Vec<f32>, Vec<f64>, u64) {
    let cuda = Cuda::simulated(dtype).unwrap();
    let model = Arc::new(Model::new(cuda.clone(), config(), 64).unwrap());
    let mut weights = Parameters::from_host(&cuda, "weights", model.layout(), &start(&model)).unwrap();
    let optimizer = OptimizerConfig::new(OptimizerKind::AdamW, 1e-3);
    let mut trainer = match what {
        Trains::Weights => AnyTrainer::full(&cuda, model.layout(), optimizer, MemorySettings::default()).unwrap(),
        Trains::WeightsByParts => {
            let states = if dtype == DType::Bf16 { Moments::Bf16 } else { Moments::F32 };
            let memory = MemorySettings { states, step_in_backward: true, ..MemorySettings::default() };
            AnyTrainer::full(&cuda, model.layout(), optimizer, memory).unwrap()
        }
        Trains::Adapter { dropout } => {
            let config = AdapterConfig { dropout, ..AdapterConfig::new(4) };
            AnyTrainer::Whole(Trainer::started(&model, Some(&config), optimizer, 3).unwrap())
        }
    };
    let adapters: Vec<&Adapter<Cuda>> = trainer.adapter().into_iter().collect();
    let mut evaluator = Evaluator::new(Arc::clone(&model), 32, &adapters).unwrap();
    let mut tape = LossTape::new(&cuda, 5).unwrap();
    let mut room = LossBatch::with_room(&model, 32).unwrap();
    let before = recordings(cuda.driver());
    for step in 0..5 {
        let batch = batch(if step % 2 == 0 { &[9, 9] } else { &[5, 10, 1] }, step);
        let slot = step as usize;
        if one_memory {
            room.refill(&model, batch).unwrap();
            trainer.cross_entropy_step(&mut evaluator, &mut weights, &room, 1.0, tape.slot(slot)).unwrap();
        } else {
            let own = LossBatch::new(&model, batch).unwrap();
            trainer.cross_entropy_step(&mut evaluator, &mut weights, &own, 1.0, tape.slot(slot)).unwrap();
        }
    }
    let made = recordings(cuda.driver()) - before - 1;
    let trained = trainer.adapter().map_or(&weights, |adapter| &adapter.parameters).download(&cuda).unwrap();
    (trained, tape.read(&cuda).unwrap(), made)
}

#[test]
fn recorded_steps_give_the_same_bits() {
    for dtype in [DType::F32, DType::Bf16] {
        for what in [Trains::Weights, Trains::WeightsByParts, Trains::Adapter { dropout: 0.0 }] {
            let (weights, losses, made) = train(dtype, what, true);
            let (expected, expected_losses, none) = train(dtype, what, false);
            assert!(weights == expected && losses == expected_losses, "{dtype:?} {what:?}");
            // Each shape is executed, then recorded; the simulator records the third step of a shape again, to compare.
            assert_eq!((made, none), (3, 0), "{dtype:?} {what:?}");
        }
    }
}

/// Adversaries of one trajectory after another may share a trainer and have different optimizers.
#[test]
fn another_optimizer_on_the_same_trainer_is_another_recording() {
    let after = |one_memory: bool| {
        let cuda = Cuda::simulated(DType::Bf16).unwrap();
        let model = Arc::new(Model::new(cuda.clone(), config(), 64).unwrap());
        let mut weights = Parameters::from_host(&cuda, "weights", model.layout(), &start(&model)).unwrap();
        let memory = MemorySettings { step_in_backward: true, ..MemorySettings::default() };
        let config = |kind| OptimizerConfig::new(kind, 1e-3);
        let mut trainer = AnyTrainer::full(&cuda, model.layout(), config(OptimizerKind::AdamW), memory).unwrap();
        let mut evaluator = Evaluator::new(Arc::clone(&model), 32, &[]).unwrap();
        let mut tape = LossTape::new(&cuda, 1).unwrap();
        let mut room = LossBatch::with_room(&model, 32).unwrap();
        for (draw, kind) in [OptimizerKind::AdamW, OptimizerKind::NAdam, OptimizerKind::Adagrad].into_iter().enumerate()
        {
            trainer.restart(&cuda, config(kind), 1, draw as u64).unwrap();
            for step in 0..3 {
                let own = LossBatch::new(&model, batch(&[9, 7], step)).unwrap();
                room.refill(&model, batch(&[9, 7], step)).unwrap();
                let batch = if one_memory { &room } else { &own };
                trainer.cross_entropy_step(&mut evaluator, &mut weights, batch, 1.0, tape.slot(0)).unwrap();
            }
        }
        weights.download(&cuda).unwrap()
    };
    assert!(after(true) == after(false));
}

/// The masks are drawn from the number of the step, which a recording would repeat.
#[test]
fn steps_with_dropout_are_not_recorded() {
    let (weights, losses, made) = train(DType::F32, Trains::Adapter { dropout: 0.3 }, true);
    let (expected, expected_losses, _) = train(DType::F32, Trains::Adapter { dropout: 0.3 }, false);
    assert!(weights == expected && losses == expected_losses && made == 0);
    let (other, _, _) = train(DType::F32, Trains::Adapter { dropout: 0.0 }, true);
    assert!(weights != other, "without an effect of dropout this proves nothing");
}

#[test]
fn a_recording_that_would_be_something_else_now_is_an_error() {
    let cuda = Cuda::simulated(DType::F32).unwrap();
    let x = Tensor::from_f32(&cuda, "x", 1, 4, &[1.0, 2.0, 3.0, 4.0]).unwrap();
    let mut y = Tensor::zeros(&cuda, "y", 1, 1, DType::F32).unwrap();
    let mut recording = <Cuda as Backend>::Recording::default();
    let mut add = |scale| {
        let out = y.view_mut();
        cuda.record(&mut recording, || cuda.run(ops::WeightedSum { a: x.view(), b: x.view(), scale, out }))
    };
    for _ in 0..4 {
        add(1.0).unwrap();
    }
    let error = add(2.0).unwrap_err().to_string();
    assert!(error.contains("not the same any more") && error.contains("weighted_sum"), "{error}");
    assert_eq!(y.to_vec(&cuda).unwrap(), [4.0 * 30.0]);
}

#[test]
fn what_the_host_must_do_is_refused_inside_a_recording() {
    let cuda = Cuda::simulated(DType::F32).unwrap();
    let x = Tensor::from_f32(&cuda, "x", 1, 2, &[1.0, 2.0]).unwrap();
    let works: [&dyn Fn() -> temper::Result<()>; 3] =
        [&|| Tensor::zeros(&cuda, "inside", 1, 2, DType::F32).map(|_| ()), &|| x.to_vec(&cuda).map(|_| ()), &|| {
            cuda.driver().synchronize()
        }];
    for work in works {
        let mut recording = <Cuda as Backend>::Recording::default();
        cuda.record(&mut recording, work).unwrap();
        let error = cuda.record(&mut recording, work).unwrap_err().to_string();
        assert!(error.contains("inside a recorded graph"), "{error}");
        // The recording was ended all the same.
        assert_eq!(x.to_vec(&cuda).unwrap(), [1.0, 2.0]);
    }
}

/// Scratch memory that grew is other memory: what was recorded before must not be replayed.
#[test]
fn recordings_do_not_outlive_their_scratch_memory() {
    let cuda = Cuda::simulated(DType::F32).unwrap();
    let add = |rows: usize, table: &mut Tensor<Cuda>, recording: &mut <Cuda as Backend>::Recording| {
        let ids = Tensor::from_u32(&cuda, "ids", &vec![1; rows]).unwrap();
        let gradients = Tensor::from_f32(&cuda, "gradients", rows, 4, &vec![0.5; 4 * rows]).unwrap();
        cuda.record(recording, || {
            cuda.run(ops::EmbeddingBackward { ids: ids.view(), d_out: gradients.view(), d_table: table.view_mut() })
        })
        .unwrap();
        (ids, gradients)
    };
    let mut table = Tensor::zeros(&cuda, "table", 2, 4, DType::F32).unwrap();
    let mut recording = <Cuda as Backend>::Recording::default();
    let called = Cell::new(0);
    let (ids, gradients) = add(3, &mut table, &mut recording);
    let mut again = |recording: &mut <Cuda as Backend>::Recording| {
        cuda.record(recording, || {
            called.set(called.get() + 1);
            cuda.run(ops::EmbeddingBackward { ids: ids.view(), d_out: gradients.view(), d_table: table.view_mut() })
        })
        .unwrap();
    };
    let before = recordings(cuda.driver());
    again(&mut recording);
    assert_eq!(recordings(cuda.driver()) - before - 1, 1, "recorded at the second call");
    let mut other = Tensor::zeros(&cuda, "other table", 2, 4, DType::F32).unwrap();
    add(5000, &mut other, &mut <Cuda as Backend>::Recording::default());
    again(&mut recording);
    // No recording but those that this test asks for: the third call was executed.
    assert_eq!((called.get(), recordings(cuda.driver()) - before - 1), (2, 2));
    assert_eq!(table.to_vec(&cuda).unwrap()[4..], [4.5; 4]);
}
