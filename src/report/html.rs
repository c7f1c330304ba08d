//! A self-contained HTML page: no script, no outside request, light and dark, readable on a phone.

use std::fmt::Write as _;
use std::path::Path;

use super::plot::{Chart, charts_to_html, escape};
use super::table::Table;
use crate::error::Result;
use crate::files::write_atomically;

/// A page, built from top to bottom.
pub struct HtmlReport {
    title: String,
    body: String,
}

const STYLE: &str = include_str!("style.css");

impl HtmlReport {
    /// An empty page.
    pub fn new(title: &str) -> Self {
        Self { title: title.into(), body: format!("<h1>{}</h1>\n", escape(title)) }
    }

    fn element(mut self, name: &str, text: &str) -> Self {
        // Writing to a string cannot fail.
        let _ = writeln!(self.body, "<{name}>{}</{name}>", escape(text));
        self
    }

    fn raw(mut self, html: &str) -> Self {
        self.body.push_str(html);
        self
    }

    /// A heading.
    pub fn heading(self, text: &str) -> Self {
        self.element("h2", text)
    }

    /// A paragraph.
    pub fn paragraph(self, text: &str) -> Self {
        self.element("p", text)
    }

    /// What the whole page comes to, set apart: a word, then sentences. `bad` says so to the eye; the word to everyone.
    pub fn verdict(self, bad: bool, word: &str, sentences: &[String]) -> Self {
        let sentences: String = sentences.iter().map(|s| format!("<p>{}</p>", escape(s))).collect();
        let class = if bad { "bad" } else { "good" };
        let word = escape(word);
        self.raw(&format!("<section class=\"verdict {class}\"><p class=\"word\">{word}</p>{sentences}</section>\n"))
    }

    /// Points of a list.
    pub fn list(self, points: &[String]) -> Self {
        let points: String = points.iter().map(|point| format!("<li>{}</li>", escape(point))).collect();
        self.raw(&format!("<ul>{points}</ul>\n"))
    }

    /// A block of code or output.
    pub fn code(self, text: &str) -> Self {
        self.element("pre", text)
    }

    /// A table.
    pub fn table(self, table: &Table) -> Self {
        self.raw(&table.to_html())
    }

    /// Charts, side by side where there is room.
    pub fn charts(self, charts: &[Chart]) -> Self {
        self.raw(&charts_to_html(charts))
    }

    /// What the reader opens when it is wanted.
    pub fn details(mut self, summary: &str, build: impl FnOnce(Self) -> Self) -> Self {
        let outer = std::mem::take(&mut self.body);
        let inner = build(self);
        let body = format!("{outer}<details><summary>{}</summary>\n{}</details>\n", escape(summary), inner.body);
        Self { title: inner.title, body }
    }

    /// Writes the page.
    pub fn write(&self, path: &Path) -> Result<()> {
        let page = format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
             <title>{}</title><style>{STYLE}</style></head>\n<body>\n{}</body></html>\n",
            escape(&self.title),
            self.body
        );
        write_atomically(path, page.as_bytes())
    }
}
