//! Memory of the CPU: it is main memory, so parking is copying.

use super::view::{words, words_mut};
use super::{Cpu, CpuBuffer};
use crate::error::{Error, Result};
use crate::ops::*;

impl Memory for Cpu {
    type Buffer = CpuBuffer;
    type Parked = CpuBuffer;

    fn zeros(&self, name: &str, len: usize, dtype: DType) -> Result<CpuBuffer> {
        if !matches!(dtype, DType::F32 | DType::U32) {
            return Err(Error::Device(format!("{name}: the CPU backend stores f32 and u32, not {dtype:?}")));
        }
        CpuBuffer::zeros(len, dtype).ok_or_else(|| {
            let bytes = len as u128 * dtype.bytes() as u128;
            Error::Device(format!("{name}: the system has no main memory for {bytes} bytes"))
        })
    }

    fn parked(&self, name: &str, len: usize, dtype: DType) -> Result<CpuBuffer> {
        self.zeros(name, len, dtype)
    }
}

impl Execute<UploadF32<'_, Cpu>> for Cpu {
    fn execute(&self, checked: Checked<UploadF32<Cpu>>) -> Result<()> {
        let UploadF32 { values, to, offset } = checked.operands();
        to.floats_mut()[offset..][..values.len()].copy_from_slice(values);
        Ok(())
    }
}

impl Execute<UploadU32<'_, Cpu>> for Cpu {
    fn execute(&self, checked: Checked<UploadU32<Cpu>>) -> Result<()> {
        let UploadU32 { values, to, offset } = checked.operands();
        to.integers_mut()[offset..][..values.len()].copy_from_slice(values);
        Ok(())
    }
}

impl Execute<DownloadF32<'_, Cpu>> for Cpu {
    fn execute(&self, checked: Checked<DownloadF32<Cpu>>) -> Result<Vec<f32>> {
        let DownloadF32 { from, offset, len } = checked.operands();
        Ok(from.floats()[offset..][..len].to_vec())
    }
}

impl Execute<CopyValues<'_, Cpu>> for Cpu {
    fn execute(&self, checked: Checked<CopyValues<Cpu>>) -> Result<()> {
        let CopyValues { from, to } = checked.operands();
        words_mut(to).copy_from_slice(words(from));
        Ok(())
    }
}

impl Execute<Park<'_, Cpu>> for Cpu {
    fn execute(&self, checked: Checked<Park<Cpu>>) -> Result<()> {
        let Park { from, to, to_offset } = checked.operands();
        let len = from.len();
        to.words_mut()[to_offset..][..len].copy_from_slice(words(from));
        Ok(())
    }
}

impl Execute<Fetch<'_, Cpu>> for Cpu {
    fn execute(&self, checked: Checked<Fetch<Cpu>>) -> Result<()> {
        let Fetch { from, from_offset, to } = checked.operands();
        let len = to.len();
        words_mut(to).copy_from_slice(&from.words()[from_offset..][..len]);
        Ok(())
    }
}

impl Execute<Clear<'_, Cpu>> for Cpu {
    fn execute(&self, checked: Checked<Clear<Cpu>>) -> Result<()> {
        words_mut(checked.operands().to).fill(0.0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// More than any address space has, and more than a byte count can say.
    #[test]
    fn memory_that_does_not_exist_is_an_error() {
        for len in [1 << 50, usize::MAX] {
            let error = Cpu.zeros("weights", len, DType::F32).unwrap_err().to_string();
            assert!(error.contains("weights: the system has no main memory for"), "{error}");
        }
        assert!(Tensor::zeros(&Cpu, "weights", usize::MAX, 2, DType::F32).is_err());
    }
}
