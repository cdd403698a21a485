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
    let bytes = |p: &PointOutput| p.bytes.map(|b| b as f64);
    let kl = curve(reference, |p| p.kl, bytes);
    let loss = curve(reference, |p| p.decoded_loss, bytes);
    let ratio = |bytes: u64, curve: &[(f64, f64)], loss: Option<f64>| Some(bytes as f64 / size_at(curve, loss)?);
    let compared = points.iter().filter_map(|p| Some((p, p.bytes?)));
    let compared = compared.map(|(p, bytes)| Comparison {
        bytes,
        at_kl: ratio(bytes, &kl, p.kl),
        at_loss: ratio(bytes, &loss, p.decoded_loss),
    });
    compared.collect()
}

/// For every point of `reference`, bits in memory of the curve through `points` at its KL over its own; none where its KL is not
/// between theirs.
pub(crate) fn resident_at_kl(points: &[PointOutput], reference: &[PointOutput]) -> Vec<Option<f64>> {
    let curve = curve(points, |p| p.kl, |p| Some(p.resident_bits_per_weight));
    reference.iter().map(|p| Some(size_at(&curve, p.kl)? / p.resident_bits_per_weight)).collect()
}

/// Logarithms of loss and size, loss ascending.
fn curve(
    points: &[PointOutput],
    loss: impl Fn(&PointOutput) -> Option<f64>,
    size: impl Fn(&PointOutput) -> Option<f64>,
) -> Vec<(f64, f64)> {
    let pairs = points.iter().filter_map(|p| Some((loss(p).filter(|l| *l > 0.0)?.ln(), size(p)?.ln())));
    let mut curve: Vec<(f64, f64)> = pairs.collect();
    curve.sort_by(|a, b| a.0.total_cmp(&b.0));
    curve.dedup_by(|a, b| a.0 == b.0);
    curve
}

/// Size where the curve has this loss.
fn size_at(curve: &[(f64, f64)], loss: Option<f64>) -> Option<f64> {
    Some(log_size_at(curve, loss.filter(|l| *l > 0.0)?.ln())?.exp())
}

/// Logarithm of the size where the curve's log loss is `at`, linear between points and nowhere else.
fn log_size_at(curve: &[(f64, f64)], at: f64) -> Option<f64> {
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
    fn sizes_are_interpolated_between_logarithms_and_not_beyond() {
        let curve = [(0.0, 10.0), (1.0, 8.0), (3.0, 7.0)];
        assert_eq!(log_size_at(&curve, 0.5), Some(9.0));
        assert_eq!(log_size_at(&curve, 2.0), Some(7.5));
        assert_eq!(log_size_at(&curve, 3.0), Some(7.0));
        assert_eq!(log_size_at(&curve, -0.1), None);
        assert_eq!(log_size_at(&curve, 3.1), None);
        assert_eq!(log_size_at(&[], 1.0), None);
    }

    #[test]
    fn memory_is_compared_where_kl_is_equal() {
        let point =
            |bits: f64, kl: f64| PointOutput { kl: Some(kl), resident_bits_per_weight: bits, ..PointOutput::default() };
        let run = [point(2.0, 0.1), point(4.0, 0.01), point(9.0, 1e-4)];
        let other = [point(4.0, 0.2), point(4.0, 0.1), point(4.0, 0.1 * 10f64.powf(-0.5)), point(8.0, 1e-3)];
        let found = resident_at_kl(&run, &other);
        let wanted = [None, Some(0.5), Some(0.5 * 2f64.sqrt()), Some(0.75)];
        let near = |(a, b): (&Option<f64>, &Option<f64>)| match (a, b) {
            (Some(a), Some(b)) => (a - b).abs() < 1e-9,
            (a, b) => a.is_none() && b.is_none(),
        };
        assert!(found.len() == 4 && found.iter().zip(&wanted).all(near), "{found:?}");
    }
}
