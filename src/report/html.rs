//! A self-contained HTML page: no script, no outside request, light and dark, readable on a phone.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use super::plot::{Chart, escape};
use crate::error::{Error, Result};

/// A page, built from top to bottom.
pub struct HtmlReport {
    title: String,
    body: String,
}

const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#5c6570;--line:#d5dae0;--page:#fff;--card:#f6f7f9;--a:#c2410c;--b:#1d5fb8}\
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ed;--soft:#9aa4b0;--line:#363c44;--page:#15181c;--card:#1e2228;--a:#fb923c;--b:#6aa7f5}}\
*{box-sizing:border-box}body{margin:0 auto;padding:2rem 1rem 4rem;max-width:62rem;background:var(--page);color:var(--ink);\
font:16px/1.55 system-ui,sans-serif}h1{font-size:1.7rem;line-height:1.2}h2{margin-top:2.4rem;font-size:1.2rem}\
p,li{max-width:46rem}.soft{color:var(--soft)}.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}\
caption{text-align:left;color:var(--soft);padding-bottom:.4rem}th,td{padding:.45rem .7rem;border-bottom:1px solid var(--line);text-align:right}\
th:first-child,td:first-child{text-align:left}.charts{display:grid;gap:1rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr))}\
figure{margin:0;padding:.8rem;background:var(--card);border-radius:.5rem}figcaption{font-weight:600;margin-bottom:.3rem}svg{width:100%;height:auto}\
svg text{fill:var(--soft);font-size:12px}.grid{stroke:var(--line)}polyline{fill:none;stroke-width:2.2}circle{stroke:none}\
polyline.series-0{stroke:var(--a)}polyline.series-1{stroke:var(--b);stroke-dasharray:6 3}circle.series-0{fill:var(--a)}circle.series-1{fill:var(--b)}\
.legend{margin:.2rem 0 0;font-size:.9rem}.legend span{margin-right:1rem;font-weight:600}span.series-0{color:var(--a)}span.series-1{color:var(--b)}\
pre{background:var(--card);padding:.8rem;border-radius:.5rem;overflow-x:auto;font-size:.9rem}\
@media(max-width:32rem){th,td{padding:.4rem .3rem;font-size:.9rem}h1{font-size:1.35rem}}";

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

    /// A heading.
    pub fn heading(self, text: &str) -> Self {
        self.element("h2", text)
    }

    /// A paragraph.
    pub fn paragraph(self, text: &str) -> Self {
        self.element("p", text)
    }

    /// A block of code or output.
    pub fn code(self, text: &str) -> Self {
        self.element("pre", text)
    }

    /// A table; the first column is text, the others are numbers.
    pub fn table(mut self, caption: &str, header: &[&str], rows: &[Vec<String>]) -> Self {
        let cells = |tag: &str, cells: Vec<&str>| -> String {
            cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", escape(cell))).collect()
        };
        let rows: String = rows
            .iter()
            .map(|row| format!("<tr>{}</tr>", cells("td", row.iter().map(String::as_str).collect())))
            .collect();
        let _ = writeln!(
            self.body,
            "<div class=\"scroll\"><table><caption>{}</caption><thead><tr>{}</tr></thead><tbody>{rows}</tbody></table></div>",
            escape(caption),
            cells("th", header.to_vec())
        );
        self
    }

    /// Charts, side by side where there is room.
    pub fn charts(mut self, charts: &[Chart]) -> Self {
        let charts: String = charts.iter().map(Chart::to_html).collect();
        let _ = writeln!(self.body, "<div class=\"charts\">{charts}</div>");
        self
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
        write_atomically(path, &page)
    }
}

/// Writes a file beside its name and renames it, so that a reader sees the old one or the new one.
pub(crate) fn write_atomically(path: &Path, text: &str) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(Error::io("create a file in", folder))?;
    file.write_all(text.as_bytes()).and_then(|()| file.as_file().sync_all()).map_err(Error::io("write", path))?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::Permissions::from_mode(0o644);
        file.as_file().set_permissions(mode).map_err(Error::io("change", path))?;
    }
    file.persist(path).map_err(|error| Error::Io { action: "write", path: path.to_path_buf(), source: error.error })?;
    Ok(())
}
