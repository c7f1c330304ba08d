//! Linear layers and their adapters, at each fused layer of the model.

use super::super::{Bench, Spec, count};
use super::sets;
use crate::backend::cuda::Cuda;
use crate::ops::{self, Backend, DType, LoraSlice, Matrix, Tensor};

/// A fused linear layer: its name, its inputs, and the outputs of each projection in it.
struct Layer {
    name: &'static str,
    input: usize,
    outputs: Vec<usize>,
}

impl Layer {
    fn output(&self) -> usize {
        self.outputs.iter().sum()
    }
}

fn layers(bench: &Bench) -> [Layer; 4] {
    let model = &bench.options.shapes.model;
    let d = model.hidden_size;
    let f = model.intermediate_size;
    let shape = model.attention();
    let q = shape.query_cols();
    let kv = shape.key_value_cols();
    [
        Layer { name: "qkv", input: d, outputs: vec![q, kv, kv] },
        Layer { name: "output", input: q, outputs: vec![d] },
        Layer { name: "gate_up", input: d, outputs: vec![f, f] },
        Layer { name: "down", input: f, outputs: vec![d] },
    ]
}

pub(super) fn run(bench: &mut Bench) {
    let layers = layers(bench);
    for layer in &layers {
        for operation in [Operation::Forward, Operation::BackwardInput, Operation::BackwardWeight] {
            products(bench, operation, layer);
        }
    }
    for layer in &layers {
        lora_forward(bench, layer);
        lora_backward(bench, layer);
    }
}

#[derive(Clone, Copy)]
enum Operation {
    Forward,
    BackwardInput,
    BackwardWeight,
}

/// One product as the backend multiplies and, where that is a library, by our own kernel beside it.
fn products(bench: &mut Bench, operation: Operation, layer: &Layer) {
    let tokens = bench.options.shapes.tokens();
    let output = layer.output();
    let input = layer.input;
    let stem = match operation {
        Operation::Forward => "linear_forward",
        Operation::BackwardInput => "linear_backward_input",
        Operation::BackwardWeight => "linear_backward_weight",
    };
    let work = match operation {
        Operation::BackwardWeight => count::weight_gradient(tokens, output, input, bench.element()),
        _ => count::product(tokens, output, input, bench.element()),
    };
    let name = format!("{stem}/{}", layer.name);
    let shape = format!("{tokens} × {output} × {input}");
    let own_name = format!("{name}/own");
    if !bench.wants(&name) && !bench.wants(&own_name) {
        return;
    }
    let cuda = bench.cuda.clone();
    let first = Spec::new(name, shape.clone(), work);
    let library = bench.measure(first, |bench| operands(bench, cuda.clone(), operation, layer));
    if bench.cuda.driver().gemm_library().is_some() {
        let own = Spec { library_milliseconds: library, ..Spec::new(own_name, shape, work) };
        bench.measure(own, |bench| operands(bench, cuda.with_own_products(), operation, layer));
    }
}

/// The operands of a product, and the call.
fn operands(
    bench: &Bench,
    cuda: Cuda,
    operation: Operation,
    layer: &Layer,
) -> crate::Result<impl FnMut(usize) -> crate::Result<()> + use<>> {
    let tokens = bench.options.shapes.tokens();
    let output = layer.output();
    let input = layer.input;
    let bytes = count::product(tokens, output, input, bench.element()).bytes;
    let mut sets = sets(bench, bytes, |_| {
        let w = match operation {
            Operation::BackwardWeight => bench.data.sums("dw", output, input)?,
            _ => bench.data.matrix("w", output, input)?,
        };
        Ok((bench.data.matrix("x", tokens, input)?, w, bench.data.matrix("y", tokens, output)?))
    })?;
    Ok(move |i| {
        let (x, w, y) = sets.at(i);
        match operation {
            Operation::Forward => cuda.run(ops::LinearForward { x: x.view(), w: w.view(), y: y.view_mut() }),
            Operation::BackwardInput => {
                cuda.run(ops::LinearBackwardInput { dy: y.view(), w: w.view(), dx: x.view_mut(), accumulate: false })
            }
            Operation::BackwardWeight => {
                cuda.run(ops::LinearBackwardWeight { dy: y.view(), x: x.view(), dw: w.view_mut() })
            }
        }
    })
}

/// The operands of an adapter at one layer.
struct Adapted {
    x: Tensor<Cuda>,
    y: Tensor<Cuda>,
    s: Tensor<Cuda>,
    ds: Tensor<Cuda>,
    dx: Tensor<Cuda>,
    /// A and B of each projection, one after another.
    factors: Tensor<Cuda>,
    gradients: Tensor<Cuda>,
}

impl Adapted {
    fn new(bench: &Bench, layer: &Layer) -> crate::Result<Self> {
        let tokens = bench.options.shapes.tokens();
        let rank = bench.options.shapes.rank;
        let slices = layer.outputs.len();
        let output = layer.output();
        let data = &bench.data;
        let factors = rank * (slices * layer.input + output);
        Ok(Self {
            x: data.matrix("x", tokens, layer.input)?,
            y: data.matrix("y", tokens, output)?,
            s: data.matrix("s", tokens, slices * rank)?,
            ds: data.matrix("ds", tokens, slices * rank)?,
            dx: data.matrix("dx", tokens, layer.input)?,
            factors: data.normal("factors", 1, factors, bench.cuda_dtype(), 0.02)?,
            gradients: Tensor::zeros(&bench.cuda, "factor gradients", 1, factors, DType::F32)?,
        })
    }
}

/// A and B of each projection as the model lays them out.
fn slices<'a>(factors: &'a Tensor<Cuda>, layer: &Layer, rank: usize) -> Vec<LoraSlice<'a, Cuda>> {
    let mut offset = 0;
    let mut start = 0;
    let mut all = Vec::with_capacity(layer.outputs.len());
    for &output in &layer.outputs {
        let matrix = |offset, rows, cols| Matrix { buffer: factors.buffer(), offset, rows, cols };
        let a = matrix(offset, rank, layer.input);
        let b = matrix(offset + rank * layer.input, output, rank);
        all.push(LoraSlice { a, b, start, scale: 1.0 });
        offset += rank * (layer.input + output);
        start += output;
    }
    all
}

fn lora_shape(bench: &Bench, layer: &Layer) -> String {
    let tokens = bench.options.shapes.tokens();
    let rank = bench.options.shapes.rank;
    format!("{tokens} × {} × {}, r = {rank}", layer.output(), layer.input)
}

fn lora_forward(bench: &mut Bench, layer: &Layer) {
    let tokens = bench.options.shapes.tokens();
    let rank = bench.options.shapes.rank;
    let work = count::lora_forward(tokens, layer.input, &layer.outputs, rank, bench.element());
    let spec = Spec::new(format!("lora_forward/{}", layer.name), lora_shape(bench, layer), work);
    bench.row(spec, |bench| {
        let cuda = bench.cuda.clone();
        let mut sets = sets(bench, work.bytes, |_| Adapted::new(bench, layer))?;
        Ok(move |i| {
            let Adapted { x, y, s, factors, .. } = sets.at(i);
            cuda.run(ops::LoraForward {
                x: x.view(),
                slices: &slices(factors, layer, rank),
                dropout: None,
                s: s.view_mut(),
                y: y.view_mut(),
            })
        })
    });
}

fn lora_backward(bench: &mut Bench, layer: &Layer) {
    let tokens = bench.options.shapes.tokens();
    let rank = bench.options.shapes.rank;
    let work = count::lora_backward(tokens, layer.input, &layer.outputs, rank, bench.element());
    let spec = Spec::new(format!("lora_backward/{}", layer.name), lora_shape(bench, layer), work);
    bench.row(spec, |bench| {
        let cuda = bench.cuda.clone();
        let mut sets = sets(bench, work.bytes, |_| Adapted::new(bench, layer))?;
        Ok(move |i| {
            let Adapted { x, y, s, ds, dx, factors, gradients } = sets.at(i);
            let slices = slices(factors, layer, rank);
            let gradients = gradients.buffer_mut();
            cuda.run(ops::LoraBackward {
                dy: y.view(),
                x: x.view(),
                s: s.view(),
                slices: &slices,
                dropout: None,
                gradients: Some(gradients),
                ds: ds.view_mut(),
                dx: dx.view_mut(),
            })
        })
    });
}
