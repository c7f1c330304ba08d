//! Memory of the CPU: it is main memory, so parking is copying.

use super::view::{words, words_mut};
use super::{Cpu, CpuBuffer};
use crate::error::{Error, Result};
use crate::ops::*;

impl Memory for Cpu {
    type Buffer = CpuBuffer;
    type Parked = CpuBuffer;

    fn zeros(&self, name: &str, len: usize, dtype: DType) -> Result<CpuBuffer> {
        if matches!(dtype, DType::F32 | DType::U32) {
            return Ok(CpuBuffer::zeros(len, dtype));
        }
        Err(Error::Device(format!("{name}: the CPU backend stores f32 and u32, not {dtype:?}")))
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
