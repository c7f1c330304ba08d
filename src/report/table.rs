//! Tables of a page. On a phone, wide ones become a card a row, with the header's words beside the values.

use super::plot::escape;

/// A table.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    /// What it shows.
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
    /// What kind of row it is.
    pub tone: Tone,
}

/// How a row looks. The words in it say the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
    /// What it says.
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

    pub(super) fn to_html(&self) -> String {
        let class =
            |column: usize| if column == 0 || self.text_columns.contains(&column) { " class=\"text\"" } else { "" };
        let header: String = self
            .header
            .iter()
            .enumerate()
            .map(|(column, name)| format!("<th scope=\"col\"{}>{}</th>", class(column), escape(name)))
            .collect();
        let rows: String = self.rows.iter().map(|row| self.row(row, &class)).collect();
        format!(
            "<div class=\"scroll\"><table{}><caption>{}</caption><thead><tr>{header}</tr></thead><tbody>{rows}</tbody></table></div>\n",
            if self.cards { " class=\"cards\"" } else { "" },
            escape(&self.caption)
        )
    }

    fn row(&self, row: &Row, class: &impl Fn(usize) -> &'static str) -> String {
        let mut column = 0;
        let mut cells = String::new();
        for cell in &row.cells {
            let spans = cell.columns > 1;
            let name = if spans { "outcome" } else { self.header.get(column).map_or("", String::as_str) };
            let (tag, label) = match column {
                0 => ("th", " scope=\"row\"".to_string()),
                _ => ("td", format!(" data-label=\"{}\"", escape(name))),
            };
            let (span, class) = match spans {
                false => (String::new(), class(column)),
                true => (format!(" colspan=\"{}\"", cell.columns), " class=\"text\""),
            };
            let note = match cell.note.as_str() {
                "" => String::new(),
                note => format!("<small>{}</small>", escape(note)),
            };
            let text = match cell.strong {
                true => format!("<strong>{}</strong>", escape(&cell.text)),
                false => escape(&cell.text),
            };
            cells += &format!("<{tag}{label}{class}{span}><span>{text}{note}</span></{tag}>");
            column += cell.columns.max(1);
        }
        let tone = match row.tone {
            Tone::Plain => "",
            Tone::Bad => " class=\"bad\"",
            Tone::Faint => " class=\"faint\"",
        };
        format!("<tr{tone}>{cells}</tr>")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_stays_text_wherever_it_stands() {
        let hostile = "\"><script>alert(1)</script>";
        let row = Row { cells: vec![hostile.into(), Cell::with_note(hostile, hostile)], tone: Tone::Bad };
        let mut table = Table { rows: vec![row], cards: true, ..Table::new(hostile, &[hostile, hostile]) };
        table.text_columns = vec![1];
        let html = table.to_html();
        assert!(!html.contains("<script") && html.matches("&lt;script&gt;").count() == 7, "{html}");
        assert_eq!(html.matches('"').count() % 2, 0);
    }
}
