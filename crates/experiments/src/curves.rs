//! Points of runs as curves of quality against size.

use waterfill_pipeline::{Allocated, PointOutput};
use waterfill_report::{Curve, CurvePoint, Line};

/// Half width of a 95 % interval in standard errors.
const Z: f64 = 1.96;

/// Size of a point, for the horizontal axis.
pub(crate) type Size = fn(&PointOutput) -> Option<f64>;
/// Quality of a point, with a 95 % interval where there is one.
pub(crate) type Value = fn(&PointOutput) -> Option<(f64, Option<(f64, f64)>)>;

/// KL from the original.
pub(crate) fn kl(p: &PointOutput) -> Option<(f64, Option<(f64, f64)>)> {
    let kl = p.kl.filter(|kl| *kl > 0.0)?;
    Some((kl, p.kl_se.map(|se| (kl - Z * se, kl + Z * se))))
}

/// Curves of a run's points; a checkpoint's prefixes are a curve of their own.
pub(crate) fn curves_of(label: &str, points: &[PointOutput], size: Size, value: Value) -> Vec<Curve> {
    let mut goals: Vec<Vec<&PointOutput>> = Vec::new();
    for point in points.iter().filter(|p| value(p).is_some()) {
        match goals.iter_mut().find(|g| g[0].quality_layers.is_none() || g[0].checkpoint == point.checkpoint) {
            Some(goal) if goal[0].quality_layers.is_some() == point.quality_layers.is_some() => goal.push(point),
            _ => goals.push(vec![point]),
        }
    }
    let curve = |mut goal: Vec<&PointOutput>| {
        goal.sort_by_key(|p| p.bytes);
        let point = |p: &&PointOutput| {
            let (value, interval) = value(p)?;
            Some(CurvePoint { size: size(p)?, value, interval, name: None })
        };
        let line = if goal[0].quality_layers.is_some() { Line::Dashed } else { Line::Solid };
        Curve { label: label.into(), points: goal.iter().filter_map(point).collect(), line }
    };
    goals.into_iter().map(curve).collect()
}

/// KL of the allocations of closed loops against bits of their files, those that were not kept too.
pub(crate) fn attempts_of(label: &str, points: &[PointOutput]) -> Vec<Curve> {
    let curve = |allocated: Allocated| {
        let attempts = points.iter().flat_map(|p| &p.closed_loop).filter(|a| a.allocated == allocated);
        let mut points: Vec<CurvePoint> = attempts
            .filter_map(|a| {
                let kl = a.kl?;
                let interval = Some((kl.mean - Z * kl.se, kl.mean + Z * kl.se));
                Some(CurvePoint { size: a.bits_per_weight, value: kl.mean, interval, name: None })
            })
            .collect();
        points.sort_by(|a, b| a.size.total_cmp(&b.size));
        Curve { label: format!("{label}, {} allocation", allocated.name()), points, line: Line::Solid }
    };
    let all = [Allocated::First, Allocated::Second, Allocated::Uniform].map(curve);
    all.into_iter().filter(|c| !c.points.is_empty()).collect()
}
