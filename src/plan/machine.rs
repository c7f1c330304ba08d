//! The memory that this machine has left for a run.
//!
//! The crate `sysinfo` reads the same files, but counts page cache that the kernel would drop as used up. A container that
//! has read a model's weights would look full.

use std::fs::read_to_string;

/// Bytes that a new process may use: the memory that the kernel calls available, or the rest of the container's limit
/// where it is less. `None` where the system has no `/proc/meminfo`.
pub fn available_memory() -> Option<u64> {
    let system = kibibytes(&read_to_string("/proc/meminfo").ok()?, "MemAvailable:")?;
    let container = container_rest().unwrap_or(u64::MAX);
    Some(system.min(container))
}

/// The rest of a control group's limit (version 2). Page cache that can be dropped counts as free.
fn container_rest() -> Option<u64> {
    let read = |name: &str| read_to_string(format!("/sys/fs/cgroup/{name}")).ok();
    let limit: u64 = read("memory.max")?.trim().parse().ok()?;
    let used: u64 = read("memory.current")?.trim().parse().ok()?;
    let cache = read("memory.stat").and_then(|stat| field(&stat, "inactive_file")).unwrap_or(0);
    Some(limit.saturating_sub(used.saturating_sub(cache)))
}

fn kibibytes(text: &str, key: &str) -> Option<u64> {
    field(text, key)?.checked_mul(1024)
}

/// The number after `key` at the start of a line.
fn field(text: &str, key: &str) -> Option<u64> {
    let mut lines = text.lines().map(str::split_whitespace);
    lines.find_map(|mut words| if words.next() == Some(key) { words.next()?.parse().ok() } else { None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read_in_kibibytes() {
        let text = "MemTotal:       1000 kB\nMemFree: 1 kB\nMemAvailable:    600 kB\n";
        assert_eq!(kibibytes(text, "MemAvailable:"), Some(600 * 1024));
        assert_eq!(kibibytes(text, "Mem"), None);
        assert_eq!(kibibytes("MemAvailable: many kB", "MemAvailable:"), None);
    }
}
