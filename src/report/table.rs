//! Tables of a page. On a phone, wide ones become a card a row, with the header's words beside the values.

use serde::Serialize;

/// A table.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    /// A line above it that says what its numbers are.
    pub caption: String,
    /// Names of the columns.
    pub header: Vec<String>,
    /// Whether each column is text (set to the left) instead of numbers; the first one always is.
    pub text_columns: Vec<usize>,
    /// The rows, each with as many cells as the header.
    pub rows: Vec<Row>,
    /// Whether it is too wide for a phone: then each row becomes a card there.
    pub cards: bool,
}

/// A row of a table.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row {
    /// Its cells.
    pub cells: Vec<Cell>,
    /// How it looks.
    pub tone: Tone,
}

/// How a row looks. The words in it say the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Tone {
    /// As any other.
    #[default]
    Plain,
    /// Something went wrong.
    Bad,
    /// Of less weight.
    Faint,
}

/// A cell of a table.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cell {
    /// Its text.
    pub text: String,
    /// A smaller line under it; empty for none.
    pub note: String,
    /// How many columns it takes, from 1.
    pub columns: usize,
    /// Whether it is set in bold.
    pub strong: bool,
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self { text: text.into(), note: String::new(), columns: 1, strong: false }
    }
}

impl Cell {
    /// A cell with a smaller line under it.
    pub fn with_note(text: impl Into<String>, note: impl Into<String>) -> Self {
        Self { note: note.into(), ..Self::from(text) }
    }

    /// A cell over several columns.
    pub fn wide(text: impl Into<String>, columns: usize) -> Self {
        Self { columns: columns.max(1), ..Self::from(text) }
    }
}

impl Row {
    /// A row like any other.
    pub fn plain(cells: Vec<Cell>) -> Self {
        Self { cells, tone: Tone::Plain }
    }
}

impl Table {
    /// A table without rows.
    pub fn new(caption: impl Into<String>, header: &[&str]) -> Self {
        let header = header.iter().map(|name| name.to_string()).collect();
        Self { caption: caption.into(), header, ..Self::default() }
    }

    /// The table as `templates/table.html` draws it.
    pub(super) fn view(&self) -> TableView {
        let is_text = |column: usize| column == 0 || self.text_columns.contains(&column);
        let header = self.header.iter().enumerate();
        TableView {
            caption: self.caption.clone(),
            cards: self.cards,
            header: header.map(|(column, name)| ColumnView { name: name.clone(), is_text: is_text(column) }).collect(),
            rows: self.rows.iter().map(|row| self.row(row, &is_text)).collect(),
        }
    }

    fn row(&self, row: &Row, is_text: &impl Fn(usize) -> bool) -> RowView {
        let mut column = 0;
        let mut cells = Vec::with_capacity(row.cells.len());
        for cell in &row.cells {
            let spans = cell.columns > 1;
            let label = if spans { "outcome" } else { self.header.get(column).map_or("", String::as_str) };
            cells.push(CellView {
                label: label.to_string(),
                text: cell.text.clone(),
                note: cell.note.clone(),
                columns: cell.columns,
                strong: cell.strong,
                is_text: spans || is_text(column),
            });
            column += cell.columns.max(1);
        }
        RowView { tone: row.tone, cells }
    }
}

/// A [`Table`] with everything worked out that the markup needs.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct TableView {
    caption: String,
    cards: bool,
    header: Vec<ColumnView>,
    rows: Vec<RowView>,
}

#[derive(Debug, PartialEq, Serialize)]
struct ColumnView {
    name: String,
    is_text: bool,
}

#[derive(Debug, PartialEq, Serialize)]
struct RowView {
    tone: Tone,
    cells: Vec<CellView>,
}

#[derive(Debug, PartialEq, Serialize)]
struct CellView {
    /// The column's name, which stands before the value on a phone.
    label: String,
    text: String,
    note: String,
    columns: usize,
    strong: bool,
    is_text: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wide_cell_moves_the_names_of_the_cells_after_it() {
        let row = Row::plain(vec!["a".into(), Cell::wide("failed", 2), "1".into()]);
        let table = Table { rows: vec![row], ..Table::new("", &["attack", "score", "utility", "steps"]) };
        let view = table.view();
        let labels: Vec<&str> = view.rows[0].cells.iter().map(|cell| cell.label.as_str()).collect();
        assert_eq!(labels, ["attack", "outcome", "steps"]);
        let text: Vec<bool> = view.rows[0].cells.iter().map(|cell| cell.is_text).collect();
        assert_eq!(text, [true, true, false]);
    }
}
