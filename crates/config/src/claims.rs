//! `sweep.claims`: figures that a sweep is to reach.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A figure of a sweep's results and its limit; without a limit it is only printed.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// The claim in words.
    pub name: String,
    /// The figure that is checked.
    pub figure: Figure,
    /// Label of the run. Of its files that lose no more than `allowed_loss`, the best counts.
    pub run: String,
    /// Label of the run that it is compared with: its largest file, or its curve.
    #[serde(default)]
    pub compared_with: Option<String>,
    /// Name of the pipeline, in a sweep over several; all of them if absent.
    #[serde(default)]
    pub model: Option<String>,
    /// Most that a file may lose against that run.
    #[serde(default)]
    pub allowed_loss: AllowedLoss,
    /// Base and fine-tune, for figures of deltas.
    #[serde(default)]
    pub delta: Option<DeltaOf>,
    /// Upper limit.
    #[serde(default)]
    pub at_most: Option<f64>,
    /// Lower limit.
    #[serde(default)]
    pub at_least: Option<f64>,
}

/// A base and its fine-tune.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeltaOf {
    /// Directory of the base.
    pub base: String,
    /// Directory of the fine-tune.
    pub fine_tune: String,
}

/// A figure that can be checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Figure {
    /// Bytes of the smallest file over those of the other run.
    Bytes,
    /// Bits in memory of the file that takes the fewest, over those of the other run.
    Resident,
    /// Bits in memory of the run's curve over those of the other run's files at the KL of each, by interpolation between logarithms; the
    /// largest ratio for those whose KL is within the run's.
    ResidentAtKl,
    /// Bytes of the run's largest file over those of the other's curve at its KL.
    BytesAtKl,
    /// The same for the run's smallest file.
    BaseBytesAtKl,
    /// KL of the largest file.
    Kl,
    /// Nats per token of the original.
    OriginalNll,
    /// Number of prefixes of a checkpoint with quality layers that are worse than a shorter prefix.
    WorsePrefixes,
    /// Seconds from the smallest file to the first token over those of flat INT8.
    LoadTime,
    /// Bytes of a delta over those of the whole checkpoint.
    DeltaOfCheckpoint,
    /// Bytes of a delta over those of both checkpoints' XOR under zstd -19.
    DeltaOfXor,
}

/// Most that a file may lose against another. One and the same file has to be within every limit given, each with 95 %
/// confidence: the limit is for the end of a one-sided interval, 1.645 standard errors above what was found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AllowedLoss {
    /// KL over that of the other file.
    #[serde(default)]
    pub kl_ratio: Option<f64>,
    /// Increase of perplexity, percent.
    #[serde(default)]
    pub perplexity_percent: Option<f64>,
    /// Decrease of accuracy in the first benchmark, points, paired question by question.
    #[serde(default)]
    pub accuracy_points: Option<f64>,
}

impl Claim {
    /// Why the claim cannot be checked in a sweep of runs with these labels, if it cannot.
    pub(crate) fn problem(&self, labels: &[String]) -> Option<String> {
        let needs_other = matches!(
            self.figure,
            Figure::Bytes | Figure::Resident | Figure::ResidentAtKl | Figure::BytesAtKl | Figure::BaseBytesAtKl
        );
        let known = |label: &String| labels.iter().any(|l| l == label || l.ends_with(&format!(": {label}")));
        if needs_other && self.compared_with.is_none() {
            return Some(format!("claim {:?} compares: give compared_with", self.name));
        }
        let delta = matches!(self.figure, Figure::DeltaOfCheckpoint | Figure::DeltaOfXor);
        if delta != self.delta.is_some() {
            let reason =
                if delta { "needs delta: {base, fine_tune}" } else { "has delta, which its figure does not take" };
            return Some(format!("claim {:?} {reason}", self.name));
        }
        let unknown = std::iter::once(&self.run).chain(&self.compared_with).find(|label| !known(label));
        unknown.map(|label| format!("claim {:?} names the run {label:?}; there are {}", self.name, labels.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(figure: Figure) -> Claim {
        Claim {
            name: "t".into(),
            figure,
            run: "a".into(),
            compared_with: None,
            model: None,
            allowed_loss: AllowedLoss::default(),
            delta: None,
            at_most: Some(0.7),
            at_least: None,
        }
    }

    #[test]
    fn claims_without_what_they_need_are_named() {
        let labels = ["a".to_string(), "m: b".to_string()];
        assert!(claim(Figure::Bytes).problem(&labels).unwrap().contains("give compared_with"));
        let compares = Claim { compared_with: Some("b".into()), ..claim(Figure::Bytes) };
        assert_eq!(compares.problem(&labels), None);
        let unknown = Claim { compared_with: Some("c".into()), ..compares };
        assert!(unknown.problem(&labels).unwrap().contains("\"c\"; there are a"));
        assert!(claim(Figure::DeltaOfXor).problem(&labels).unwrap().contains("needs delta"));
    }
}
