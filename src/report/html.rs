//! A self-contained HTML page: no script, no outside request, light and dark, readable on a phone.

use std::path::Path;
use std::sync::LazyLock;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, UndefinedBehavior};
use serde::Serialize;

use super::plot::{Chart, Gallery};
use super::table::{Table, TableView};
use crate::error::{Error, Result};
use crate::files::write_atomically;

/// A page, built from top to bottom. All of it is data until it is written; the markup stands in `templates`.
#[derive(Serialize)]
pub struct HtmlReport {
    title: String,
    blocks: Vec<Block>,
}

/// A part of a page, as `templates/blocks.html` draws it.
#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Block {
    Heading { text: String },
    Paragraph { text: String },
    Verdict { bad: bool, word: String, sentences: Vec<String> },
    List { points: Vec<String> },
    Code { text: String },
    Table { table: TableView },
    Charts { gallery: Gallery },
    Details { summary: String, blocks: Vec<Block> },
}

impl HtmlReport {
    /// An empty page.
    pub fn new(title: &str) -> Self {
        Self { title: title.into(), blocks: Vec::new() }
    }

    fn with(mut self, block: Block) -> Self {
        self.blocks.push(block);
        self
    }

    /// A heading.
    pub fn heading(self, text: &str) -> Self {
        self.with(Block::Heading { text: text.into() })
    }

    /// A paragraph.
    pub fn paragraph(self, text: &str) -> Self {
        self.with(Block::Paragraph { text: text.into() })
    }

    /// The verdict of the whole page, set apart: a word, then sentences. `bad` only colours it.
    pub fn verdict(self, bad: bool, word: &str, sentences: &[String]) -> Self {
        self.with(Block::Verdict { bad, word: word.into(), sentences: sentences.to_vec() })
    }

    /// Points of a list.
    pub fn list(self, points: &[String]) -> Self {
        self.with(Block::List { points: points.to_vec() })
    }

    /// A block of code or output.
    pub fn code(self, text: &str) -> Self {
        self.with(Block::Code { text: text.into() })
    }

    /// A table.
    pub fn table(self, table: &Table) -> Self {
        self.with(Block::Table { table: table.view() })
    }

    /// Charts, side by side where there is room.
    pub fn charts(self, charts: &[Chart]) -> Self {
        self.with(Block::Charts { gallery: Gallery::of(charts) })
    }

    /// Blocks that are hidden until the reader opens them.
    pub fn details(mut self, summary: &str, build: impl FnOnce(Self) -> Self) -> Self {
        let before = std::mem::take(&mut self.blocks);
        let Self { title, blocks } = build(self);
        Self { title, blocks: before }.with(Block::Details { summary: summary.into(), blocks })
    }

    /// The page as HTML.
    pub(super) fn render(&self) -> Result<String> {
        let page = TEMPLATES.get_template("page.html");
        page.and_then(|page| page.render(Serde(self)))
            .map_err(|error| Error::Defect(format!("a template of the report is wrong: {error}")))
    }

    /// Writes the page.
    pub fn write(&self, path: &Path) -> Result<()> {
        write_atomically(path, self.render()?.as_bytes())
    }
}

static TEMPLATES: LazyLock<Environment> = LazyLock::new(environment);

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    let lines = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(lines.unwrap_or_default());
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    // Every value that a template writes passes here, so none of them can forget to escape it.
    environment.set_formatter(|out, _, value| {
        let text = value.to_string();
        out.write_str(&if value.is_safe() { text } else { escape(&text) })?;
        Ok(())
    });
    for (name, source) in [
        ("page.html", include_str!("templates/page.html")),
        ("blocks.html", include_str!("templates/blocks.html")),
        ("table.html", include_str!("templates/table.html")),
        ("charts.html", include_str!("templates/charts.html")),
        ("style.css", include_str!("templates/style.css")),
    ] {
        // A template that does not parse is missing when the first page is rendered, which is an error.
        let _ = environment.add_template(name, source);
    }
    environment
}

/// Text for HTML. Besides the characters of markup, those that HTML cannot hold and those that turn the direction of what
/// follows are replaced: the library's own escaping lets them through.
fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            '\n' | '\t' => safe.push(character),
            c if c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') => {
                safe.push('\u{fffd}');
            }
            other => safe.push(other),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::plot::{Limit, Series};
    use crate::report::table::{Cell, Row, Tone};

    const HOSTILE: &str = "\"><script>alert('1')</script>&\u{202e}\0";

    /// One of every block, and in each place that shows a text a hostile one.
    #[test]
    fn text_stays_text_in_every_block() {
        let texts = [HOSTILE.to_string()];
        let row = Row { cells: vec![HOSTILE.into(), Cell::with_note(HOSTILE, HOSTILE)], tone: Tone::Bad };
        let table = Table { rows: vec![row], text_columns: vec![1], ..Table::new(HOSTILE, &[HOSTILE, HOSTILE]) };
        let chart = |name: &str| Chart {
            title: HOSTILE.into(),
            x: HOSTILE.into(),
            series: vec![Series::new(name, 0, vec![(0.0, 2.0), (4.0, f64::NAN)])],
            limits: vec![Limit { name: HOSTILE.into(), style: 0, y: 0.5 }],
            note: HOSTILE.into(),
            ..Chart::default()
        };
        let html = HtmlReport::new(HOSTILE)
            .heading(HOSTILE)
            .paragraph(HOSTILE)
            .verdict(true, HOSTILE, &texts)
            .list(&texts)
            .code(HOSTILE)
            .table(&table)
            .charts(&[chart(HOSTILE), chart("other")])
            .details(HOSTILE, |page| page.paragraph(HOSTILE).heading("inner"))
            .heading("outer")
            .render()
            .unwrap();
        let escaped = "&quot;&gt;&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&amp;\u{fffd}\u{fffd}";
        // Title twice; 5 blocks with 6 texts; 7 in the table; of 2 charts title 3 times, axis, limit and note; 1 legend and
        // 1 mark of the first; 2 in the details.
        assert_eq!(html.matches(escaped).count(), 2 + 6 + 7 + 12 + 2 + 2, "{html}");
        assert!(!html.contains("<script") && !html.contains('\0') && !html.contains('\u{202e}'));
        let inner = html.find("<h2>inner</h2>").unwrap();
        let outer = html.find("<h2>outer</h2>").unwrap();
        assert!(inner < html.find("</details>").unwrap() && html.find("</details>").unwrap() < outer);
    }
}
