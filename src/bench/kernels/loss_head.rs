//! The loss head with the head frozen and with its gradient, beside its bare products.

use super::super::{Bench, Spec, count};
use super::sets;
use crate::backend::cuda::Cuda;
use crate::error::Result;
use crate::ops::{self, Backend, DType, HeadGradients, HeadLoss, HeadTeacher, Tensor};

/// Tokens whose logits the bare products have at once: as many as the loss head takes at most.
const CHUNK: usize = 4096;

pub(super) fn run(bench: &mut Bench) {
    for d_head in [false, true] {
        let suffix = if d_head { "/d_head" } else { "" };
        let losses = [
            ("cross_entropy", HeadLoss::CrossEntropy),
            ("negative_entropy", HeadLoss::NegativeEntropy),
            ("teacher_divergence", HeadLoss::TeacherDivergence),
        ]
        .map(|(name, loss)| (format!("loss_head/{name}{suffix}"), loss));
        let products_name = format!("loss_head/products{suffix}");
        if !losses.iter().any(|(name, _)| bench.wants(name)) && !bench.wants(&products_name) {
            continue;
        }
        let products = products(bench, products_name, d_head);
        // Without a library the bare products are our own too, and no measure for the head.
        let library = products.filter(|_| bench.cuda.driver().gemm_library().is_some());
        for (name, loss) in losses {
            // The bare products have none of a teacher.
            let taught = loss == HeadLoss::TeacherDivergence;
            row(bench, name, loss, d_head, library.filter(|_| !taught));
        }
    }
}

fn spec(bench: &Bench, name: String, loss: Option<HeadLoss>, d_head: bool) -> Spec {
    let tokens = bench.options.shapes.tokens();
    let model = &bench.options.shapes.model;
    let count = match loss {
        Some(HeadLoss::TeacherDivergence) => count::loss_head_with_teacher,
        _ => count::loss_head,
    };
    let work = count(tokens, model.vocab_size, model.hidden_size, d_head, bench.element());
    Spec::new(name, format!("{tokens} × {} × {}", model.vocab_size, model.hidden_size), work)
}

/// The two or three products of the loss head alone, chunk by chunk: what no loss head can be faster than.
fn products(bench: &mut Bench, name: String, d_head: bool) -> Option<f64> {
    let spec = spec(bench, name, None, d_head);
    bench.measure(spec, |bench| {
        let cuda = bench.cuda.clone();
        let data = &bench.data;
        let tokens = bench.options.shapes.tokens();
        let v = bench.options.shapes.model.vocab_size;
        let d = bench.options.shapes.model.hidden_size;
        let chunk = CHUNK.min(tokens);
        let hidden = data.matrix("hidden", chunk, d)?;
        let head = data.normal("head", v, d, bench.cuda_dtype(), 0.02)?;
        let mut logits = data.sums("logits", chunk, v)?;
        let d_logits = data.matrix("gradient of logits", chunk, v)?;
        let mut d_hidden = data.matrix("gradient of hidden", chunk, d)?;
        let mut d_weight = if d_head { Some(data.sums("gradient of head", v, d)?) } else { None };
        Ok(move |_: usize| {
            for first in (0..tokens).step_by(chunk) {
                let rows = chunk.min(tokens - first);
                cuda.run(ops::LinearForward { x: hidden.top(rows), w: head.view(), y: logits.top_mut(rows) })?;
                cuda.run(ops::LinearBackwardInput {
                    dy: d_logits.top(rows),
                    w: head.view(),
                    dx: d_hidden.top_mut(rows),
                    accumulate: false,
                })?;
                if let Some(d_weight) = &mut d_weight {
                    cuda.run(ops::LinearBackwardWeight {
                        dy: d_logits.top(rows),
                        x: hidden.top(rows),
                        dw: d_weight.view_mut(),
                    })?;
                }
            }
            Ok(())
        })
    })
}

/// One set of what changes from token to token.
struct Tokens {
    hidden: Tensor<Cuda>,
    taught: Option<Tensor<Cuda>>,
    d_hidden: Tensor<Cuda>,
    values: Tensor<Cuda>,
}

fn row(bench: &mut Bench, name: String, loss: HeadLoss, d_head: bool, library: Option<f64>) {
    let spec = Spec { library_milliseconds: library, ..spec(bench, name, Some(loss), d_head) };
    let has_teacher = loss == HeadLoss::TeacherDivergence;
    let bytes = spec.work.bytes;
    bench.row(spec, |bench| {
        let cuda = bench.cuda.clone();
        let data = &bench.data;
        let tokens = bench.options.shapes.tokens();
        let v = bench.options.shapes.model.vocab_size;
        let d = bench.options.shapes.model.hidden_size;
        let head = data.normal("head", v, d, bench.cuda_dtype(), 0.02)?;
        let other_head = || data.normal("head of the teacher", v, d, bench.cuda_dtype(), 0.02);
        let teacher_head = has_teacher.then(other_head).transpose()?;
        let targets = Tensor::from_u32(&cuda, "targets", &data.ids(tokens, v))?;
        let weights = Tensor::from_f32(&cuda, "loss weights", tokens, 1, &vec![1.0 / tokens as f32; tokens])?;
        let mut d_weight: Option<Tensor<Cuda>> =
            if d_head { Some(Tensor::zeros(&cuda, "gradient of head", v, d, DType::F32)?) } else { None };
        let mut sets = sets(bench, bytes, |_| -> Result<Tokens> {
            Ok(Tokens {
                hidden: data.matrix("hidden", tokens, d)?,
                taught: has_teacher.then(|| data.matrix("hidden of the teacher", tokens, d)).transpose()?,
                d_hidden: data.matrix("gradient of hidden", tokens, d)?,
                values: data.sums("values", tokens, 1)?,
            })
        })?;
        Ok(move |i| {
            let Tokens { hidden, taught, d_hidden, values } = sets.at(i);
            let teacher = taught.as_ref().zip(teacher_head.as_ref());
            let gradients =
                HeadGradients { d_hidden: d_hidden.view_mut(), d_head: d_weight.as_mut().map(Tensor::view_mut) };
            cuda.run(ops::LossHead {
                loss,
                hidden: hidden.view(),
                head: head.view(),
                targets: targets.view(),
                teacher: teacher.map(|(hidden, head)| HeadTeacher { hidden: hidden.view(), head: head.view() }),
                weights: weights.view(),
                values: values.view_mut(),
                gradients: Some(gradients),
            })
        })
    });
}
