//! What a run leaves to read: the metrics stream, progress on the terminal, tables, plots, the HTML report.

mod metrics;
mod tensorboard;

pub use metrics::MetricsWriter;
