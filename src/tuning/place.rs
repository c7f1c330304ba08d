//! Where a device's choices lie unless a run says otherwise: in the user's cache, one file a kind of device, so that all
//! runs of a user follow the same ones and none of them has to be told.

use std::ffi::OsString;
use std::path::PathBuf;

/// `$XDG_CACHE_HOME/temper/tuning/DEVICE.json`, or the same in `~/.cache`; none where the system names neither.
pub fn standard_path(device: &str) -> Option<PathBuf> {
    path_in(std::env::var_os("XDG_CACHE_HOME"), std::env::var_os("HOME"), device)
}

fn path_in(cache: Option<OsString>, home: Option<OsString>, device: &str) -> Option<PathBuf> {
    let absolute = |value: Option<OsString>| value.map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = absolute(cache).or_else(|| absolute(home).map(|home| home.join(".cache")))?;
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    Some(cache.join("temper/tuning").join(format!("{}.json", device.chars().map(plain).collect::<String>())))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A relative path is no place: it would be another in every folder. A device's name cannot lead elsewhere.
    #[test]
    fn the_place_is_absolute_and_named_after_the_device() {
        let at = |cache: &str, home: &str| {
            let given = |text: &str| (!text.is_empty()).then(|| OsString::from(text));
            path_in(given(cache), given(home), "NVIDIA H200/../x").map(|path| path.display().to_string())
        };
        assert_eq!(at("/c", "/h").as_deref(), Some("/c/temper/tuning/nvidia-h200----x.json"));
        assert_eq!(at("c", "/h").as_deref(), Some("/h/.cache/temper/tuning/nvidia-h200----x.json"));
        assert_eq!(at("", ""), None);
    }
}
