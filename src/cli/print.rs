//! Data on stdout: tables and JSON.

use std::io::Write;

use comfy_table::{Cell, Table, presets};
use serde::Serialize;
use temper::error::one_line;
pub use temper::report::units::{bytes, flop};

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

/// Rows under a header, columns aligned and two spaces apart.
pub fn table<Cells>(header: impl IntoIterator<Item: Into<Cell>>, rows: impl IntoIterator<Item = Cells>) -> String
where
    Cells: IntoIterator<Item: Into<Cell>>,
{
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.into_iter().map(Into::into).collect::<Vec<Cell>>());
    table.add_rows(rows.into_iter().map(|cells| cells.into_iter().map(Into::into).collect::<Vec<Cell>>()));
    table.column_iter_mut().for_each(|column| _ = column.set_padding((0, 2)));
    table.trim_fmt() + "\n"
}

/// Text that may quote a stranger's file, fit for a cell: one line, and an endless one is cut.
pub fn cell(text: &str) -> String {
    const LONGEST: usize = 60;
    let line = one_line(text);
    match line.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}
