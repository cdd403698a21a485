//! Points of runs as curves of rate and distortion.

use waterfill_report::Curve;

use crate::run::PointOutput;

/// What a point costs.
pub(crate) type Bits = fn(&PointOutput) -> Option<f64>;

/// Curves of a run's points; a checkpoint's prefixes are a curve of their own.
pub(crate) fn curves_of(label: &str, points: &[PointOutput], bits: Bits) -> Vec<Curve> {
    let mut goals: Vec<Vec<&PointOutput>> = Vec::new();
    for point in points.iter().filter(|p| p.kl.is_some_and(|kl| kl > 0.0)) {
        match goals.iter_mut().find(|g| g[0].layers.is_none() || g[0].checkpoint == point.checkpoint) {
            Some(goal) if goal[0].layers.is_some() == point.layers.is_some() => goal.push(point),
            _ => goals.push(vec![point]),
        }
    }
    let curve = |mut goal: Vec<&PointOutput>| {
        goal.sort_by_key(|p| p.bytes);
        let points = goal.iter().filter_map(|p| Some((bits(p)?, p.kl?, p.kl_se?))).collect();
        Curve { label: label.into(), points, layered: goal[0].layers.is_some() }
    };
    goals.into_iter().map(curve).collect()
}
