//! Choice of steps that many tiles share, in one format.

use waterfill_codec::{Format, Lambda, Loss, Rate, TILE};

use crate::policy::{Policy, resident_bits_of_format};
use crate::rd_candidate::{RdCandidate, TensorCandidates, floor_loss};
use crate::structure::{FormatCosts, Sharing};

/// J of a matrix for every format; empty where its tiles have formats of their own.
pub fn format_costs(name: &str, candidates: &TensorCandidates, policy: &Policy, lambda: Lambda) -> FormatCosts {
    let Some(sharing) = policy.sharing(name) else { return FormatCosts::new() };
    let floor = policy.floor(name);
    let most = floor
        .map(|floor| (0..candidates.tiles.tiles()).map(|n| floor_loss(candidates.tiles.tile(n), floor)).sum::<f64>());
    // A format whose finest common steps lose more than the floor allows is none.
    let reaches = |format: Format| {
        let finest = SharedSteps { lambda: Lambda(0.0), sharing, format };
        let loss = |(chosen, _): (Vec<RdCandidate>, f64)| chosen.iter().map(|candidate| candidate.loss.0).sum::<f64>();
        most.is_none_or(|most| {
            shared_steps(name, candidates, policy, finest).map(loss).is_some_and(|loss| loss <= most)
        })
    };
    let allowed = |&format: &Format| policy.allows(format, floor) && reaches(format);
    let formats = policy.formats.iter().copied().filter(allowed);
    let cost =
        |format| Some((format, shared_steps(name, candidates, policy, SharedSteps { lambda, sharing, format })?.1));
    formats.filter_map(cost).collect()
}

/// Conditions under which shared steps are chosen.
#[derive(Clone, Copy)]
pub(crate) struct SharedSteps {
    pub lambda: Lambda,
    pub sharing: Sharing,
    pub format: Format,
}

/// Candidates of all tiles in one format with the best steps that they share, and their J; `None` where there are none.
pub(crate) fn shared_steps(
    name: &str,
    candidates: &TensorCandidates,
    policy: &Policy,
    wanted: SharedSteps,
) -> Option<(Vec<RdCandidate>, f64)> {
    let SharedSteps { lambda, sharing, format } = wanted;
    let plan = &candidates.plan;
    let across = plan.tiles_across();
    let factor = policy.correction(name) * (1.0 + policy.margin);
    let cost = |n: usize, p: &RdCandidate| {
        let (row, col) = (n / across, n % across);
        let weights = TILE.min(plan.rows - row * TILE) * TILE.min(plan.cols - col * TILE);
        let memory = Rate(resident_bits_of_format(format, plan.dtype, weights));
        lambda.cost(p.loss * factor, p.rate * policy.rate.storage + memory * policy.rate.resident)
    };
    let mut chosen =
        vec![RdCandidate { format, step: 0, width: 0, loss: Loss(0.0), rate: Rate(0.0) }; plan.tiles.len()];
    let mut total = 0.0;
    for unit in sharing.units(plan) {
        let ladders: Vec<Ladder> = unit.iter().map(|&n| Ladder::new(candidates.tiles.tile(n), format)).collect();
        let first = ladders.iter().map(|l| l.first).max()?;
        let last = ladders.iter().map(|l| l.first + l.by_step.len() as i16 - 1).max()?;
        let at = |step: i16| {
            unit.iter().zip(&ladders).try_fold(0.0, |sum, (&n, ladder)| {
                let candidate = ladder.at(step)?;
                Some(sum + cost(n, &candidate))
            })
        };
        let steps = (first..=last).filter_map(|step| Some((at(step)?, step)));
        let (least, step) = steps.min_by(|a, b| a.0.total_cmp(&b.0))?;
        total += least;
        for (&n, ladder) in unit.iter().zip(&ladders) {
            chosen[n] = RdCandidate { format, step, ..ladder.at(step)? };
        }
    }
    Some((chosen, total))
}

/// Candidates of a tile in one format, one for each step.
struct Ladder {
    first: i16,
    by_step: Vec<Option<RdCandidate>>,
    /// Whether steps beyond the last are as good as it: all levels are zero.
    open: bool,
}

impl Ladder {
    fn new(all: impl Iterator<Item = RdCandidate> + Clone, format: Format) -> Self {
        let fits = |p: &RdCandidate| match (format.level_range(), p.format.level_range()) {
            (Some(wide), Some(own)) => wide.0 <= own.0 && own.1 <= wide.1,
            _ => p.format == format,
        };
        let own = || all.clone().filter(fits);
        let first = own().map(|p| p.step).min().unwrap_or(i16::MAX);
        let last = own().map(|p| p.step).max().unwrap_or(i16::MAX);
        let mut by_step: Vec<Option<RdCandidate>> = vec![None; (i32::from(last) - i32::from(first)) as usize + 1];
        for candidate in own() {
            let place = &mut by_step[(candidate.step - first) as usize];
            if place.is_none_or(|p| candidate.loss.0 < p.loss.0) {
                *place = Some(candidate);
            }
        }
        Self { first, by_step, open: format.level_range().is_some() || format == Format::Lossless }
    }

    fn at(&self, step: i16) -> Option<RdCandidate> {
        let place = usize::try_from(i32::from(step) - i32::from(self.first)).ok()?;
        let place = if self.open { place.min(self.by_step.len() - 1) } else { place };
        *self.by_step.get(place)?
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::policy::RateWeights;
    use crate::rd_candidate::Candidates;
    use crate::select::select_weight;
    use crate::structure::Structure;
    use waterfill_codec::{Dtype, TensorPlan, TilePlan};

    fn policy(formats: &[Format], names: &[(&str, &str)]) -> Policy {
        let sets = names.iter().map(|(name, set)| (name.to_string(), set.to_string())).collect();
        let structure = Structure { sharing: Sharing::Columns(32), sets, formats: BTreeMap::new() };
        let rate = RateWeights { storage: 1.0, resident: 0.0 };
        let formats = formats.to_vec();
        Policy { formats, floors: vec![], margin: 0.0, rate, corrections: BTreeMap::new(), structure: Some(structure) }
    }

    /// Tiles of 64 columns: finer steps lose less and cost more; tile n holds its levels in four bits from step 4 + n on.
    fn candidates(factor: f64) -> TensorCandidates {
        let plan = TensorPlan::uniform(Dtype::Bf16, 2 * TILE, 4 * TILE, TilePlan::default());
        let mut tiles = Candidates::default();
        for n in 0..8i16 {
            let format = |step: i16| if step < 4 + n { Format::Int8 } else { Format::Int4 };
            let loss = |step: i16| Loss(factor * 1e-6 * (f64::from(step) / 2.0).exp2() * f64::from(n + 1));
            let rate = |step: i16| Rate(256.0 * (6.0 - f64::from(step) / 4.0));
            let ladder = (-n..20).map(|step| RdCandidate {
                format: format(step),
                step,
                width: 8,
                loss: loss(step),
                rate: rate(step),
            });
            tiles.push(ladder);
        }
        TensorCandidates { plan, tiles, loss_weights: Default::default() }
    }

    #[test]
    fn units_are_columns_of_rows_of_tiles() {
        let plan = TensorPlan::uniform(Dtype::Bf16, 2 * TILE, 4 * TILE, TilePlan::default());
        assert_eq!(Sharing::Columns(32).units(&plan), [vec![0, 1], vec![2, 3], vec![4, 5], vec![6, 7]]);
        // A group that does not divide a row is the whole row.
        assert_eq!(Sharing::Columns(48).units(&plan), [vec![0, 1, 2, 3], vec![4, 5, 6, 7]]);
        assert_eq!(Sharing::Matrix.units(&plan).len(), 1);
        assert_eq!(Sharing::Tile.units(&plan).len(), 8);
    }

    #[test]
    fn one_format_for_a_set_and_one_step_for_a_unit() {
        let names = [("q", "qkv"), ("k", "qkv"), ("o", "o")];
        let policy = policy(&[Format::Int4, Format::Int8], &names);
        let matrices = [("q", candidates(1.0)), ("k", candidates(1e-7)), ("o", candidates(1e-7))];
        let lambda = Lambda(1e-8);
        let costs: Vec<_> = matrices.iter().map(|(n, m)| (*n, format_costs(n, m, &policy, lambda))).collect();
        let alone = |costs: &FormatCosts| *costs.iter().min_by(|a, b| a.1.total_cmp(b.1)).unwrap().0;
        assert_eq!(costs.iter().map(|(_, c)| alone(c)).collect::<Vec<_>>(), [Format::Int8, Format::Int4, Format::Int4]);
        let policy = policy.with_formats(costs);
        for (name, matrix) in &matrices {
            let format = if *name == "o" { Format::Int4 } else { Format::Int8 };
            let chosen = select_weight(name, matrix, &policy, lambda).unwrap();
            assert!(chosen.plan.tiles.iter().all(|t| t.format == format), "{name}");
            let units = Sharing::Columns(32).units(&matrix.plan);
            let step = |n: usize| chosen.plan.tiles[n].step;
            assert!(units.iter().all(|u| u.iter().all(|&n| step(n) == step(u[0]))), "{name}");
            // No other step of a unit that all of its tiles can have costs less.
            for unit in units {
                let cost = |step: i16| -> Option<f64> {
                    let fits = |p: &RdCandidate| p.step == step && (format == Format::Int8 || p.format == format);
                    let candidate = |&n: &usize| matrix.tiles.tile(n).find(fits).map(|p| lambda.cost(p.loss, p.rate));
                    unit.iter().map(candidate).sum()
                };
                let best = (-8..20).filter_map(cost).fold(f64::INFINITY, f64::min);
                let found = cost(step(unit[0])).unwrap();
                assert!(found <= best * (1.0 + 1e-6), "{name}: {found}, best {best}");
            }
        }
        let nothing = policy_without(&policy);
        assert!(
            select_weight("q", &matrices[0].1, &nothing, lambda).unwrap_err().to_string().contains("q, tile (0, 0)")
        );
    }

    /// A policy whose formats no set can have.
    fn policy_without(policy: &Policy) -> Policy {
        let policy = Policy { formats: vec![Format::Fp8], ..policy.clone() };
        policy.with_formats([("q", FormatCosts::new())])
    }
}
