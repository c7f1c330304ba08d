//! [`Key`]: the device, driver, library and program that measured choices are for; [`KeptChoices`]: the choices with it.

use serde::{Deserialize, Serialize};

use super::{Choices, Cuda, DeviceInfo};

/// The choices that a device follows, and what they are for: what a run keeps, so that it goes on with them whatever becomes
/// of the file that they came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeptChoices {
    /// What they are for.
    pub key: Key,
    /// The choices; empty where the run began without any.
    pub choices: Choices,
}

/// What choices are for. On another device, driver, library or program none of them is used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// The device's name.
    pub device: String,
    /// "9.0" for Hopper.
    pub compute_capability: String,
    /// CUDA version of the driver; none where a CPU plays the device.
    pub driver: Option<String>,
    /// The library of matrix products, with its version.
    pub library: Option<String>,
    /// "temper 0.1.0".
    pub program: String,
    /// Digest of the GPU code inside the program; empty where there is none.
    pub kernels: String,
}

impl Key {
    /// Of an opened device.
    pub fn of(cuda: &Cuda) -> Self {
        let driver = cuda.driver();
        let version = if driver.is_simulated() { None } else { Cuda::driver_version() };
        Self::new(driver.device(), version, driver.gemm_library())
    }

    /// Of a device that was looked at.
    pub fn new(info: &DeviceInfo, driver: Option<String>, library: Option<String>) -> Self {
        let (major, minor) = info.compute_capability;
        Self {
            device: info.name.clone(),
            compute_capability: format!("{major}.{minor}"),
            driver,
            library,
            program: format!("temper {}", env!("CARGO_PKG_VERSION")),
            kernels: Cuda::kernels_digest().into(),
        }
    }

    /// The first thing that is not the same here, in words; none where the choices can be used.
    pub fn difference(&self, here: &Self) -> Option<String> {
        let none = || "none".to_string();
        let facts = [
            ("device", self.device.clone(), here.device.clone()),
            ("compute capability", self.compute_capability.clone(), here.compute_capability.clone()),
            ("driver", self.driver.clone().unwrap_or_else(none), here.driver.clone().unwrap_or_else(none)),
            ("library", self.library.clone().unwrap_or_else(none), here.library.clone().unwrap_or_else(none)),
            ("program", self.program.clone(), here.program.clone()),
            ("kernels", self.kernels.clone(), here.kernels.clone()),
        ];
        let differs = facts.into_iter().find(|(_, measured, found)| measured != found);
        differs.map(|(what, measured, found)| format!("it was measured with {what} {measured}, and here it is {found}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Key {
        Key {
            device: "a GPU".into(),
            compute_capability: "9.0".into(),
            driver: Some("13.0".into()),
            library: Some("cuBLASLt 13.0.2".into()),
            program: "temper 0.1.0".into(),
            kernels: "ab".into(),
        }
    }

    /// Each fact alone makes choices unusable, and is named.
    #[test]
    fn whatever_differs_is_named() {
        assert_eq!(key().difference(&key()), None);
        let others = [
            (Key { device: "b".into(), ..key() }, "device a GPU, and here it is b"),
            (Key { compute_capability: "8.0".into(), ..key() }, "compute capability 9.0"),
            (Key { driver: None, ..key() }, "driver 13.0, and here it is none"),
            (Key { library: Some("cuBLASLt 13.1.0".into()), ..key() }, "here it is cuBLASLt 13.1.0"),
            (Key { program: "temper 0.2.0".into(), ..key() }, "program temper 0.1.0"),
            (Key { kernels: "cd".into(), ..key() }, "kernels ab"),
        ];
        for (other, words) in others {
            assert!(key().difference(&other).unwrap().contains(words), "{words}");
        }
    }
}
