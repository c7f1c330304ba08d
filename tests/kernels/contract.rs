//! A wrong call is an error that names the operand, the same on every backend, and never a panic.

use temper::backend::cpu::Cpu;
use temper::backend::cuda::Cuda;
use temper::ops::*;
use temper::{Error, Result};

const SHAPE: AttentionShape =
    AttentionShape { num_attention_heads: 2, num_key_value_heads: 1, head_dim: 4, sliding_window: None };

/// The results of calls that are all wrong, each with words that its error must have.
fn wrong_calls<B: Backend>(backend: &B) -> Vec<(&'static str, Result<()>)> {
    let f32s = |rows, cols| Tensor::zeros(backend, "floats", rows, cols, DType::F32).expect("memory");
    let u32s = |len| Tensor::from_u32(backend, "integers", &vec![0; len]).expect("memory");
    let parked = |len| backend.parked("parked", len, DType::F32).expect("memory");
    let segments = |start, length| Segment { start, length, valid: length };
    let segments = |parts: &[(usize, usize)]| {
        let host = parts.iter().map(|&(start, length)| segments(start, length)).collect();
        Segments::new(backend, host).expect("segments")
    };
    let mut all = vec![
        ("to is 3 elements from 2 on, in a buffer of 4", backend.upload_f32(f32s(1, 4).buffer_mut(), 2, &[0.0; 3])),
        ("in a buffer of 4", backend.upload_f32(f32s(1, 4).buffer_mut(), usize::MAX, &[0.0; 3])),
        ("to is stored as U32", backend.upload_f32(u32s(4).buffer_mut(), 0, &[0.0; 3])),
        ("in a buffer of 4", backend.upload_u32(u32s(4).buffer_mut(), 2, &[0; 3])),
        ("to is stored as F32", backend.upload_u32(f32s(1, 4).buffer_mut(), 0, &[0; 3])),
        ("from is 4 elements from 1 on", backend.download_f32(f32s(1, 4).buffer(), 1, 4).map(drop)),
        ("from is stored as U32", backend.download_f32(u32s(4).buffer(), 0, 4).map(drop)),
    ];
    let from = f32s(2, 4);
    let cosines = |toward: Tensor<B>, margin| {
        backend.run(CosineMargin {
            hidden: from.view(),
            away: from.view(),
            toward: Some(toward.view()),
            margin,
            weights: f32s(2, 1).view(),
            values: f32s(2, 1).view_mut(),
            d_hidden: None,
        })
    };
    let mask = |decay, mut accumulated: Tensor<B>| {
        backend.run(SignMask {
            masked: from.view(),
            scale: 1.0,
            decay,
            accumulated: accumulated.view_mut(),
            gradient: f32s(1, 8).view_mut(),
        })
    };
    let integers = u32s(8);
    let beyond = Matrix { offset: 1, ..from.view() };
    let mut to = f32s(2, 4);
    all.extend([
        ("from is 8 elements from 1 on", backend.run(CopyValues { from: beyond, to: to.view_mut() })),
        ("elements of to is 4", backend.run(CopyValues { from: from.view(), to: to.top_mut(1) })),
        ("to is stored as F32", backend.run(CopyValues { from: integers.view(), to: to.view_mut() })),
        ("to is 8 elements from 1 on", backend.run(Clear { to: MatrixMut { offset: 1, ..to.view_mut() } })),
        ("to is 8 elements", backend.run(Park { from: from.view(), to: &mut parked(9), to_offset: 2 })),
        ("from is stored as U32", backend.run(Park { from: integers.view(), to: &mut parked(8), to_offset: 0 })),
        ("from is 8 elements", backend.run(Fetch { from: &parked(9), from_offset: 2, to: to.view_mut() })),
        ("w is 8 elements", backend.run(LinearForward { x: from.view(), w: beyond, y: f32s(2, 2).view_mut() })),
        (
            "x is stored as U32, expected floats",
            backend.run(LinearForward { x: integers.view(), w: f32s(3, 1).view(), y: f32s(8, 3).view_mut() }),
        ),
        (
            "indices is stored as F32",
            backend.run(GatherRows { from: from.view(), indices: f32s(2, 1).view(), out: to.view_mut() }),
        ),
        ("x is stored as U32", backend.run(SquaredNorm { x: integers.view() }).map(drop)),
        ("elements of accumulated is 7, expected 8", mask(0.5, f32s(1, 7))),
        ("the decay is 1.5, which is not between 0 and 1", mask(1.5, f32s(1, 8))),
        (
            "delta and sum",
            backend.run(RmsNormForward {
                residual: from.view(),
                delta: Some(from.view()),
                weight: f32s(1, 4).view(),
                epsilon: 1e-5,
                sum: None,
                normed: to.view_mut(),
                inverse_rms: f32s(2, 1).view_mut(),
            }),
        ),
        ("elements of bias is 3, expected 4", backend.run(AddBias { bias: f32s(1, 3).view(), y: to.view_mut() })),
        (
            "elements of d_bias is 5, expected 4",
            backend.run(BiasBackward { dy: from.view(), d_bias: f32s(1, 5).view_mut() }),
        ),
        (
            "elements of weight is 4, expected 8",
            backend.run(HeadNormForward {
                qkv: f32s(2, 16).view(),
                weight: f32s(1, 4).view(),
                epsilon: 1e-5,
                shape: SHAPE,
                out: f32s(2, 16).view_mut(),
            }),
        ),
        (
            "rows of d_qkv is 1, expected 2",
            backend.run(HeadNormBackward {
                qkv: f32s(2, 16).view(),
                weight: f32s(2, 4).view(),
                epsilon: 1e-5,
                shape: SHAPE,
                d_qkv: f32s(1, 16).view_mut(),
                d_weight: None,
            }),
        ),
        (
            "rows of reference is 3, expected 2",
            backend.run(RepresentationDistance {
                kind: DistanceKind::Squared,
                hidden: from.view(),
                reference: f32s(3, 4).view(),
                weights: f32s(2, 1).view(),
                values: f32s(2, 1).view_mut(),
                d_hidden: None,
            }),
        ),
        ("columns of toward is 3, expected 4", cosines(f32s(1, 3), 0.1)),
        ("the margin is inf, which is not finite", cosines(f32s(1, 4), f32::INFINITY)),
        ("toward is stored as U32", cosines(Tensor::zeros(backend, "toward", 1, 4, DType::U32).expect("memory"), 0.1)),
        (
            "targets is stored as F32",
            backend.run(LossHead {
                loss: HeadLoss::CrossEntropy,
                hidden: from.view(),
                head: f32s(5, 4).view(),
                targets: f32s(2, 1).view(),
                teacher: None,
                weights: f32s(2, 1).view(),
                values: f32s(2, 1).view_mut(),
                gradients: None,
            }),
        ),
    ]);
    let divergence = |loss, teacher: Option<[&Tensor<B>; 2]>| {
        backend.run(LossHead {
            loss,
            hidden: from.view(),
            head: f32s(5, 4).view(),
            targets: u32s(2).view(),
            teacher: teacher.map(|[hidden, head]| HeadTeacher { hidden: hidden.view(), head: head.view() }),
            weights: f32s(2, 1).view(),
            values: f32s(2, 1).view_mut(),
            gradients: None,
        })
    };
    const TAUGHT: HeadLoss = HeadLoss::TeacherDivergence;
    all.extend([
        ("the divergence from a teacher needs one", divergence(TAUGHT, None)),
        ("compares with no teacher", divergence(HeadLoss::NegativeEntropy, Some([&f32s(2, 6), &f32s(5, 6)]))),
        ("rows of the teacher's hidden states is 3", divergence(TAUGHT, Some([&f32s(3, 6), &f32s(5, 6)]))),
        ("rows of the teacher's head is 4, expected 5", divergence(TAUGHT, Some([&f32s(2, 6), &f32s(4, 6)]))),
        ("columns of the teacher's head is 7", divergence(TAUGHT, Some([&f32s(2, 6), &f32s(5, 7)]))),
    ]);
    let negative = |beta, lengths: usize, losses: usize| {
        backend.run(NegativePreference {
            values: f32s(5, 1).view(),
            segments: &segments(&[(0, 3), (3, 2)]),
            lengths: f32s(lengths, 1).view(),
            references: f32s(2, 1).view(),
            beta,
            scale: 1.0,
            weights: f32s(5, 1).view_mut(),
            losses: f32s(losses, 1).view_mut(),
        })
    };
    all.extend([
        ("beta is 0, expected a number above 0", negative(0.0, 2, 2)),
        ("beta is NaN", negative(f32::NAN, 2, 2)),
        ("elements of lengths is 3, expected 2", negative(0.1, 3, 2)),
        ("elements of losses is 1, expected 2", negative(0.1, 2, 1)),
    ]);
    let attention = |shape, segments| {
        backend.run(AttentionForward {
            qkv: f32s(6, 16).view(),
            segments: &segments,
            shape,
            out: f32s(6, 8).view_mut(),
            log_sum_exp: f32s(6, 2).view_mut(),
        })
    };
    let three_groups = AttentionShape { num_key_value_heads: 3, ..SHAPE };
    all.extend([
        ("first row of sequence 1 is 4, expected 3", attention(SHAPE, segments(&[(0, 3), (4, 2)]))),
        ("tokens of the segments is 5", attention(SHAPE, segments(&[(0, 3), (3, 2)]))),
        ("must divide the attention heads", attention(three_groups, segments(&[(0, 6)]))),
    ]);
    let factors = f32s(1, 20);
    let factor = |offset, rows, cols| Matrix { buffer: factors.buffer(), offset, rows, cols };
    let slices = [LoraSlice { a: factor(0, 2, 4), b: factor(8, 6, 2), start: 0, scale: 1.0 }];
    let lora = |gradients: &mut Tensor<B>| {
        backend.run(LoraBackward {
            dy: f32s(2, 6).view(),
            x: from.view(),
            s: f32s(2, 2).view(),
            slices: &slices,
            dropout: None,
            gradients: Some(gradients.buffer_mut()),
            ds: f32s(2, 2).view_mut(),
            dx: f32s(2, 4).view_mut(),
        })
    };
    let update = |states: usize, rounding| {
        let mut states: Vec<Tensor<B>> = (0..states).map(|_| f32s(1, 3)).collect();
        backend.run(OptimizerUpdate {
            rule: UpdateRule::Adam,
            coefficients: f32s(1, COEFFICIENTS).view(),
            weights: f32s(1, 3).view_mut(),
            remainder: None,
            gradients: f32s(1, 3).view(),
            states: states.iter_mut().map(Tensor::view_mut).collect(),
            rounding,
        })
    };
    let key = u32s(4);
    all.extend([
        ("the gradient of B is 12 elements from 8 on", lora(&mut f32s(1, 19))),
        ("the gradient of A is stored as U32", lora(&mut u32s(20))),
        ("number of states is 1, expected 2", update(1, None)),
        ("weights of F32", update(2, Some(StateRounding { key: key.view(), first: 0 }))),
    ]);
    all
}

#[test]
fn a_wrong_call_is_the_same_error_on_every_backend() {
    let simulated = wrong_calls(&Cuda::simulated(DType::F32).expect("a simulated device"));
    for ((words, cpu), (_, cuda)) in wrong_calls(&Cpu).into_iter().zip(simulated) {
        let (Err(cpu @ Error::Shape { .. }), Err(cuda @ Error::Shape { .. })) = (cpu, cuda) else {
            panic!("{words}: not refused");
        };
        assert!(cpu.to_string().contains(words), "{cpu} instead of {words}");
        assert_eq!(cpu.to_string(), cuda.to_string());
    }
}
