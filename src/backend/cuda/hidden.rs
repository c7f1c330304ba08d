//! Launchers of the losses on hidden states (`kernels/hidden.cu`) and of preferences (`kernels/preference.cu`).

use super::element::{ROW_THREADS, fits, flag, row_threads, row_width, size};
use super::{Argument, Cuda, Place, optional, sizes};
use crate::error::Result;
use crate::ops::{
    Checked, CosineMargin, DistanceKind, Execute, Matrix, NegativePreference, Preference, RandomMapping,
    RepresentationDistance,
};

impl Execute<RepresentationDistance<'_, Cuda>> for Cuda {
    fn execute(&self, checked: Checked<RepresentationDistance<Cuda>>) -> Result<()> {
        const NAME: &str = "representation_distance";
        let RepresentationDistance { kind, hidden, reference, weights, values, d_hidden } = checked.operands();
        if hidden.is_empty() {
            return Ok(());
        }
        let rows = size(NAME, hidden.rows)?;
        let cols = hidden.cols;
        let mut addresses = vec![hidden.address(), reference.address()];
        addresses.extend(d_hidden.iter().map(Place::address));
        let width = row_width(hidden.dtype(), cols, &addresses);
        let kept = if d_hidden.is_some() { cols * 4 } else { 0 };
        let arguments = [
            hidden.pointer(),
            reference.pointer(),
            weights.pointer(),
            values.pointer(),
            optional(d_hidden.as_ref()),
            size(NAME, cols)?.into(),
            flag(width > 1),
            stride(NAME, &reference)?,
            flag(kind == DistanceKind::Squared),
        ];
        let shared = fits(NAME, self, cols, sizes::HIDDEN_SCRATCH_BYTES + kept)?;
        self.launch(&self.kernel(NAME), [rows, 1, 1], row_threads(cols / width, ROW_THREADS), shared, &arguments)
    }
}

/// Elements from one token's row to the next one's: none where all have the same.
fn stride(name: &str, targets: &Matrix<Cuda>) -> Result<Argument> {
    let elements = if targets.rows == 1 { 0 } else { targets.cols };
    Ok(size(name, elements)?.into())
}

impl Execute<CosineMargin<'_, Cuda>> for Cuda {
    fn execute(&self, checked: Checked<CosineMargin<Cuda>>) -> Result<()> {
        const NAME: &str = "cosine_margin";
        let CosineMargin { hidden, away, toward, margin, weights, values, d_hidden } = checked.operands();
        if hidden.is_empty() {
            return Ok(());
        }
        let rows = size(NAME, hidden.rows)?;
        let cols = hidden.cols;
        let dtype = hidden.dtype();
        let mut addresses = vec![hidden.address(), away.address()];
        addresses.extend(toward.iter().map(Place::address));
        addresses.extend(d_hidden.iter().map(Place::address));
        let width = row_width(dtype, cols, &addresses);
        let states = if toward.is_some() { 3 } else { 2 };
        let kept = if d_hidden.is_some() { states * cols * dtype.bytes() } else { 0 };
        let mut arguments = vec![hidden.pointer(), away.pointer()];
        arguments.extend(toward.iter().map(Place::pointer));
        arguments.extend([weights.pointer(), values.pointer(), optional(d_hidden.as_ref())]);
        arguments.extend([size(NAME, cols)?.into(), flag(width > 1), stride(NAME, &away)?]);
        if let Some(toward) = &toward {
            arguments.push(stride(NAME, toward)?);
        }
        arguments.push(margin.into());
        let kernel = self.kernel(if toward.is_some() { "cosine_margin_two" } else { NAME });
        let shared = fits(NAME, self, cols, sizes::COSINE_SCRATCH_BYTES + kept)?;
        self.launch(&kernel, [rows, 1, 1], row_threads(cols / width, ROW_THREADS), shared, &arguments)
    }
}

impl Execute<RandomMapping<'_, Cuda>> for Cuda {
    fn execute(&self, checked: Checked<RandomMapping<Cuda>>) -> Result<()> {
        const NAME: &str = "random_mapping";
        let RandomMapping { hidden, table, ids, weights, values, d_hidden } = checked.operands();
        if hidden.is_empty() {
            return Ok(());
        }
        let rows = size(NAME, hidden.rows)?;
        let cols = hidden.cols;
        let dtype = hidden.dtype();
        let mut addresses = vec![hidden.address(), table.address()];
        addresses.extend(d_hidden.iter().map(Place::address));
        let width = row_width(dtype, cols, &addresses);
        let kept = if d_hidden.is_some() { cols.next_multiple_of(4) * 4 + cols * dtype.bytes() } else { 0 };
        let arguments = [
            hidden.pointer(),
            table.pointer(),
            ids.pointer(),
            weights.pointer(),
            values.pointer(),
            optional(d_hidden.as_ref()),
            size(NAME, cols)?.into(),
            flag(width > 1),
        ];
        let shared = fits(NAME, self, cols, sizes::HIDDEN_SCRATCH_BYTES + kept)?;
        self.launch(&self.kernel(NAME), [rows, 1, 1], row_threads(cols / width, ROW_THREADS), shared, &arguments)
    }
}

impl Execute<Preference<'_, Cuda>> for Cuda {
    fn execute(&self, checked: Checked<Preference<Cuda>>) -> Result<()> {
        const NAME: &str = "preference";
        let Preference { values, segments, reference_margins, beta, scale, weights, losses } = checked.operands();
        if losses.is_empty() {
            return Ok(());
        }
        let arguments = [
            values.pointer(),
            segments.device.view().pointer(),
            reference_margins.pointer(),
            beta.into(),
            scale.into(),
            weights.pointer(),
            losses.pointer(),
        ];
        self.launch("preference_f32", [size(NAME, losses.len())?, 1, 1], ROW_THREADS, sizes::F64_SUM_BYTES, &arguments)
    }
}

impl Execute<NegativePreference<'_, Cuda>> for Cuda {
    fn execute(&self, checked: Checked<NegativePreference<Cuda>>) -> Result<()> {
        const NAME: &str = "negative_preference";
        let NegativePreference { values, segments, lengths, references, beta, scale, weights, losses } =
            checked.operands();
        if losses.is_empty() {
            return Ok(());
        }
        let arguments = [
            values.pointer(),
            segments.device.view().pointer(),
            lengths.pointer(),
            references.pointer(),
            beta.into(),
            scale.into(),
            weights.pointer(),
            losses.pointer(),
        ];
        let blocks = [size(NAME, losses.len())?, 1, 1];
        self.launch("negative_preference_f32", blocks, ROW_THREADS, sizes::F64_SUM_BYTES, &arguments)
    }
}
