//! Lists of runs.

use std::path::Path;

use serde_json::Value;

use crate::error::{ExperimentError, Result};
use crate::record::Record;

/// Conditions on runs, all of which hold.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Name of the pipeline.
    pub model: Option<String>,
    /// Name of the sweep.
    pub sweep: Option<String>,
    /// One of the configuration's tags.
    pub tag: Option<String>,
    /// First date, or the beginning of one, such as `2026-11`.
    pub since: Option<String>,
    /// Conditions such as `kl<0.01`, all of which one point has to meet.
    pub points: Vec<String>,
}

/// A figure of a point and a limit.
struct Condition {
    figure: String,
    below: bool,
    limit: f64,
}

impl Condition {
    fn parse(text: &str) -> Result<Self> {
        let wrong = |reason: String| ExperimentError::Condition { text: text.into(), reason };
        let form = "expected a figure of a point, < or >, and a number, such as kl<0.01";
        let at = text.find(['<', '>']).ok_or_else(|| wrong(form.into()))?;
        let limit = text[at + 1..].trim().parse().map_err(|_| wrong(form.into()))?;
        let figure = text[..at].trim().to_string();
        let known = serde_json::to_value(waterfill_pipeline::PointOutput::default()).expect("plain data");
        if !known.as_object().is_some_and(|o| o.contains_key(&figure)) {
            let known = "kl, bytes, bits_per_weight, resident_bits_per_weight, perplexity, top1, accuracy";
            return Err(wrong(format!("no figure {figure}; there are {known}")));
        }
        Ok(Self { figure, below: text.as_bytes()[at] == b'<', limit })
    }

    fn holds(&self, point: &Value) -> bool {
        let value = point.get(&self.figure).and_then(Value::as_f64);
        value.is_some_and(|v| if self.below { v < self.limit } else { v > self.limit })
    }
}

/// Records of a store that a filter lets through, the oldest first.
///
/// # Errors
/// Conditions that are none, and records that cannot be read.
pub fn list(store: &Path, filter: &Filter) -> Result<Vec<Record>> {
    let conditions = filter.points.iter().map(|c| Condition::parse(c)).collect::<Result<Vec<_>>>()?;
    let wanted = |r: &Record| {
        let points = || serde_json::to_value(&r.output.points).expect("plain data");
        let meets = |point: &Value| conditions.iter().all(|c| c.holds(point));
        filter.model.as_ref().is_none_or(|m| *m == r.output.model)
            && filter.sweep.as_ref().is_none_or(|s| r.sweep.as_ref() == Some(s))
            && filter.tag.as_ref().is_none_or(|t| r.tags.contains(t))
            && filter.since.as_ref().is_none_or(|s| r.date.as_str() >= s.as_str())
            && (conditions.is_empty() || points().as_array().is_some_and(|all| all.iter().any(meets)))
    };
    Ok(Record::all(store)?.into_iter().map(|(_, r)| r).filter(wanted).collect())
}
