//! Reading what `ptxas -v` says about each kernel.

/// Resources of one kernel on one architecture.
#[derive(Debug, PartialEq)]
pub struct Resources {
    pub kernel: String,
    /// As in `sm_90a`, without the `sm_`.
    pub architecture: String,
    pub registers: u32,
    pub stack_bytes: u32,
    pub spill_store_bytes: u32,
    pub spill_load_bytes: u32,
    pub local_bytes: u32,
}

/// What a log says: resources in the order of the log, and the lines that warn.
#[derive(Debug, Default, PartialEq)]
pub struct Report {
    pub resources: Vec<Resources>,
    pub warnings: Vec<String>,
}

/// Reads a log. Functions that a kernel calls (not inlined) are reported after it and count as the kernel's.
pub fn read(log: &str) -> Report {
    let mut report = Report::default();
    for line in log.lines() {
        if let Some((kernel, architecture)) = entry(line) {
            report.resources.push(Resources {
                kernel,
                architecture,
                registers: 0,
                stack_bytes: 0,
                spill_store_bytes: 0,
                spill_load_bytes: 0,
                local_bytes: 0,
            });
        } else if line.contains("warning") || line.contains("(C75") {
            report.warnings.push(line.trim().to_string());
        } else if let Some(last) = report.resources.last_mut() {
            last.stack_bytes += number_before(line, " bytes stack frame");
            last.spill_store_bytes += number_before(line, " bytes spill stores");
            last.spill_load_bytes += number_before(line, " bytes spill loads");
            last.local_bytes += number_before(line, " bytes lmem");
            last.registers = last.registers.max(number_before(line, " registers"));
        }
    }
    report
}

/// `ptxas info : Compiling entry function 'name' for 'sm_90a'`
fn entry(line: &str) -> Option<(String, String)> {
    let mut quoted = line.split_once("Compiling entry function")?.1.split('\'');
    let kernel = quoted.nth(1)?;
    let architecture = quoted.nth(1)?;
    Some((kernel.to_string(), architecture.strip_prefix("sm_")?.to_string()))
}

/// The number that ends where `unit` begins; 0 where there is none.
fn number_before(line: &str, unit: &str) -> u32 {
    let before = line.split_once(unit).map_or("", |(before, _)| before);
    let digits = before.rsplit(|c: char| !c.is_ascii_digit()).next().unwrap_or("");
    digits.parse().unwrap_or(0)
}
