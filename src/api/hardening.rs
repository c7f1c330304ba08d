//! A hardening run whose loop belongs to the caller.

use std::path::Path;

use super::{Control, Device, HardenSummary, OuterReport, Result, RunConfig};
use crate::backend::any::Opened;
use crate::backend::cpu::Cpu;
use crate::backend::cuda::Cuda;
use crate::run;

/// A hardening run, step by step: [`harden`](super::harden) is a loop over one of these.
///
/// ```no_run
/// use temper::api::{Control, Device, Hardening, Precision, Result, RunConfig};
///
/// # fn main() -> Result<()> {
/// let device = Device::open("auto", Precision::Bf16)?;
/// let config = RunConfig::load("run.toml".as_ref(), &[])?;
/// let mut run = Hardening::begin(&device, &config, "hardened", Control::new())?;
/// while let Some(report) = run.step()? {
///     if report.step % 10 == 9 {
///         run.checkpoint()?;
///     }
/// }
/// run.finish()?;
/// # Ok(())
/// # }
/// ```
pub struct Hardening<'a>(Inner<'a>);

enum Inner<'a> {
    Cpu(Box<run::Hardening<'a, Cpu>>),
    Cuda(Box<run::Hardening<'a, Cuda>>),
}

macro_rules! on_inner {
    ($inner:expr, $run:ident => $body:expr) => {
        match $inner {
            Inner::Cpu($run) => $body,
            Inner::Cuda($run) => $body,
        }
    };
}

impl<'a> Hardening<'a> {
    /// Sets a run up: opens model and data, trains the safeguard that `config` asks for, or goes back to the newest
    /// checkpoint in `out` where `control` resumes.
    pub fn begin(device: &Device, config: &RunConfig, out: impl AsRef<Path>, control: Control<'a>) -> Result<Self> {
        let out = out.as_ref();
        let device = super::following(device, config.tuning.as_ref(), out, control.resumes())?;
        Ok(Self(match &device.0 {
            Opened::Cpu(cpu) => Inner::Cpu(Box::new(run::Hardening::begin(cpu.clone(), config, out, control)?)),
            Opened::Cuda(cuda) => Inner::Cuda(Box::new(run::Hardening::begin(cuda.clone(), config, out, control)?)),
        }))
    }

    /// Takes the next outer step; none where all of them are done. It writes no checkpoint, except at a request to stop.
    ///
    /// # Errors
    /// [`Error::Interrupted`](super::Error::Interrupted) after a request to stop: the step is discarded and a checkpoint
    /// saved. [`Error::NonFinite`](super::Error::NonFinite) at the third step in a row that had to be skipped.
    pub fn step(&mut self) -> Result<Option<OuterReport>> {
        on_inner!(&mut self.0, run => run.step())
    }

    /// Outer steps done; earlier processes' count.
    pub fn steps_done(&self) -> u64 {
        on_inner!(&self.0, run => run.steps_done())
    }

    /// The weights as they are between two outer steps, tensor after tensor in the order in which they are exported.
    pub fn weights(&self) -> Result<Vec<f32>> {
        on_inner!(&self.0, run => run.weights())
    }

    /// Saves a checkpoint, from which a run that resumes goes on.
    pub fn checkpoint(&mut self) -> Result<()> {
        on_inner!(&mut self.0, run => run.checkpoint())
    }

    /// Writes the hardened model, as it is after the steps taken, into the output directory.
    pub fn finish(self) -> Result<HardenSummary> {
        on_inner!(self.0, run => run.finish())
    }
}
