//! Bytes at the quality of other quantizers, from a file of their measured results.

use std::path::Path;

use serde::{Deserialize, Serialize};
use waterfill_pipeline::PointOutput;
use waterfill_report::{Curve, CurvePoint, Line};

use crate::error::{ExperimentError, Result};

/// Results of other quantizers on one model and one text.
#[derive(Debug, Clone, Deserialize)]
pub struct Peers {
    /// Sequences that they were measured on.
    sequences: usize,
    /// Inputs of each.
    context: usize,
    rows: Vec<Peer>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Peer {
    method: String,
    tensor_bytes: Option<u64>,
    bits_per_weight_all: Option<f64>,
    pub kl: Option<f64>,
    pub ppl: Option<f64>,
}

/// Our bytes at a peer's KL.
#[derive(Debug, Clone, Serialize)]
pub struct Reach {
    /// Its name.
    pub peer: String,
    /// Bytes of its tensors.
    pub peer_bytes: u64,
    /// Its KL from the original, nats per token.
    pub peer_kl: f64,
    /// Bytes of our files at this KL, between two measured points of one run; none beyond them.
    pub our_bytes: Option<u64>,
    /// Ours over its.
    pub ratio: Option<f64>,
    /// The run with these points.
    pub run: Option<String>,
}

impl Peers {
    /// Reads a file of results.
    ///
    /// # Errors
    /// A file that is missing or of another form.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(ExperimentError::io(path))?;
        serde_json::from_str(&text)
            .map_err(|e| ExperimentError::Mismatch { path: path.into(), reason: format!("results of peers: {e}") })
    }

    /// Whether results on this many sequences of this context compare with theirs.
    ///
    /// # Errors
    /// Where they do not, what they were measured on.
    pub fn check(&self, sequences: usize, context: usize) -> std::result::Result<(), String> {
        match (self.sequences, self.context) == (sequences, context) {
            true => Ok(()),
            false => Err(format!(
                "evaluates {sequences} sequences of {context}, the peers were measured on {} of {}",
                self.sequences, self.context
            )),
        }
    }

    /// Their results as marks of one series for each program, the first word of a method's name.
    pub(crate) fn curves(&self, value: impl Fn(&Peer) -> Option<f64>) -> Vec<Curve> {
        let mut programs: Vec<Curve> = Vec::new();
        for row in &self.rows {
            let (Some((program, name)), Some(size), Some(value)) =
                (row.method.split_once(' '), row.bits_per_weight_all, value(row))
            else {
                continue;
            };
            let point = CurvePoint { size, value, interval: None, name: Some(name.into()) };
            match programs.iter_mut().find(|c| c.label == program) {
                Some(curve) => curve.points.push(point),
                None => programs.push(Curve { label: program.into(), points: vec![point], line: Line::None }),
            }
        }
        programs
    }

    /// The fewest of our bytes at every peer's KL; runs with their points.
    pub fn reach<'a>(&self, runs: impl Iterator<Item = (&'a str, &'a [PointOutput])> + Clone) -> Vec<Reach> {
        let peers = self.rows.iter().filter_map(|p| Some((p, p.tensor_bytes?, p.kl.filter(|kl| *kl > 0.0)?)));
        let reach = |(peer, peer_bytes, peer_kl): (&Peer, u64, f64)| {
            let ours = runs.clone().filter_map(|(label, points)| Some((bytes_at(points, peer_kl)?, label)));
            let best = ours.min_by(|a, b| a.0.total_cmp(&b.0));
            Reach {
                peer: peer.method.clone(),
                peer_bytes,
                peer_kl,
                our_bytes: best.map(|b| b.0.round() as u64),
                ratio: best.map(|b| b.0 / peer_bytes as f64),
                run: best.map(|b| b.1.to_string()),
            }
        };
        peers.map(reach).collect()
    }
}

/// Bytes at a KL: linear in its logarithm between the two points around it, nothing beyond them.
fn bytes_at(points: &[PointOutput], kl: f64) -> Option<f64> {
    let measured = points.iter().filter_map(|p| Some((p.kl.filter(|kl| *kl > 0.0)?.ln(), p.bytes? as f64)));
    let mut curve: Vec<(f64, f64)> = measured.collect();
    curve.sort_by(|a, b| a.0.total_cmp(&b.0));
    let at = kl.ln();
    let pair = curve.windows(2).find(|w| w[0].0 <= at && at <= w[1].0 && w[0].0 < w[1].0)?;
    Some(pair[0].1 + (at - pair[0].0) / (pair[1].0 - pair[0].0) * (pair[1].1 - pair[0].1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(bytes: u64, kl: f64) -> PointOutput {
        PointOutput { bytes: Some(bytes), kl: Some(kl), ..PointOutput::default() }
    }

    #[test]
    fn the_smaller_run_counts_and_nothing_lies_beyond_the_points() {
        let text = r#"{"sequences": 4, "context": 8, "rows": [{"method": "bf16", "kl": 0.0},
            {"method": "a", "tensor_bytes": 1000, "kl": 0.01}, {"method": "b", "tensor_bytes": 10, "kl": 2.0}]}"#;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("peers.json");
        std::fs::write(&path, text).unwrap();
        let peers = Peers::read(&path).unwrap();
        let one = [point(900, 0.001), point(500, 0.1)];
        let two = [point(880, 0.001), point(480, 0.1)];
        let reach = peers.reach([("one", &one[..]), ("two", &two[..])].into_iter());
        assert_eq!(reach.len(), 2);
        assert_eq!((reach[0].our_bytes, reach[0].run.as_deref()), (Some(680), Some("two")));
        assert!((reach[0].ratio.unwrap() - 0.68).abs() < 1e-12);
        assert_eq!(reach[1].our_bytes, None);
        assert!(peers.check(4, 8).is_ok() && peers.check(5, 8).unwrap_err().contains("4 of 8"));
        std::fs::write(&path, "{}").unwrap();
        assert!(Peers::read(&path).unwrap_err().to_string().contains("peers.json"));
    }
}
