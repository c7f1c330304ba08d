//! Suites of attacks as data: the files, the built-in ones, their checks, and the attacks that come of them.

mod attacks;
mod builtin;
mod load;
mod schema;
#[cfg(test)]
mod tests;
mod validate;

pub use attacks::{Attack, AttackMethod, Prefill, Role};
pub use builtin::{BUILT_IN, about};
pub use schema::{
    BudgetTable, ComplianceTable, DataTable, EvaluateTable, MetricKind, PerplexityTable, RestrictedTable, ScaleTable,
    SearchMethod, SearchTable, Suite, UtilityTable,
};
