//! Matrix products of a simulated device, on the CPU.

use half::bf16;

use crate::backend::cuda::driver::{Gemm, Operand};
use crate::ops::DType;

/// The product on the CPU, in f32.
pub(super) unsafe fn host_product(gemm: &Gemm) {
    // SAFETY: the caller vouches for the operands.
    let (a, b) =
        unsafe { (to_floats(&gemm.a, gemm.m, gemm.k, gemm.input), to_floats(&gemm.b, gemm.k, gemm.n, gemm.input)) };
    let mut product = vec![0.0f32; gemm.m * gemm.n];
    // SAFETY: the three vectors have the sizes and strides given.
    unsafe {
        gemm::gemm(
            gemm.m,
            gemm.n,
            gemm.k,
            product.as_mut_ptr(),
            1,
            gemm.n as isize,
            false,
            a.as_ptr(),
            1,
            gemm.k as isize,
            b.as_ptr(),
            1,
            gemm.n as isize,
            0.0,
            gemm.alpha,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
    for row in 0..gemm.m {
        for column in 0..gemm.n {
            let value = product[row * gemm.n + column];
            let place = row * gemm.c_leading + column;
            // SAFETY: the place is inside C, which the caller vouches for.
            unsafe { add_to(gemm, place, value) };
        }
    }
}

unsafe fn add_to(gemm: &Gemm, place: usize, value: f32) {
    // SAFETY: the caller vouches for the place.
    unsafe {
        match gemm.output {
            DType::Bf16 => {
                let c = (gemm.c as *mut bf16).add(place);
                let before = if gemm.beta == 0.0 { 0.0 } else { gemm.beta * (*c).to_f32() };
                *c = bf16::from_f32(before + value);
            }
            _ => {
                let c = (gemm.c as *mut f32).add(place);
                let before = if gemm.beta == 0.0 { 0.0 } else { gemm.beta * *c };
                *c = before + value;
            }
        }
    }
}

/// op(X) as a dense row-major f32 matrix.
unsafe fn to_floats(operand: &Operand, rows: usize, cols: usize, dtype: DType) -> Vec<f32> {
    let at = |row: usize, column: usize| {
        let place = if operand.transposed { column * operand.leading + row } else { row * operand.leading + column };
        // SAFETY: inside the operand, which the caller vouches for.
        unsafe {
            match dtype {
                DType::Bf16 => (*(operand.pointer as *const bf16).add(place)).to_f32(),
                _ => *(operand.pointer as *const f32).add(place),
            }
        }
    };
    (0..rows).flat_map(|row| (0..cols).map(move |column| (row, column))).map(|(row, column)| at(row, column)).collect()
}
