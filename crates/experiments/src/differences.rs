//! Two runs side by side.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Serialize;
use serde_json::Value;
use waterfill_evaluate::{Estimate, QuestionResult, Sequences};
use waterfill_pipeline::{PointOutput, SCHEMA, TensorSummary, read_json};

use crate::equal_kl::{Comparison, compare};
use crate::error::Result;
use crate::record::Record;

/// The differences between two runs.
#[derive(Debug, Clone, Serialize)]
pub struct Differences {
    /// Version of this object's names.
    pub schema: u32,
    /// Their names.
    pub runs: [String; 2],
    /// Their dates.
    pub dates: [String; 2],
    /// Settings that differ, by dotted key.
    pub settings: BTreeMap<String, [Value; 2]>,
    /// Every point of the second, paired with the point of the first that is nearest in size.
    pub points: Vec<PointPair>,
    /// Tensors of the pair that is nearest in size, those first whose bits differ most.
    pub tensors: Vec<TensorPair>,
}

/// Two points.
#[derive(Debug, Clone, Serialize)]
pub struct PointPair {
    /// Bits a weight of each.
    pub bits_per_weight: [Option<f64>; 2],
    /// KL of each.
    pub kl: [Option<f64>; 2],
    /// KL of the second less that of the first, paired over sequences where both were evaluated on the same.
    pub kl_change: Option<Estimate>,
    /// The same of the negative log-likelihood.
    pub nll_change: Option<Estimate>,
    /// The same of right answers to the first benchmark, paired over questions.
    pub accuracy_change: Option<Estimate>,
    /// Bytes of the second over those of the first run at the same KL and loss.
    pub bytes: Comparison,
}

/// A tensor in two points.
#[derive(Debug, Clone, Serialize)]
pub struct TensorPair {
    /// Its name.
    pub name: String,
    /// Bits a weight of each, as allocated.
    pub bits_per_weight: [f64; 2],
    /// Predicted losses.
    pub loss: [f64; 2],
}

/// Compares two runs of a store.
///
/// # Errors
/// Runs that are not there, records that cannot be read.
pub fn differences(store: &Path, names: [&str; 2]) -> Result<Differences> {
    let [a, b] = names.map(|name| Record::find(store, name));
    let [a, b] = [a?.1, b?.1];
    let mut settings = BTreeMap::new();
    differing("", &a.config, &b.config, &mut settings);
    let log = |p: &PointOutput| (p.bytes.unwrap_or(1) as f64).ln();
    let bytes = compare(&b.output.points, &a.output.points);
    let measured = b.output.points.iter().enumerate().filter(|(_, p)| p.bytes.is_some());
    let mut points = Vec::new();
    let mut nearest: Option<(f64, usize, usize)> = None;
    for ((j, second), bytes) in measured.zip(bytes) {
        let distance = |p: &PointOutput| (log(p) - log(second)).abs();
        let all = a.output.points.iter().enumerate().filter(|(_, p)| p.bytes.is_some());
        let Some((i, first)) = all.min_by(|x, y| distance(x.1).total_cmp(&distance(y.1))) else { continue };
        if nearest.is_none_or(|(least, ..)| distance(first) < least) {
            nearest = Some((distance(first), i, j));
        }
        points.push(pair(first, second, bytes, [TEXT, QUESTIONS].map(|keys| alike(&a, &b, keys))));
    }
    let tensors = nearest.map_or(vec![], |(_, i, j)| tensors(a.tensors.get(i), b.tensors.get(j)));
    Ok(Differences { schema: SCHEMA, runs: [a.id, b.id], dates: [a.date, b.date], settings, points, tensors })
}

/// Settings of an evaluation that decide its text, and its questions.
pub(crate) const TEXT: &[&str] = &["text", "tokens", "join", "documents", "part", "context", "sequences", "bos"];
pub(crate) const QUESTIONS: &[&str] = &["multiple_choice", "benchmarks"];

/// Whether two runs evaluate one model on the same, so that differences are paired.
pub(crate) fn alike(a: &Record, b: &Record, keys: &[&str]) -> bool {
    let same = |key: &&str| {
        let path = format!("/evaluate/{key}");
        a.config.pointer(&path) == b.config.pointer(&path)
    };
    a.model == b.model && keys.iter().all(same)
}

/// Figures of a file by sequence.
pub(crate) fn sequences_of(point: &PointOutput) -> Option<Sequences> {
    read_json(point.sequences.as_ref()?).ok()
}

fn pair(
    first: &PointOutput,
    second: &PointOutput,
    bytes: Comparison,
    [same_text, same_questions]: [bool; 2],
) -> PointPair {
    let paired = |f: fn(&Sequences) -> &Vec<f64>| {
        let (a, b) = (sequences_of(first)?, sequences_of(second)?);
        let (a, b) = (f(&a), f(&b));
        (same_text && a.len() == b.len())
            .then(|| Estimate::of(&b.iter().zip(a).map(|(b, a)| b - a).collect::<Vec<_>>()))
    };
    PointPair {
        bits_per_weight: [first.bits_per_weight, second.bits_per_weight],
        kl: [first.kl, second.kl],
        kl_change: paired(|s| &s.kl),
        nll_change: paired(|s| &s.nll),
        accuracy_change: accuracy_change(first, second).filter(|_| same_questions),
        bytes,
    }
}

/// Right answers to the first benchmark of one point less those of another, paired over questions; none where their numbers
/// differ.
pub(crate) fn accuracy_change(from: &PointOutput, to: &PointOutput) -> Option<Estimate> {
    let answers = |p: &PointOutput| read_json::<Vec<QuestionResult>>(&p.benchmarks.first()?.answers).ok();
    let (a, b) = (answers(from)?, answers(to)?);
    let right = |r: &QuestionResult| f64::from(u8::from(r.correct));
    let changes: Vec<f64> = b.iter().zip(&a).map(|(b, a)| right(b) - right(a)).collect();
    (a.len() == b.len() && !a.is_empty()).then(|| Estimate::of(&changes))
}

fn tensors(first: Option<&Vec<TensorSummary>>, second: Option<&Vec<TensorSummary>>) -> Vec<TensorPair> {
    let (Some(first), Some(second)) = (first, second) else { return vec![] };
    let known: BTreeMap<&str, &TensorSummary> = first.iter().map(|t| (t.name.as_str(), t)).collect();
    let bits = |t: &TensorSummary| t.bits / t.weights.max(1) as f64;
    let pair = |b: &TensorSummary| {
        let a = known.get(b.name.as_str())?;
        Some(TensorPair { name: b.name.clone(), bits_per_weight: [bits(a), bits(b)], loss: [a.loss, b.loss] })
    };
    let mut pairs: Vec<TensorPair> = second.iter().filter_map(pair).collect();
    let change = |t: &TensorPair| (t.bits_per_weight[1] - t.bits_per_weight[0]).abs();
    pairs.sort_by(|x, y| change(y).total_cmp(&change(x)));
    pairs
}

/// Collects settings that differ.
fn differing(at: &str, a: &Value, b: &Value, found: &mut BTreeMap<String, [Value; 2]>) {
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            let keys: BTreeSet<&String> = x.keys().chain(y.keys()).collect();
            for key in keys {
                let path = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
                let of = |map: &serde_json::Map<String, Value>| map.get(key).cloned().unwrap_or(Value::Null);
                differing(&path, &of(x), &of(y), found);
            }
        }
        _ if a == b => {}
        _ => drop(found.insert(at.into(), [a.clone(), b.clone()])),
    }
}
