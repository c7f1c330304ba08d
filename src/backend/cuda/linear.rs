//! Matrix products: linear layers, and `product`, through which every other large product of the backend goes.

use super::choices::ProductShape;
use super::driver::{Argument, Gemm, Operand};
use super::{Cuda, Place, sizes};
use crate::error::{Error, Result};
use crate::ops::{
    Buffer, Checked, DType, Execute, LinearBackwardInput, LinearBackwardWeight, LinearForward, Matrix, MatrixMut,
};

impl Execute<LinearForward<'_, Cuda>> for Cuda {
    fn execute(&self, checked: Checked<LinearForward<Cuda>>) -> Result<()> {
        let LinearForward { x, w, y } = checked.operands();
        let gemm = Gemm {
            m: x.rows,
            n: w.rows,
            k: x.cols,
            a: rows(&x, x.cols),
            b: transposed(rows(&w, w.cols)),
            c: y.address(),
            c_leading: y.cols,
            input: x.dtype(),
            output: y.dtype(),
            alpha: 1.0,
            beta: 0.0,
        };
        product(self, &gemm)
    }
}

impl Execute<LinearBackwardInput<'_, Cuda>> for Cuda {
    fn execute(&self, checked: Checked<LinearBackwardInput<Cuda>>) -> Result<()> {
        let LinearBackwardInput { dy, w, dx, accumulate } = checked.operands();
        let gemm = Gemm {
            m: dy.rows,
            n: w.cols,
            k: dy.cols,
            a: rows(&dy, dy.cols),
            b: rows(&w, w.cols),
            c: dx.address(),
            c_leading: dx.cols,
            input: dy.dtype(),
            output: dx.dtype(),
            alpha: 1.0,
            beta: if accumulate { 1.0 } else { 0.0 },
        };
        product(self, &gemm)
    }
}

impl Execute<LinearBackwardWeight<'_, Cuda>> for Cuda {
    fn execute(&self, checked: Checked<LinearBackwardWeight<Cuda>>) -> Result<()> {
        let LinearBackwardWeight { dy, x, dw } = checked.operands();
        let gemm = Gemm {
            m: dy.cols,
            n: x.cols,
            k: dy.rows,
            a: transposed(rows(&dy, dy.cols)),
            b: rows(&x, x.cols),
            c: dw.address(),
            c_leading: dw.cols,
            input: dy.dtype(),
            output: dw.dtype(),
            alpha: 1.0,
            beta: 1.0,
        };
        product(self, &gemm)
    }
}

/// A matrix whose rows are `leading` elements apart, as an operand.
pub(super) fn rows(matrix: &impl Place, leading: usize) -> Operand {
    Operand { pointer: matrix.address(), leading, transposed: false }
}

/// The operand that reads the same memory as its transpose.
pub(super) fn transposed(operand: Operand) -> Operand {
    Operand { transposed: true, ..operand }
}

/// C = alpha · op(A) op(B) + beta · C, by the device's library where it has one and may be used, else by `gemm.cu`.
pub(super) fn product(cuda: &Cuda, gemm: &Gemm) -> Result<()> {
    // SAFETY: the addresses come from matrices whose shapes `ops` checked, or from scratch of the size computed here.
    if unsafe { library_product(cuda, gemm)? } {
        return Ok(());
    }
    own_product(cuda, gemm, None)
}

/// A number on the device that says how many rows exist, and which of them is the first of this product: what is beyond
/// it is left out, of C, or of both operands where A is transposed.
#[derive(Clone, Copy)]
pub(super) struct LiveRows {
    /// Address of the count, `uint32_t`.
    pub count: u64,
    /// The row of all rows at which the product starts.
    pub first: usize,
}

/// As [`product`], but rows beyond the live ones need not be computed: the library computes them nevertheless, so they
/// must hold numbers, and zeros where A is transposed.
pub(super) fn product_of_live_rows(cuda: &Cuda, gemm: &Gemm, live: LiveRows) -> Result<()> {
    // SAFETY: as in `product`.
    if unsafe { library_product(cuda, gemm)? } {
        return Ok(());
    }
    own_product(cuda, gemm, Some(live))
}

impl Cuda {
    /// A product of this shape, for whoever measures it. The operands are as long as its extents.
    ///
    /// # Errors
    /// [`Error::Shape`] where they are shorter, or stored in another dtype.
    pub(crate) fn product(
        &self,
        shape: &ProductShape,
        a: Matrix<Self>,
        b: Matrix<Self>,
        c: MatrixMut<Self>,
    ) -> Result<()> {
        let [in_a, in_b, in_c] = shape.extents();
        let holds = |matrix: &Matrix<Self>, elements, dtype| matrix.len() >= elements && matrix.buffer.dtype() == dtype;
        let fits = holds(&a, in_a, shape.input) && holds(&b, in_b, shape.input);
        if !fits || !holds(&c.as_matrix(), in_c, shape.output) {
            return Err(Error::Shape {
                operation: "a product",
                problem: format!("the operands are too short for {shape}"),
            });
        }
        product(self, &shape.on(a.address(), b.address(), c.address()))
    }
}

/// The product by the library; `false` where it is left to our own kernel.
///
/// # Safety
/// As [`super::Driver::gemm`].
unsafe fn library_product(cuda: &Cuda, gemm: &Gemm) -> Result<bool> {
    if !cuda.library_products || gemm.m == 0 || gemm.n == 0 {
        return Ok(false);
    }
    cuda.note(gemm);
    // SAFETY: passed on to the caller.
    unsafe { cuda.driver.gemm(gemm) }
}

/// The product by `gemm.cu`.
pub(super) fn own_product(cuda: &Cuda, gemm: &Gemm, live: Option<LiveRows>) -> Result<()> {
    if gemm.m == 0 || gemm.n == 0 {
        return Ok(());
    }
    let tiles = gemm.m.div_ceil(sizes::GEMM_TILE) * gemm.n.div_ceil(sizes::GEMM_TILE);
    let grid = u32::try_from(tiles).map_err(|_| Error::Device(format!("a product of {tiles} tiles")))?;
    let shared = if gemm.input == DType::Bf16 { sizes::GEMM_BF16_BYTES } else { sizes::GEMM_F32_BYTES };
    let arguments = [
        Argument::U32(count(gemm.m)?),
        Argument::U32(count(gemm.n)?),
        Argument::U32(count(gemm.k)?),
        Argument::Pointer(gemm.a.pointer),
        Argument::U64(gemm.a.leading as u64),
        Argument::Pointer(gemm.b.pointer),
        Argument::U64(gemm.b.leading as u64),
        Argument::Pointer(gemm.c),
        Argument::U64(gemm.c_leading as u64),
        Argument::F32(gemm.alpha),
        Argument::U32(u32::from(gemm.beta != 0.0)),
        Argument::Pointer(live.map_or(0, |live| live.count)),
        Argument::U32(count(live.map_or(0, |live| live.first))?),
    ];
    cuda.launch(&kernel(gemm)?, [grid, 1, 1], sizes::GEMM_THREADS as u32, shared, &arguments)
}

/// The kernel for a product's layout, dtypes and alignment.
fn kernel(gemm: &Gemm) -> Result<String> {
    let layout = match (gemm.a.transposed, gemm.b.transposed) {
        (false, true) => "nt",
        (false, false) => "nn",
        (true, false) => "tn",
        (true, true) => return Err(Error::Device("a product of two transposed matrices".into())),
    };
    if gemm.beta != 0.0 && gemm.beta != 1.0 {
        return Err(Error::Device(format!("a product onto {} times what is there", gemm.beta)));
    }
    let dtypes = match (gemm.input, gemm.output) {
        (DType::Bf16, DType::Bf16) => "bf16",
        (DType::Bf16, DType::F32) => "bf16_to_f32",
        (DType::F32, DType::F32) => return Ok(format!("gemm_{layout}_f32")),
        (input, output) => return Err(Error::Device(format!("a product of {input:?} into {output:?}"))),
    };
    let aligned = [gemm.a, gemm.b].iter().all(|operand| operand.pointer % 16 == 0 && operand.leading % 8 == 0);
    Ok(format!("gemm_{layout}_{dtypes}{}", if aligned { "" } else { "_unaligned" }))
}

/// A number of rows or columns as kernels take it.
pub(super) fn count(value: usize) -> Result<u32> {
    u32::try_from(value).map_err(|_| Error::Device(format!("a matrix of {value} rows or columns")))
}
