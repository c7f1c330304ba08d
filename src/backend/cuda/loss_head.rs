//! Launchers of the loss head.
//!
//! The live tokens (weight not 0) are listed on the device, and then taken in chunks: their hidden states are brought
//! together, logits = hidden headᵀ, the loss overwrites the logits with their gradient, and two products take that to
//! the hidden states and the head. The host never learns how many tokens are live. Our own products leave the others
//! out; the library's cannot, and multiply rows of zeros for them at the end. A teacher's logits of a chunk are computed
//! beside the student's, in chunks of half as many tokens.

use super::driver::{Argument, Gemm, Operand};
use super::linear::{LiveRows, count, product_of_live_rows, rows, transposed};
use super::{Cuda, CudaBuffer, Place, kernel_name, sizes};
use crate::error::Result;
use crate::ops::*;

/// Most threads of a block.
const THREADS: u32 = sizes::LOSS_HEAD_THREADS as u32;
/// Logits of a chunk, about: 1 GiB.
const CHUNK_LOGITS: usize = 1 << 28;

/// Tokens of a chunk. Products of less than 1,024 rows leave a large device idle; beyond 4,096 nothing is gained.
fn chunk_rows(tokens: usize, leading: usize) -> usize {
    let rows = (CHUNK_LOGITS / leading.max(1)).clamp(1024, 4096) / 128 * 128;
    rows.min(tokens)
}

/// Bytes of scratch for a head of `vocabulary` rows of `d` elements on up to `tokens` tokens: logits in f32, and for each
/// token of a chunk its hidden state and that one's gradient. A run with a teacher has `heads` of 2: it may keep the scratch
/// of passes without one and of passes with one, whose chunks are shorter.
pub(crate) fn scratch_bytes(tokens: usize, vocabulary: usize, d: usize, dtype: DType, heads: usize) -> usize {
    let leading = vocabulary.next_multiple_of(8);
    let state = dtype.bytes() * d;
    let logits = DType::F32.bytes() * leading;
    let own = chunk_rows(tokens, leading) * (logits + 2 * state);
    own + (heads - 1) * chunk_rows(tokens, heads * leading) * (logits + state)
}

/// Threads for a row of so many elements, `width` at a time.
fn threads(columns: usize, width: usize) -> u32 {
    (columns.div_ceil(width).next_multiple_of(32)).clamp(32, THREADS as usize) as u32
}

/// What the launches of a call share.
struct Head<'a> {
    cuda: &'a Cuda,
    loss: HeadLoss,
    hidden: Matrix<'a, Cuda>,
    head: Matrix<'a, Cuda>,
    targets: Matrix<'a, Cuda>,
    teacher: Option<HeadTeacher<'a, Cuda>>,
    weights: Matrix<'a, Cuda>,
    /// Address of how many tokens are live, then which: `uint32_t`.
    live: u64,
    /// Elements from one row of logits to the next: whole 16-byte vectors of f32 and of bf16.
    leading: usize,
    dtype: DType,
}

impl Execute<LossHead<'_, Cuda>> for Cuda {
    fn execute(&self, checked: Checked<LossHead<Cuda>>) -> Result<()> {
        let LossHead { loss, hidden, head, targets, teacher, weights, mut values, mut gradients } = checked.operands();
        let tokens = hidden.rows;
        let d = hidden.cols;
        let leading = head.rows.next_multiple_of(8);
        let dtype = hidden.dtype();
        self.run(Clear { to: values.reborrow() })?;
        if let Some(gradients) = &mut gradients {
            self.run(Clear { to: gradients.d_hidden.reborrow() })?;
        }
        if tokens == 0 || head.rows == 0 {
            return Ok(());
        }
        let heads = if teacher.is_some() { 2 } else { 1 };
        let chunk = chunk_rows(tokens, heads * leading);
        self.with_scratch("live tokens of the loss head", tokens + 1, DType::U32, |live| {
            let live = live.address(0);
            let call = Head { cuda: self, loss, hidden, head, targets, teacher, weights, live, leading, dtype };
            let arguments = [weights.pointer(), Argument::U32(count(tokens)?), Argument::Pointer(live)];
            self.launch("loss_head_compact", [1, 1, 1], THREADS, sizes::LOSS_HEAD_BYTES, &arguments)?;
            self.with_scratch("logits of a chunk of tokens", chunk * leading, DType::F32, |logits| {
                self.with_scratch("hidden states of a chunk of tokens", chunk * d, dtype, |gathered| {
                    for first in (0..tokens).step_by(chunk) {
                        let chunk = Chunk { call: &call, first, rows: chunk.min(tokens - first), logits, gathered };
                        chunk.taught(|teacher| chunk.run(teacher, values.reborrow(), gradients.as_mut()))?;
                    }
                    Ok(())
                })
            })
        })
    }
}

/// Live tokens `first..first + rows`, as far as there are so many.
struct Chunk<'a> {
    call: &'a Head<'a>,
    first: usize,
    rows: usize,
    logits: &'a CudaBuffer,
    gathered: &'a CudaBuffer,
}

impl Chunk<'_> {
    /// Runs `work` with the teacher's logits of this chunk, if there is a teacher.
    fn taught<R>(&self, work: impl FnOnce(Option<&CudaBuffer>) -> Result<R>) -> Result<R> {
        let Some(HeadTeacher { hidden, head }) = self.call.teacher else { return work(None) };
        let Head { cuda, dtype, leading, .. } = *self.call;
        cuda.with_scratch("teacher's logits of a chunk of tokens", self.rows * leading, DType::F32, |logits| {
            let len = self.rows * hidden.cols;
            cuda.with_scratch("teacher's hidden states of a chunk of tokens", len, dtype, |gathered| {
                self.move_rows("loss_head_gather", hidden.cols, [hidden.address(), gathered.address(0)])?;
                self.multiply_logits(gathered, head, logits)
            })?;
            work(Some(logits))
        })
    }

    fn run(
        &self,
        teacher: Option<&CudaBuffer>,
        values: MatrixMut<Cuda>,
        gradients: Option<&mut HeadGradients<Cuda>>,
    ) -> Result<()> {
        let Head { hidden, head, .. } = *self.call;
        self.move_rows("loss_head_gather", hidden.cols, [hidden.address(), self.gathered.address(0)])?;
        self.multiply_logits(self.gathered, head, self.logits)?;
        self.losses(teacher, values, gradients.is_some())?;
        let Some(gradients) = gradients else { return Ok(()) };
        let d_hidden = gradients.d_hidden.address();
        let cuda = self.call.cuda;
        let len = self.rows * self.call.hidden.cols;
        cuda.with_scratch("hidden gradients of a chunk of tokens", len, self.call.dtype, |scratch| {
            self.multiply_d_hidden(scratch)?;
            self.move_rows("loss_head_scatter", hidden.cols, [scratch.address(0), d_hidden])
        })?;
        gradients.d_head.as_ref().map_or(Ok(()), |d_head| self.multiply_d_head(d_head))
    }

    /// The logits' gradient: it begins where their row begins, in elements of its own size.
    fn d_logits(&self) -> Operand {
        let leading = self.call.leading * DType::F32.bytes() / self.call.dtype.bytes();
        Operand { pointer: self.logits.address(0), leading, transposed: false }
    }

    fn product(&self, gemm: &Gemm) -> Result<()> {
        product_of_live_rows(self.call.cuda, gemm, LiveRows { count: self.call.live, first: self.first })
    }

    /// logits = hidden headᵀ, with the hidden states of this chunk's tokens, one after another.
    fn multiply_logits(&self, gathered: &CudaBuffer, head: Matrix<Cuda>, logits: &CudaBuffer) -> Result<()> {
        self.product(&Gemm {
            m: self.rows,
            n: head.rows,
            k: head.cols,
            a: Operand { pointer: gathered.address(0), leading: head.cols, transposed: false },
            b: transposed(rows(&head, head.cols)),
            c: logits.address(0),
            c_leading: self.call.leading,
            input: self.call.dtype,
            output: DType::F32,
            alpha: 1.0,
            beta: 0.0,
        })
    }

    fn multiply_d_hidden(&self, to: &CudaBuffer) -> Result<()> {
        let head = self.call.head;
        self.product(&Gemm {
            m: self.rows,
            n: head.cols,
            k: head.rows,
            a: self.d_logits(),
            b: rows(&head, head.cols),
            c: to.address(0),
            c_leading: head.cols,
            input: self.call.dtype,
            output: self.call.dtype,
            alpha: 1.0,
            beta: 0.0,
        })
    }

    fn multiply_d_head(&self, d_head: &MatrixMut<Cuda>) -> Result<()> {
        let head = self.call.head;
        self.product(&Gemm {
            m: head.rows,
            n: head.cols,
            k: self.rows,
            a: transposed(self.d_logits()),
            b: Operand { pointer: self.gathered.address(0), leading: head.cols, transposed: false },
            c: d_head.address(),
            c_leading: head.cols,
            input: self.call.dtype,
            output: d_head.dtype(),
            alpha: 1.0,
            beta: 1.0,
        })
    }

    fn losses(&self, teacher: Option<&CudaBuffer>, values: MatrixMut<Cuda>, gradient: bool) -> Result<()> {
        let Head { cuda, live, targets, weights, leading, .. } = *self.call;
        let (kernel, shared_bytes) = match self.call.loss {
            HeadLoss::CrossEntropy => ("loss_head_cross_entropy", sizes::LOSS_HEAD_BYTES),
            HeadLoss::NegativeEntropy => ("loss_head_negative_entropy", sizes::LOSS_HEAD_BYTES),
            HeadLoss::TeacherDivergence => ("loss_head_teacher_divergence", sizes::LOSS_HEAD_DIVERGENCE_BYTES),
        };
        let arguments = [
            Argument::Pointer(self.logits.address(0)),
            Argument::U64(leading as u64),
            Argument::U32(count(self.call.head.rows)?),
            Argument::Pointer(live),
            Argument::U32(count(self.first)?),
            teacher.map_or(targets.pointer(), |logits| Argument::Pointer(logits.address(0))),
            weights.pointer(),
            values.pointer(),
            Argument::U32(u32::from(gradient)),
            // The library's products read the rows of tokens that do not exist.
            Argument::U32(u32::from(cuda.library_products)),
        ];
        let threads = threads(self.call.head.rows, 4);
        cuda.launch(&kernel_name(kernel, self.call.dtype), [count(self.rows)?, 1, 1], threads, shared_bytes, &arguments)
    }

    fn move_rows(&self, kernel: &str, d: usize, [from, to]: [u64; 2]) -> Result<()> {
        let whole_vectors = [from, to, (d * self.call.dtype.bytes()) as u64].iter().all(|bytes| bytes % 16 == 0);
        let threads = threads(d, if whole_vectors { 16 / self.call.dtype.bytes() } else { 1 });
        let arguments = [
            Argument::Pointer(from),
            Argument::Pointer(to),
            Argument::U32(count(d)?),
            Argument::Pointer(self.call.live),
            Argument::U32(count(self.first)?),
            Argument::U32(u32::from(whole_vectors)),
        ];
        self.call.cuda.launch(&kernel_name(kernel, self.call.dtype), [count(self.rows)?, 1, 1], threads, 0, &arguments)
    }
}
