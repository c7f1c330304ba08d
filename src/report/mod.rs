//! What a run leaves to read: the metrics stream, plots, the HTML report.

mod demo;
mod html;
mod metrics;
mod plot;
mod summary;
mod tensorboard;

pub use demo::write_demo_report;
pub use html::HtmlReport;
pub(crate) use html::write_atomically;
pub use metrics::MetricsWriter;
pub use plot::{Chart, Series};
pub use summary::{AttackRow, DemoSummary, Stages};
