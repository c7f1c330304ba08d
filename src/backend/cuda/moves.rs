//! Memory of a device and of the host, and copies within and between them.

use super::memory::{decode, encode};
use super::{Cuda, CudaBuffer, ParkedBuffer, Place};
use crate::error::Result;
use crate::ops::*;

impl Memory for Cuda {
    type Buffer = CudaBuffer;
    type Parked = ParkedBuffer;

    fn zeros(&self, name: &str, len: usize, dtype: DType) -> Result<CudaBuffer> {
        let buffer = CudaBuffer::uninitialized(&self.driver, name, len, dtype)?;
        // SAFETY: the buffer has these bytes.
        unsafe { self.driver.clear(buffer.address(0), len * dtype.bytes())? };
        Ok(buffer)
    }

    fn parked(&self, name: &str, len: usize, dtype: DType) -> Result<ParkedBuffer> {
        ParkedBuffer::zeros(&self.driver, name, len, dtype)
    }
}

/// Bytes of a matrix.
fn bytes(matrix: &Matrix<Cuda>) -> usize {
    matrix.len() * matrix.dtype().bytes()
}

impl Execute<UploadF32<'_, Cuda>> for Cuda {
    fn execute(&self, checked: Checked<UploadF32<Cuda>>) -> Result<()> {
        let UploadF32 { values, to, offset } = checked.operands();
        // SAFETY: the range was checked.
        unsafe { self.driver.upload(to.address(offset), &encode(values, to.dtype())) }
    }
}

impl Execute<UploadU32<'_, Cuda>> for Cuda {
    fn execute(&self, checked: Checked<UploadU32<Cuda>>) -> Result<()> {
        let UploadU32 { values, to, offset } = checked.operands();
        // SAFETY: the range was checked.
        unsafe { self.driver.upload(to.address(offset), bytemuck::cast_slice(values)) }
    }
}

impl Execute<DownloadF32<'_, Cuda>> for Cuda {
    fn execute(&self, checked: Checked<DownloadF32<Cuda>>) -> Result<Vec<f32>> {
        let DownloadF32 { from, offset, len } = checked.operands();
        let mut bytes = vec![0; len * from.dtype().bytes()];
        // SAFETY: the range was checked.
        unsafe { self.driver.download(from.address(offset), &mut bytes)? };
        Ok(decode(&bytes, from.dtype()))
    }
}

impl Execute<CopyValues<'_, Cuda>> for Cuda {
    fn execute(&self, checked: Checked<CopyValues<Cuda>>) -> Result<()> {
        let CopyValues { from, to } = checked.operands();
        // SAFETY: both ranges were checked, and lie in two buffers, since one of them is borrowed mutably.
        unsafe { self.driver.copy(from.address(), to.address(), bytes(&from)) }
    }
}

impl Execute<Park<'_, Cuda>> for Cuda {
    fn execute(&self, checked: Checked<Park<Cuda>>) -> Result<()> {
        let Park { from, to, to_offset } = checked.operands();
        // SAFETY: both ranges were checked.
        unsafe { self.driver.park(from.address(), to.address(to_offset), bytes(&from)) }
    }
}

impl Execute<Fetch<'_, Cuda>> for Cuda {
    fn execute(&self, checked: Checked<Fetch<Cuda>>) -> Result<()> {
        let Fetch { from, from_offset, to } = checked.operands();
        // SAFETY: both ranges were checked.
        unsafe { self.driver.fetch(from.address(from_offset), to.address(), bytes(&to.as_matrix())) }
    }
}

impl Execute<Clear<'_, Cuda>> for Cuda {
    fn execute(&self, checked: Checked<Clear<Cuda>>) -> Result<()> {
        let to = checked.operands().to;
        // SAFETY: the range was checked.
        unsafe { self.driver.clear(to.address(), bytes(&to.as_matrix())) }
    }
}
