//! The kernels inside this binary: GPU code, made by nvcc when temper was built, and what ptxas said about it.

use super::error::Unavailable;

/// GPU code and its description. Empty, with no toolkit, where temper was built without nvcc.
#[derive(Debug)]
pub struct Embedded {
    /// The CUDA release that compiled it: (13, 0).
    pub toolkit: Option<(u32, u32)>,
    /// Architectures with ready code, as in `sm_90a` without the `sm_`. A generic PTX for 8.0 comes with them.
    pub architectures: &'static [&'static str],
    /// Digest of all images.
    pub digest: &'static str,
    /// One for each file in `kernels/`.
    pub modules: &'static [Module],
}

/// One file of `kernels/`, compiled.
#[derive(Debug)]
pub struct Module {
    /// The file's name, without `.cu`.
    pub name: &'static str,
    /// A fatbin: code for several architectures.
    pub image: &'static [u8],
    /// Warnings of nvcc and ptxas.
    pub warnings: &'static [&'static str],
    /// Its kernels, once an architecture.
    pub kernels: &'static [Resources],
}

/// What one kernel takes on one architecture, as ptxas reports it.
#[derive(Debug)]
pub struct Resources {
    /// Its name.
    pub kernel: &'static str,
    /// "90a".
    pub architecture: &'static str,
    /// Registers of a thread.
    pub registers: u32,
    /// Stack frame of a thread, in bytes.
    pub stack_bytes: u32,
    /// Bytes that a thread stores because registers ran out.
    pub spill_store_bytes: u32,
    /// Bytes that a thread loads because registers ran out.
    pub spill_load_bytes: u32,
    /// Local memory of a thread, in bytes.
    pub local_bytes: u32,
}

/// The code that a device runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// Ready code for this architecture.
    Ready(&'static str),
    /// The generic PTX, compiled by the driver when it is loaded.
    Generic,
}

/// The bytes of a file, aligned as the driver reads them.
#[allow(unused_macros)] // by a table without modules
macro_rules! aligned_bytes {
    ($path:literal) => {{
        #[repr(C, align(64))]
        struct Aligned<T: ?Sized>(T);
        const BYTES: &Aligned<[u8]> = &Aligned(*include_bytes!($path));
        &BYTES.0
    }};
}

/// What is inside this binary; the table is written by the build script.
pub static EMBEDDED: Embedded = include!(concat!(env!("OUT_DIR"), "/cuda/table.rs"));

/// Oldest compute capability: bf16 arithmetic begins there.
const OLDEST: (u32, u32) = (8, 0);
/// Oldest driver, whatever the toolkit: the functions that this backend calls exist from there on.
const OLDEST_DRIVER: (u32, u32) = (12, 8);

impl Embedded {
    /// The module that holds a kernel.
    pub fn module_of(&self, kernel: &str) -> Option<&'static Module> {
        self.modules.iter().find(|module| module.kernels.iter().any(|resources| resources.kernel == kernel))
    }

    /// Which code a device runs. `driver` is the CUDA version of its driver.
    ///
    /// Ready code needs a driver of the toolkit's major version, PTX one of the toolkit's full version.
    ///
    /// # Errors
    /// When there is no code at all, or none that this device and this driver can run.
    pub fn code_for(&self, capability: (u32, u32), driver: (u32, u32)) -> Result<Code, Unavailable> {
        let toolkit = self.toolkit.ok_or(Unavailable::NoKernels)?;
        if capability < OLDEST {
            return Err(Unavailable::OldDevice { capability, oldest: OLDEST });
        }
        let needed = (toolkit.0, 0).max(OLDEST_DRIVER);
        if driver < needed {
            return Err(Unavailable::OldDriver { driver, needed, toolkit });
        }
        let best = self.architectures.iter().filter(|name| runs_on(name, capability)).max_by_key(|name| number(name));
        match best {
            Some(name) => Ok(Code::Ready(name)),
            None if driver >= toolkit => Ok(Code::Generic),
            None => Err(Unavailable::NoCode { capability, driver, toolkit, built_for: self.architectures.join(", ") }),
        }
    }
}

/// Whether ready code for an architecture runs on a device: "80" on every 8.x, "86" from 8.6 on, "90a" on 9.0 alone,
/// "100f" on 10.0 and later 10.x.
fn runs_on(architecture: &str, capability: (u32, u32)) -> bool {
    let Some(number) = number(architecture) else { return false };
    let major = number / 10;
    let minor = number % 10;
    let specific = architecture.ends_with('a');
    major == capability.0 && if specific { minor == capability.1 } else { minor <= capability.1 }
}

fn number(architecture: &str) -> Option<u32> {
    architecture.trim_end_matches(['a', 'f']).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn built(toolkit: (u32, u32), architectures: &'static [&'static str]) -> Embedded {
        Embedded { toolkit: Some(toolkit), architectures, digest: "", modules: &[] }
    }

    #[test]
    fn a_device_runs_the_closest_code_of_its_own_generation() {
        let embedded = built((13, 0), &["80", "86", "90a"]);
        let code = |capability| embedded.code_for(capability, (13, 1)).expect("code");
        assert_eq!(code((8, 0)), Code::Ready("80"));
        assert_eq!(code((8, 6)), Code::Ready("86"));
        assert_eq!(code((8, 9)), Code::Ready("86"));
        assert_eq!(code((9, 0)), Code::Ready("90a"));
        assert_eq!(code((10, 0)), Code::Generic);
        assert_eq!(code((12, 1)), Code::Generic);
        let family = built((13, 0), &["80", "100f"]);
        assert_eq!(family.code_for((10, 3), (13, 0)).expect("code"), Code::Ready("100f"));
        assert_eq!(family.code_for((9, 0), (13, 0)).expect("code"), Code::Generic);
    }

    /// The four ways in which a device cannot be used, each with the numbers that a user needs.
    #[test]
    fn what_cannot_run_is_refused_with_both_versions_and_a_remedy() {
        let embedded = built((13, 1), &["80", "90a"]);
        let message = |result: Result<Code, Unavailable>| result.expect_err("no code").to_string();
        let old = message(embedded.code_for((9, 0), (12, 9)));
        assert!(
            old.contains("12.9") && old.contains("13.0") && old.contains("13.1") && old.contains("update"),
            "{old}"
        );
        // Ready code runs on any driver of its major version; PTX does not.
        assert_eq!(embedded.code_for((9, 0), (13, 0)).expect("code"), Code::Ready("90a"));
        let generic = message(embedded.code_for((10, 0), (13, 0)));
        assert!(generic.contains("10.0") && generic.contains("TEMPER_CUDA_ARCHS=100"), "{generic}");
        let device = message(embedded.code_for((7, 5), (13, 1)));
        assert!(device.contains("7.5") && device.contains("8.0"), "{device}");
        let empty = Embedded { toolkit: None, architectures: &[], digest: "", modules: &[] };
        assert!(message(empty.code_for((9, 0), (13, 0))).contains("nvcc"));
        let minor = message(built((12, 4), &["90a"]).code_for((9, 0), (12, 4)));
        assert!(minor.contains("12.8"), "{minor}");
    }

    /// The driver reads images in place, as 8-byte words and more.
    #[test]
    fn images_are_aligned_and_kernels_have_one_home() {
        let mut homes = std::collections::HashMap::new();
        for module in EMBEDDED.modules {
            assert_eq!(module.image.as_ptr() as usize % 64, 0, "{}", module.name);
            assert_eq!(module.image[..4], [0x50, 0xed, 0x55, 0xba], "{} is a fatbin", module.name);
            for resources in module.kernels {
                let home = *homes.entry(resources.kernel).or_insert(module.name);
                assert_eq!(home, module.name, "{} is in two files", resources.kernel);
            }
        }
    }
}
