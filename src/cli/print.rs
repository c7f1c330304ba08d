//! Data on stdout: tables and JSON.

use std::io::Write;

use serde::Serialize;
pub use temper::report::units::flop;

/// Writes text to stdout.
pub fn text(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// Writes one JSON document to stdout.
pub fn json(value: &impl Serialize) -> anyhow::Result<()> {
    text(&format!("{}\n", serde_json::to_string_pretty(value)?))
}

/// Bytes in the unit that suits them, powers of 1000 as memory is sold.
pub fn bytes(count: u64) -> String {
    match count {
        0..1_000 => format!("{count} B"),
        1_000..1_000_000 => format!("{:.1} kB", count as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", count as f64 / 1e6),
        _ => format!("{:.1} GB", count as f64 / 1e9),
    }
}

/// Rows under a header, columns aligned, the last one running free. Every row has as many cells as the header.
pub fn table<const N: usize>(header: [&str; N], rows: &[[String; N]]) -> String {
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.to_vec()).collect();
    columns(&header.map(str::to_string), &rows)
}

/// The same for a number of columns that is not known beforehand.
pub fn columns(header: &[String], rows: &[Vec<String>]) -> String {
    let all = || std::iter::once(header).chain(rows.iter().map(Vec::as_slice));
    let width = |column: usize| all().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..header.len()).map(|column| width(column).unwrap_or(0)).collect();
    let line = |cells: &[String]| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        format!("{}\n", padded.collect::<Vec<_>>().join("  ").trim_end())
    };
    all().map(line).collect()
}

/// Text that may quote a stranger's file, fit for a cell: control characters are spelled out, and an endless one is cut.
pub fn cell(text: &str) -> String {
    const LONGEST: usize = 60;
    let mut cell = String::new();
    for character in text.chars().take(LONGEST) {
        match character.is_control() {
            true => cell.extend(character.escape_default()),
            false => cell.push(character),
        }
    }
    if text.chars().nth(LONGEST).is_some() {
        cell.push('…');
    }
    cell
}
