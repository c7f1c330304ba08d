//! Launchers of attention.
//!
//! bf16 with a head size of 64 or 128, and rows that begin at 16-byte addresses, goes to the tensor-core kernels: those of
//! Hopper (`sm90_attention_*.cu`) on compute capability 9, `attention_forward.cu` and `attention_backward.cu` elsewhere.
//! Every other head size up to 256, and f32, goes to `attention_general.cu`.

use super::{Argument, Cuda, Place, Tiles, sizes};
use crate::error::{Error, Result};
use crate::ops::*;

/// Largest head size that the general kernels have registers for.
const MOST_HEAD_DIM: usize = 256;
/// The `window` of a kernel where there is none: farther back than any sequence reaches.
const NO_WINDOW: u32 = 1 << 31;

/// Fails unless the kernels have registers for this head size.
pub(super) fn check_head_dim(head_dim: usize) -> Result<()> {
    if head_dim <= MOST_HEAD_DIM {
        return Ok(());
    }
    Err(Error::Device(format!("attention: a head size of {head_dim} is more than {MOST_HEAD_DIM}")))
}

/// A family of kernels.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kernels {
    /// wgmma and tile copies.
    Hopper,
    /// mma.sync.
    Tiled,
    /// No tensor cores, any head size.
    General,
}

/// How a launch is cut into blocks: which kernels run, and what they need of the shape.
struct Plan {
    kernels: Kernels,
    shape: AttentionShape,
    segments: usize,
    longest: usize,
}

impl Plan {
    /// `operands`: addresses of every matrix whose rows are read or written as vectors.
    fn new(cuda: &Cuda, segments: &Segments<Cuda>, shape: AttentionShape, operands: &[u64]) -> Result<Self> {
        check_head_dim(shape.head_dim)?;
        let tiled = cuda.compute_dtype() == DType::Bf16
            && matches!(shape.head_dim, 64 | 128)
            && operands.iter().all(|address| address.is_multiple_of(16));
        let kernels = match cuda.driver().device().compute_capability {
            _ if !tiled => Kernels::General,
            (9, _) => Kernels::Hopper,
            _ => Kernels::Tiled,
        };
        let longest = segments.host.iter().map(|segment| segment.length).max().unwrap_or(0);
        Ok(Self { kernels, shape, segments: segments.host.len(), longest })
    }

    /// The kernel of a stem, for example `attention_forward_128_bf16` or `attention_general_forward_f32`.
    fn kernel(&self, cuda: &Cuda, stem: &str) -> String {
        let head_dim = self.shape.head_dim;
        cuda.kernel(&match self.kernels {
            Kernels::Hopper => format!("sm90_attention_{stem}_{head_dim}"),
            Kernels::Tiled => format!("attention_{stem}_{head_dim}"),
            Kernels::General => format!("attention_general_{stem}"),
        })
    }

    /// The grid is every head of every segment, times the blocks of the longest segment.
    fn launch(&self, cuda: &Cuda, pass: &Pass, arguments: &[Argument]) -> Result<()> {
        let grid = [(self.segments * pass.heads) as u32, self.longest.div_ceil(pass.rows) as u32, 1];
        cuda.launch(&self.kernel(cuda, pass.stem), grid, pass.threads as u32, pass.shared_bytes, arguments)
    }

    /// The last parameters of every kernel.
    fn sizes(&self) -> Vec<Argument> {
        let AttentionShape { num_attention_heads, num_key_value_heads, head_dim, sliding_window } = self.shape;
        let window =
            sliding_window.map_or(NO_WINDOW, |window| u32::try_from(window).unwrap_or(NO_WINDOW).min(NO_WINDOW));
        let mut sizes: Vec<Argument> =
            [num_attention_heads, num_key_value_heads].map(|size| Argument::U32(size as u32)).to_vec();
        if self.kernels == Kernels::General {
            sizes.push(Argument::U32(head_dim as u32));
        }
        sizes.extend([Argument::U32(window), Argument::F32(self.shape.score_scale())]);
        sizes
    }

    /// How the forward kernel is launched.
    fn forward_pass(&self) -> Pass {
        let head_dim = self.shape.head_dim;
        let (rows, threads, shared_bytes) = match self.kernels {
            Kernels::Hopper => {
                (sizes::SM90_ATTENTION_ROWS, sizes::SM90_ATTENTION_THREADS, sizes::sm90_forward_bytes(head_dim))
            }
            Kernels::Tiled => {
                (sizes::ATTENTION_ROWS, sizes::ATTENTION_FORWARD_THREADS, sizes::attention_forward_bytes(head_dim))
            }
            Kernels::General => self.general(1),
        };
        let heads = self.shape.num_attention_heads;
        Pass { stem: "forward", heads, rows, box_rows: sizes::SM90_ATTENTION_ROWS, threads, shared_bytes }
    }

    /// The two kernels after the statistics.
    fn backward_passes(&self) -> [Pass; 2] {
        let head_dim = self.shape.head_dim;
        let (rows, threads, key_value_bytes, query_bytes) = match self.kernels {
            Kernels::Hopper => (
                sizes::SM90_ATTENTION_ROWS,
                sizes::SM90_ATTENTION_THREADS,
                sizes::sm90_key_value_bytes(head_dim),
                sizes::sm90_query_bytes(head_dim),
            ),
            Kernels::Tiled => (
                sizes::ATTENTION_ROWS,
                sizes::ATTENTION_BACKWARD_THREADS,
                sizes::attention_key_value_bytes(head_dim),
                sizes::attention_query_bytes(head_dim),
            ),
            Kernels::General => {
                let (rows, threads, bytes) = self.general(2);
                (rows, threads, bytes, bytes)
            }
        };
        let heads = self.shape.num_key_value_heads;
        let box_rows = sizes::SM90_KEY_VALUE_BOX;
        let key_value =
            Pass { stem: "backward_key_value", heads, rows, box_rows, threads, shared_bytes: key_value_bytes };
        let heads = self.shape.num_attention_heads;
        let box_rows = sizes::SM90_QUERY_BOX;
        [key_value, Pass { stem: "backward_query", heads, box_rows, shared_bytes: query_bytes, ..key_value }]
    }

    /// Rows, threads and shared memory of a block of a general kernel with so many fixed tiles.
    fn general(&self, fixed_tiles: usize) -> (usize, usize, usize) {
        let bytes = sizes::attention_general_bytes(fixed_tiles, self.shape.head_dim);
        (sizes::ATTENTION_GENERAL_ROWS, sizes::ATTENTION_GENERAL_THREADS, bytes)
    }
}

/// One of the large kernels.
#[derive(Clone, Copy)]
struct Pass {
    stem: &'static str,
    heads: usize,
    /// Rows of a block.
    rows: usize,
    /// Rows of a tile copy, on Hopper.
    box_rows: usize,
    threads: usize,
    shared_bytes: usize,
}

/// What a kernel needs of a bf16 matrix: its address, or, on Hopper, a description of it as panels of 64 columns, of which
/// one copy takes `rows` rows of as many panels as a head has.
fn source(cuda: &Cuda, plan: &Plan, matrix: &Matrix<Cuda>, cols: usize, rows: usize) -> Result<Argument> {
    if plan.kernels != Kernels::Hopper {
        return Ok(matrix.pointer());
    }
    let tiles = Tiles {
        dtype: DType::Bf16,
        address: matrix.address(),
        sizes: &[64, (matrix.len() / cols) as u64, cols as u64 / 64],
        strides: &[2 * cols as u64, 128],
        tile: &[64, rows as u32, plan.shape.head_dim as u32 / 64],
        swizzle: 128,
    };
    Ok(Argument::TensorMap(cuda.driver().tensor_map(&tiles)?))
}

impl Execute<AttentionForward<'_, Cuda>> for Cuda {
    fn execute(&self, checked: Checked<AttentionForward<Cuda>>) -> Result<()> {
        let AttentionForward { qkv, segments, shape, out, log_sum_exp } = checked.operands();
        let plan = Plan::new(self, segments, shape, &[qkv.address(), out.address()])?;
        if plan.longest == 0 {
            return Ok(());
        }
        let pass = plan.forward_pass();
        let mut arguments = vec![
            source(self, &plan, &qkv, shape.qkv_cols(), pass.box_rows)?,
            segments.device.view().pointer(),
            out.pointer(),
            log_sum_exp.pointer(),
        ];
        arguments.extend(plan.sizes());
        plan.launch(self, &pass, &arguments)
    }
}

impl Execute<AttentionBackward<'_, Cuda>> for Cuda {
    fn execute(&self, checked: Checked<AttentionBackward<Cuda>>) -> Result<()> {
        let operands = checked.operands();
        let AttentionBackward { d_out, qkv, segments, shape, ref d_qkv, .. } = operands;
        let plan = Plan::new(self, segments, shape, &[d_out.address(), qkv.address(), d_qkv.address()])?;
        if plan.longest == 0 {
            return Ok(());
        }
        let rows_and_heads = qkv.rows * shape.num_attention_heads;
        self.with_scratch("attention statistics", 2 * rows_and_heads, DType::F32, |buffer| {
            let statistics = Argument::Pointer(buffer.address(0));
            launch_statistics(self, &plan, &operands, statistics)?;
            for pass in plan.backward_passes() {
                let mut arguments = vec![
                    source(self, &plan, &d_out, shape.query_cols(), pass.box_rows)?,
                    source(self, &plan, &qkv, shape.qkv_cols(), pass.box_rows)?,
                    statistics,
                    segments.device.view().pointer(),
                    d_qkv.pointer(),
                    Argument::U32(qkv.rows as u32),
                ];
                arguments.extend(plan.sizes());
                plan.launch(self, &pass, &arguments)?;
            }
            Ok(())
        })
    }
}

/// For each head and row: `log_sum_exp`, in the unit of the kernels that read it, and the sum of `d_out · out`.
fn launch_statistics(cuda: &Cuda, plan: &Plan, operands: &AttentionBackward<Cuda>, statistics: Argument) -> Result<()> {
    let AttentionBackward { d_out, out, log_sum_exp, .. } = operands;
    let heads = plan.shape.num_attention_heads;
    let head_dim = plan.shape.head_dim;
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
        Argument::F32(if plan.kernels != Kernels::General { std::f32::consts::LOG2_E } else { 1.0 }),
    ];
    let threads = sizes::ATTENTION_STATISTICS_THREADS;
    let blocks = (out.rows * heads).div_ceil(threads / 32);
    cuda.launch(&cuda.kernel("attention_statistics"), [blocks as u32, 1, 1], threads as u32, 0, &arguments)
}
