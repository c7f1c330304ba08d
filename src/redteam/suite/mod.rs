//! Suites of attacks as data: the files, the built-in ones, their checks, and the attacks that come of them.

mod builtin;
mod load;
mod plan;
mod schema;
#[cfg(test)]
mod tests;
mod validate;

pub use builtin::{BUILT_IN, about};
pub use plan::{Attack, Finetune, Method, Prefill, Role, Source};
pub use schema::{
    AttackForm, AttackTable, BudgetTable, ComplianceTable, DataTable, EvaluateTable, MetricKind, PerplexityTable,
    RestrictedTable, ScaleTable, SearchMethod, SearchTable, Suite, UtilityTable,
};
