//! Causal attention: whole sequences, in the batch of most rows and in those that TAR runs, and one new token behind a
//! cache.

use super::super::{BatchShape, Bench, Spec, count};
use super::sets;
use crate::backend::cuda::Cuda;
use crate::error::Result;
use crate::ops::{self, AttentionShape, Backend, CachedSegments, Segment, Segments, Tensor};

struct Operands {
    qkv: Tensor<Cuda>,
    out: Tensor<Cuda>,
    log_sum_exp: Tensor<Cuda>,
    d_out: Tensor<Cuda>,
    d_qkv: Tensor<Cuda>,
}

impl Operands {
    fn new(bench: &Bench, tokens: usize, shape: AttentionShape) -> Result<Self> {
        let data = &bench.data;
        Ok(Self {
            qkv: data.matrix("qkv", tokens, shape.qkv_cols())?,
            out: data.matrix("attention", tokens, shape.query_cols())?,
            log_sum_exp: data.sums("log sum exp", tokens, shape.num_attention_heads)?,
            d_out: data.matrix("gradient of attention", tokens, shape.query_cols())?,
            d_qkv: data.matrix("gradient of qkv", tokens, shape.qkv_cols())?,
        })
    }

    fn forward(&mut self, cuda: &Cuda, segments: &Segments<Cuda>, shape: AttentionShape) -> Result<()> {
        cuda.run(ops::AttentionForward {
            qkv: self.qkv.view(),
            segments,
            shape,
            out: self.out.view_mut(),
            log_sum_exp: self.log_sum_exp.view_mut(),
        })
    }

    fn backward(&mut self, cuda: &Cuda, segments: &Segments<Cuda>, shape: AttentionShape) -> Result<()> {
        let Self { qkv, out, log_sum_exp, d_out, d_qkv } = self;
        cuda.run(ops::AttentionBackward {
            d_out: d_out.view(),
            qkv: qkv.view(),
            out: out.view(),
            log_sum_exp: log_sum_exp.view(),
            segments,
            shape,
            d_qkv: d_qkv.view_mut(),
        })
    }
}

pub(super) fn run(bench: &mut Bench) {
    let shapes = &bench.options.shapes;
    let batches = [shapes.batch(), shapes.attack, shapes.tamper_resistance];
    let cached = [shapes.length, shapes.short_length];
    for batch in batches {
        for backward in [false, true] {
            row(bench, batch, backward);
        }
    }
    for length in cached {
        cached_row(bench, length);
    }
}

fn row(bench: &mut Bench, batch: BatchShape, backward: bool) {
    let BatchShape { sequences, length } = batch;
    let shape = bench.options.shapes.model.attention();
    let work = if backward {
        count::attention_backward(sequences, length, shape, bench.element())
    } else {
        count::attention_forward(sequences, length, shape, bench.element())
    };
    let pass = if backward { "backward" } else { "forward" };
    let AttentionShape { num_attention_heads, num_key_value_heads, head_dim, .. } = shape;
    let described =
        format!("{sequences} × {length}, causal, {num_attention_heads} and {num_key_value_heads} heads of {head_dim}");
    let spec = Spec::new(format!("attention_{pass}/{batch}"), described, work);
    bench.row(spec, |bench| {
        let cuda = bench.cuda.clone();
        let tokens = batch.tokens();
        let segment = |i| Segment { start: i * length, length, valid: length };
        let segments = Segments::new(&cuda, (0..sequences).map(segment).collect())?;
        let mut sets = sets(bench, work.bytes, |_| {
            let mut set = Operands::new(bench, tokens, shape)?;
            // Backward reads what forward kept.
            set.forward(&cuda, &segments, shape)?;
            Ok(set)
        })?;
        Ok(move |i| {
            if backward {
                sets.at(i).backward(&cuda, &segments, shape)
            } else {
                sets.at(i).forward(&cuda, &segments, shape)
            }
        })
    });
}

/// A new token for each sequence, with the others of `length` in slots that are not in order.
fn cached_row(bench: &mut Bench, length: usize) {
    let sequences = bench.options.shapes.sequences;
    let shape = bench.options.shapes.model.attention();
    let work = count::attention_cached(sequences, length, shape, bench.element());
    let AttentionShape { num_attention_heads, num_key_value_heads, head_dim, .. } = shape;
    let described = format!(
        "{sequences} × 1 after {}, {num_attention_heads} and {num_key_value_heads} heads of {head_dim}",
        length - 1
    );
    let spec = Spec::new(format!("attention_cached/{sequences}x{length}"), described, work);
    bench.row(spec, |bench| {
        let cuda = bench.cuda.clone();
        // A token's slots of all sequences lie together, as they do where texts grow at the same time.
        let slots: Vec<u32> =
            (0..sequences).flat_map(|s| (0..length).map(move |t| (t * sequences + s) as u32)).collect();
        let table: Vec<(usize, &[u32])> = slots.chunks(length).map(|own| (1, own)).collect();
        let segments = CachedSegments::new(&cuda, shape, &table)?;
        let mut sets = sets(bench, work.bytes, |_| {
            let data = &bench.data;
            Ok((
                data.matrix("qkv", sequences, shape.qkv_cols())?,
                data.matrix("cache", sequences * length, 2 * shape.key_value_cols())?,
                data.matrix("attention", sequences, shape.query_cols())?,
            ))
        })?;
        Ok(move |i| {
            let (qkv, cache, out) = sets.at(i);
            cuda.run(ops::AttentionCached {
                qkv: qkv.view(),
                segments: &segments,
                cache: cache.view_mut(),
                out: out.view_mut(),
            })
        })
    });
}
