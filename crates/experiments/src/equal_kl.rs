//! Bytes of a run over those of another at equal loss, as codecs are compared (Bjontegaard, VCEG-M33, 2001), but point by
//! point.

use serde::Serialize;
use waterfill_pipeline::PointOutput;

/// A point's bytes over those of the reference curve where it has the same loss.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// Bytes of the point.
    pub bytes: u64,
    /// Ratio at the same KL on the evaluation text.
    pub at_kl: Option<f64>,
    /// Ratio at the same loss by the quadratic model.
    pub at_loss: Option<f64>,
}

/// Every point of `points` that was evaluated against the curve through `reference`.
pub fn compare(points: &[PointOutput], reference: &[PointOutput]) -> Vec<Comparison> {
    let kl = curve(reference, |p| p.kl);
    let loss = curve(reference, |p| p.decoded_loss);
    let ratio = |bytes: u64, curve: &[(f64, f64)], loss: Option<f64>| {
        let log_bytes = log_bytes_at(curve, loss.filter(|l| *l > 0.0)?.ln())?;
        Some(bytes as f64 / log_bytes.exp())
    };
    let compared = points.iter().filter_map(|p| Some((p, p.bytes?)));
    let compared = compared.map(|(p, bytes)| Comparison {
        bytes,
        at_kl: ratio(bytes, &kl, p.kl),
        at_loss: ratio(bytes, &loss, p.decoded_loss),
    });
    compared.collect()
}

/// Logarithms of loss and bytes, loss ascending.
fn curve(points: &[PointOutput], loss: impl Fn(&PointOutput) -> Option<f64>) -> Vec<(f64, f64)> {
    let pairs = points.iter().filter_map(|p| Some((loss(p).filter(|l| *l > 0.0)?.ln(), (p.bytes? as f64).ln())));
    let mut curve: Vec<(f64, f64)> = pairs.collect();
    curve.sort_by(|a, b| a.0.total_cmp(&b.0));
    curve.dedup_by(|a, b| a.0 == b.0);
    curve
}

/// Logarithm of bytes where the curve's log loss is `at`, linear between points and nowhere else.
fn log_bytes_at(curve: &[(f64, f64)], at: f64) -> Option<f64> {
    let exact = curve.iter().find(|p| p.0 == at).map(|p| p.1);
    exact.or_else(|| {
        let pair = curve.windows(2).find(|w| (w[0].0..=w[1].0).contains(&at))?;
        let share = (at - pair[0].0) / (pair[1].0 - pair[0].0);
        Some(pair[0].1 + share * (pair[1].1 - pair[0].1))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_interpolated_between_logarithms_and_not_beyond() {
        let curve = [(0.0, 10.0), (1.0, 8.0), (3.0, 7.0)];
        assert_eq!(log_bytes_at(&curve, 0.5), Some(9.0));
        assert_eq!(log_bytes_at(&curve, 2.0), Some(7.5));
        assert_eq!(log_bytes_at(&curve, 3.0), Some(7.0));
        assert_eq!(log_bytes_at(&curve, -0.1), None);
        assert_eq!(log_bytes_at(&curve, 3.1), None);
        assert_eq!(log_bytes_at(&[], 1.0), None);
    }
}
