//! Everything that a run leaves to read: the metrics stream, plots, HTML reports, tables for other programs.

mod attacks;
mod compare;
mod defences;
mod demo;
mod html;
mod metrics;
mod plot;
mod redteam;
mod results_file;
mod summary;
mod table;
mod tamperbench;
mod tensorboard;
pub mod units;

pub use compare::{ComparedAttack, ComparedRun, Comparison, Found};
pub use defences::{ComparedDefence, ComparedSuite, DefenceComparison, Defended, DefendedModel, OverModels, Range};
pub use demo::write_demo_report;
pub use html::HtmlReport;
pub use metrics::MetricsWriter;
pub use plot::{Chart, Limit, Series};
pub use redteam::write_redteam_report;
pub use results_file::{read_results, write_beside_results, write_results};
pub use summary::{AttackRow, DemoSummary, Stages};
pub use table::{Cell, Row, Table, Tone};
pub use tamperbench::{trial_results, write_attacks};
