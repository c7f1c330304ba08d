//! Launchers of attention.
//!
//! bf16 with a head size of 64 or 128, and rows that begin at 16-byte addresses, goes to the tensor-core kernels
//! (`attention_forward.cu`, `attention_backward.cu`); every other head size up to 256, and f32, to `attention_general.cu`.

use super::{Argument, Cuda, Place};
use crate::error::{Error, Result};
use crate::ops::*;

/// Largest head size that the general kernels have registers for.
const MOST_HEAD_DIM: usize = 256;
/// The `window` of a kernel where there is none: farther back than any sequence reaches.
const NO_WINDOW: u32 = 1 << 31;

/// How a launch is cut into blocks: which kernels run, and what they need of the shape.
struct Plan {
    /// Whether the tensor-core kernels run.
    tiled: bool,
    shape: AttentionShape,
    segments: usize,
    longest: usize,
}

impl Plan {
    /// `operands`: addresses of every matrix whose rows are read or written as vectors.
    fn new(cuda: &Cuda, segments: &Segments<Cuda>, shape: AttentionShape, operands: &[u64]) -> Result<Self> {
        if shape.head_dim > MOST_HEAD_DIM {
            let problem = format!("attention: a head size of {} is more than {MOST_HEAD_DIM}", shape.head_dim);
            return Err(Error::Device(problem));
        }
        let tiled = cuda.compute_dtype() == DType::Bf16
            && matches!(shape.head_dim, 64 | 128)
            && operands.iter().all(|address| address.is_multiple_of(16));
        let longest = segments.host.iter().map(|segment| segment.length).max().unwrap_or(0);
        Ok(Self { tiled, shape, segments: segments.host.len(), longest })
    }

    /// The kernel of a stem, for example `attention_forward_128_bf16` or `attention_general_forward_f32`.
    fn kernel(&self, cuda: &Cuda, stem: &str) -> String {
        if self.tiled {
            cuda.kernel(&format!("attention_{stem}_{}", self.shape.head_dim))
        } else {
            cuda.kernel(&format!("attention_general_{stem}"))
        }
    }

    /// Every head of every segment, times the blocks of `rows` rows of the longest segment.
    fn grid(&self, heads: usize, rows: usize) -> [u32; 3] {
        [(self.segments * heads) as u32, self.longest.div_ceil(rows) as u32, 1]
    }

    /// The last parameters of every kernel.
    fn sizes(&self) -> Vec<Argument> {
        let AttentionShape { num_attention_heads, num_key_value_heads, head_dim, sliding_window } = self.shape;
        let window =
            sliding_window.map_or(NO_WINDOW, |window| u32::try_from(window).unwrap_or(NO_WINDOW).min(NO_WINDOW));
        let mut sizes: Vec<Argument> =
            [num_attention_heads, num_key_value_heads].map(|size| Argument::U32(size as u32)).to_vec();
        if !self.tiled {
            sizes.push(Argument::U32(head_dim as u32));
        }
        sizes.extend([Argument::U32(window), Argument::F32(self.shape.score_scale())]);
        sizes
    }

    /// Shared memory of a general kernel with `fixed` fixed tiles and as many tables (`attention_general.cu`).
    fn general_shared_bytes(&self, fixed: usize) -> usize {
        let head_dim = self.shape.head_dim;
        4 * (fixed * 16 * head_dim + 2 * 32 * (head_dim + 1) + fixed * 16 * 32)
    }
}

pub(super) fn forward(
    cuda: &Cuda,
    qkv: Matrix<Cuda>,
    segments: &Segments<Cuda>,
    shape: AttentionShape,
    out: MatrixMut<Cuda>,
    log_sum_exp: MatrixMut<Cuda>,
) -> Result<()> {
    let plan = Plan::new(cuda, segments, shape, &[qkv.address(), out.address()])?;
    if plan.longest == 0 {
        return Ok(());
    }
    let (rows, shared_bytes) = if plan.tiled {
        // Tiles of queries, and two stages of keys and values, of bf16: `attention_forward.cu`.
        let keys = if shape.head_dim == 128 { 32 } else { 64 };
        (128, (128 + 4 * keys) * shape.head_dim * 2)
    } else {
        (16, plan.general_shared_bytes(1))
    };
    let mut arguments = vec![qkv.pointer(), segments.device.view().pointer(), out.pointer(), log_sum_exp.pointer()];
    arguments.extend(plan.sizes());
    let grid = plan.grid(shape.num_attention_heads, rows);
    cuda.launch(&plan.kernel(cuda, "forward"), grid, 128, shared_bytes, &arguments)
}

#[allow(clippy::too_many_arguments)]
pub(super) fn backward(
    cuda: &Cuda,
    d_out: Matrix<Cuda>,
    qkv: Matrix<Cuda>,
    out: Matrix<Cuda>,
    log_sum_exp: Matrix<Cuda>,
    segments: &Segments<Cuda>,
    shape: AttentionShape,
    d_qkv: MatrixMut<Cuda>,
) -> Result<()> {
    let plan = Plan::new(cuda, segments, shape, &[d_out.address(), qkv.address(), d_qkv.address()])?;
    if plan.longest == 0 {
        return Ok(());
    }
    let rows_and_heads = qkv.rows * shape.num_attention_heads;
    cuda.with_scratch("attention statistics", 2 * rows_and_heads, DType::F32, |buffer| {
        let statistics = Argument::Pointer(buffer.address(0));
        launch_statistics(cuda, &plan, [d_out, out, log_sum_exp], statistics)?;

        let mut arguments = vec![
            d_out.pointer(),
            qkv.pointer(),
            statistics,
            segments.device.view().pointer(),
            d_qkv.pointer(),
            Argument::U32(qkv.rows as u32),
        ];
        arguments.extend(plan.sizes());
        let (rows, threads, shared_bytes) = if plan.tiled {
            // Two tiles of 128 rows and four of 64, of bf16, and statistics of 2 x 64 rows: `attention_backward.cu`.
            (128, 256, (2 * 128 + 4 * 64) * shape.head_dim * 2 + 1024)
        } else {
            (16, 128, plan.general_shared_bytes(2))
        };
        for (stem, heads) in
            [("backward_key_value", shape.num_key_value_heads), ("backward_query", shape.num_attention_heads)]
        {
            cuda.launch(&plan.kernel(cuda, stem), plan.grid(heads, rows), threads, shared_bytes, &arguments)?;
        }
        Ok(())
    })
}

/// For each head and row: `log_sum_exp`, in the unit of the kernels that read it, and the sum of `d_out · out`.
fn launch_statistics(
    cuda: &Cuda,
    plan: &Plan,
    [d_out, out, log_sum_exp]: [Matrix<Cuda>; 3],
    statistics: Argument,
) -> Result<()> {
    let (heads, head_dim) = (plan.shape.num_attention_heads, plan.shape.head_dim);
    let vector = 4 * d_out.dtype().bytes() as u64;
    let wide =
        head_dim.is_multiple_of(4) && [d_out.address(), out.address()].iter().all(|address| address % vector == 0);
    let arguments = [
        d_out.pointer(),
        out.pointer(),
        log_sum_exp.pointer(),
        statistics,
        Argument::U32(out.rows as u32),
        Argument::U32(heads as u32),
        Argument::U32(head_dim as u32),
        Argument::U32(u32::from(wide)),
        Argument::F32(if plan.tiled { std::f32::consts::LOG2_E } else { 1.0 }),
    ];
    let warps = out.rows * heads;
    cuda.launch(&cuda.kernel("attention_statistics"), [warps.div_ceil(8) as u32, 1, 1], 256, 0, &arguments)
}
