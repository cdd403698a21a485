//! Greedy minimisation of J = loss + lambda * rate, tile by tile.

use waterfill_codec::{Format, Lambda, Loss, Rate, TILE, TilePlan};
use waterfill_quadratic::LossWeights;

use crate::error::{AllocateError, Result};
use crate::policy::{Policy, resident_bits, resident_bits_of_format};
use crate::rd_candidate::{RdCandidate, TensorCandidates, floor_loss};
use crate::shared_steps::{SharedSteps, shared_steps};
use crate::structure::Sharing;

/// Lambdas between which that of a floor is searched, and halvings of the interval of their logarithms: to a hundredth.
const FLOOR_LAMBDAS: [f64; 2] = [1e-20, 1e3];
const FLOOR_ROUNDS: usize = 13;

/// The choice for one weight matrix.
#[derive(Debug, Clone)]
pub struct Selection {
    /// Complete plan.
    pub plan: waterfill_codec::TensorPlan,
    /// Chosen candidate of every tile.
    pub chosen: Vec<RdCandidate>,
    /// Predicted loss, margin not included.
    pub loss: Loss,
    /// Estimated bits of the slices: samples and tile headers.
    pub rate: Rate,
    /// Bits in a runtime's memory: samples, tile steps, row and column scales.
    pub resident: Rate,
    /// Costs of errors, correction and margin included.
    pub loss_weights: LossWeights,
    /// Nats per token for a bit of the file, or in memory where that comes first.
    pub lambda: Lambda,
    /// Whether tiles may be INT4.
    pub allow_int4: bool,
    /// Which tiles share their step; unless it is [`Sharing::Tile`], all have one format.
    pub sharing: Sharing,
    /// Bits of a level of each tile, which with steps and scales are to be kept; empty where quantization decides by lambda.
    pub widths: Vec<u8>,
    /// Where a floor asks for more than lambda does.
    pub without_floor: Option<WithoutFloor>,
}

/// What a floor costs, against the choice without it at the same lambda.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WithoutFloor {
    /// Bits of the file more than without it.
    pub rate: Rate,
    /// The bits that lambda counts, in the file and in memory, at lambda.
    pub price: Loss,
    /// Loss less than without it, margin included.
    pub worth: Loss,
}

/// Bits of a tile header given the tile before, about: an adaptive code of the format and of the
/// difference of step indices.
fn header_bits(left: TilePlan, candidate: &RdCandidate) -> f64 {
    let format = if left.format == candidate.format { 0.2 } else { 4.0 };
    if candidate.format == Format::Lossless {
        return format;
    }
    let difference = (i32::from(candidate.step) - i32::from(left.step)).abs();
    let step = match difference {
        0 => 1.0,
        1..=8 => 2.0 + 0.8 * f64::from(difference),
        _ => 9.0,
    };
    format + step + 0.5
}

/// Chooses a candidate for every tile of the matrix `name`: the minimum of `J = loss + lambda * rate`. With a floor, lambda is
/// at most that at which the matrix loses no more than its tiles would in the floor's format: its bits
/// are then spread over its tiles as well as any.
///
/// # Errors
/// When formats and floors leave nothing for a tile.
pub fn select_weight(name: &str, candidates: &TensorCandidates, policy: &Policy, lambda: Lambda) -> Result<Selection> {
    match floor_lambda(name, candidates, policy)?.filter(|most| most.0 < lambda.0) {
        None => select_at(name, candidates, policy, lambda),
        Some(most) => {
            let free = select_at(name, candidates, policy, lambda)?;
            let floored = select_at(name, candidates, policy, most)?;
            let more = (floored.rate - free.rate) * policy.rate.storage
                + (floored.resident - free.resident) * policy.rate.resident;
            let without_floor = WithoutFloor {
                rate: floored.rate - free.rate,
                price: Loss(lambda.0 * more.0),
                worth: (free.loss - floored.loss) * (1.0 + policy.margin),
            };
            Ok(Selection { without_floor: Some(without_floor), ..floored })
        }
    }
}

/// The largest lambda at which a matrix loses no more than its tiles would in the format of its floor; `None` without a floor,
/// or where nothing loses more.
///
/// # Errors
/// As [`select_weight`].
pub(crate) fn floor_lambda(name: &str, candidates: &TensorCandidates, policy: &Policy) -> Result<Option<Lambda>> {
    let Some(floor) = policy.floor(name) else { return Ok(None) };
    let tiles = (0..candidates.tiles.tiles()).map(|n| floor_loss(candidates.tiles.tile(n), floor));
    let most = tiles.sum::<f64>() * policy.correction(name);
    let [mut low, mut high] = FLOOR_LAMBDAS.map(f64::ln);
    let finest = select_at(name, candidates, policy, Lambda(low.exp()))?;
    if finest.loss.0 > most {
        return Err(no_candidate(name, policy, (0, 0)));
    }
    if select_at(name, candidates, policy, Lambda(high.exp()))?.loss.0 <= most {
        return Ok(None);
    }
    for _ in 0..FLOOR_ROUNDS {
        let middle = (low + high) / 2.0;
        let found = select_at(name, candidates, policy, Lambda(middle.exp()))?;
        if found.loss.0 <= most { low = middle } else { high = middle }
    }
    Ok(Some(Lambda(low.exp())))
}

/// [`select_weight`] at a lambda, whatever the floor's loss.
///
/// Tiles are visited in coding order, so that the header's bits given the tile before take part in
/// the decision. Among the candidates of one tile the minimum of J lies on their lower convex hull
/// (Shoham & Gersho 1988), which needs no construction when every candidate is compared.
///
/// # Errors
/// When formats and floors leave nothing for a tile.
pub(crate) fn select_at(
    name: &str,
    candidates: &TensorCandidates,
    policy: &Policy,
    lambda: Lambda,
) -> Result<Selection> {
    let mut plan = candidates.plan.clone();
    let across = plan.tiles_across();
    let floor = policy.floor(name);
    let correction = policy.correction(name);
    let mut chosen = Vec::with_capacity(candidates.tiles.tiles());
    let (mut loss, mut rate, mut resident) = (Loss(0.0), Rate(0.0), Rate(0.0));
    resident += scale_bits(&plan);
    let mut left = TilePlan::default();
    let sharing = policy.sharing(name).unwrap_or_default();
    let shared = if sharing == Sharing::Tile { None } else { Some(structured(name, candidates, policy, lambda)?) };
    for n in 0..candidates.tiles.tiles() {
        let (row, col) = (n / across, n % across);
        let weights = TILE.min(plan.rows - row * TILE) * TILE.min(plan.cols - col * TILE);
        let memory = |p: &RdCandidate| match sharing {
            Sharing::Tile => resident_bits(p.format, p.width),
            _ => resident_bits_of_format(p.format, plan.dtype, weights),
        };
        let around = |p: &RdCandidate| (Rate(header_bits(left, p)), memory(p));
        let best = match &shared {
            Some(shared) => Some(shared[n]),
            None => {
                let own = candidates.tiles.tile(n);
                let cost = |p: &RdCandidate| {
                    let (header, memory) = around(p);
                    let weighted = (p.rate + header) * policy.rate.storage + Rate(memory) * policy.rate.resident;
                    lambda.cost(p.loss * (correction * (1.0 + policy.margin)), weighted)
                };
                let allowed = own.filter_map(|p| allowed(p, policy, floor));
                allowed.map(|p| (cost(&p), p)).min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, candidate)| candidate)
            }
        };
        let Some(best) = best else { return Err(no_candidate(name, policy, (row, col))) };
        let (header, memory) = around(&best);
        let tile = &mut plan.tiles[n];
        tile.format = best.format;
        tile.step = if best.format == Format::Lossless { left.step } else { best.step };
        left = *tile;
        loss += best.loss * correction;
        rate += best.rate + header;
        resident += Rate(memory);
        chosen.push(best);
    }
    let mut loss_weights = candidates.loss_weights.clone();
    loss_weights.tiles.iter_mut().for_each(|t| *t *= (correction * (1.0 + policy.margin)) as f32);
    let kept = policy.rate.memory_first() && (policy.structure.is_none() || sharing != Sharing::Tile);
    // Where memory comes first, lambda still says how much an error is worth, and so how far feedback may be believed.
    let counted = policy.rate.storage + if policy.rate.memory_first() { policy.rate.resident } else { 0.0 };
    let lambda = Lambda(lambda.0 * counted);
    let allow_int4 = sharing == Sharing::Tile && policy.allows(Format::Int4, floor);
    let width = |candidate: &RdCandidate| match sharing {
        Sharing::Tile => candidate.width,
        // Other runtimes hold all of a matrix alike.
        _ => candidate.format.resident_bits(plan.dtype) as u8,
    };
    let widths = chosen.iter().filter(|_| kept).map(width).collect();
    let without_floor = None;
    Ok(Selection {
        plan,
        chosen,
        loss,
        rate,
        resident,
        loss_weights,
        lambda,
        allow_int4,
        sharing,
        widths,
        without_floor,
    })
}

/// Bits of row and column scales in memory.
pub(crate) fn scale_bits(plan: &waterfill_codec::TensorPlan) -> Rate {
    Rate(8.0 * (plan.row_scale.len() + plan.col_scale.len()) as f64)
}

/// Candidates of a matrix that has one format.
fn structured(name: &str, candidates: &TensorCandidates, policy: &Policy, lambda: Lambda) -> Result<Vec<RdCandidate>> {
    let (sharing, structure) = (policy.sharing(name).unwrap_or_default(), policy.structure.as_ref());
    let format = structure.and_then(|s| s.formats.get(name)).copied();
    let found =
        format.and_then(|format| shared_steps(name, candidates, policy, SharedSteps { lambda, sharing, format }));
    found.map(|(chosen, _)| chosen).ok_or_else(|| no_candidate(name, policy, (0, 0)))
}

fn no_candidate(name: &str, policy: &Policy, (row, col): (usize, usize)) -> AllocateError {
    AllocateError::NoCandidate {
        weight: name.into(),
        row,
        col,
        formats: policy.formats.iter().map(|f| f.name()).collect::<Vec<_>>().join(", "),
        floor: policy.floor(name).map_or("none", Format::name).into(),
    }
}

/// A candidate as the policy lets it be used: levels take the narrowest integer format that is allowed
/// and holds them.
fn allowed(candidate: RdCandidate, policy: &Policy, floor: Option<Format>) -> Option<RdCandidate> {
    const INTEGERS: [Format; 4] = [Format::Int2, Format::Int3, Format::Int4, Format::Int8];
    let wide_enough = match INTEGERS.iter().position(|&f| f == candidate.format) {
        Some(first) => &INTEGERS[first..],
        None => std::slice::from_ref(&candidate.format),
    };
    let format = wide_enough.iter().copied().find(|&f| policy.allows(f, floor))?;
    Some(RdCandidate { format, ..candidate })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use waterfill_codec::{Dtype, TensorPlan};

    use super::*;
    use crate::policy::{Floor, RateWeights};
    use crate::rd_candidate::Candidates;

    fn policy(formats: &[Format], floors: Vec<Floor>) -> Policy {
        let rate = RateWeights { storage: 1.0, resident: 0.0 };
        Policy {
            formats: formats.to_vec(),
            floors,
            margin: 0.0,
            rate,
            corrections: Default::default(),
            structure: None,
        }
    }

    /// One row of tiles with the given candidates each.
    fn weight(tiles: Vec<Vec<RdCandidate>>) -> TensorCandidates {
        let plan = TensorPlan::uniform(Dtype::Bf16, TILE, tiles.len() * TILE, TilePlan::default());
        let mut candidates = Candidates::default();
        tiles.into_iter().for_each(|t| candidates.push(t));
        TensorCandidates { plan, tiles: candidates, loss_weights: Default::default() }
    }

    fn candidate(format: Format, step: i16, loss: f64, rate: f64) -> RdCandidate {
        RdCandidate { format, step, width: format.resident_bits(Dtype::Bf16) as u8, loss: Loss(loss), rate: Rate(rate) }
    }

    fn candidates() -> Vec<RdCandidate> {
        vec![
            candidate(Format::Int8, -8, 1e-6, 1500.0),
            candidate(Format::Int4, 0, 1e-4, 1000.0),
            candidate(Format::Int4, 8, 1e-2, 500.0),
            candidate(Format::Fp8, 0, 1e-5, 1700.0),
            candidate(Format::Lossless, 0, 0.0, 2700.0),
        ]
    }

    #[test]
    fn a_larger_lambda_buys_fewer_bits() {
        let weight = weight(vec![candidates(); 3]);
        let at = |lambda| select_weight("w", &weight, &policy(&Format::ALL, vec![]), Lambda(lambda)).unwrap();
        assert!(at(1e-12).chosen.iter().all(|p| p.format == Format::Lossless));
        assert!(at(1.0).chosen.iter().all(|p| p.step == 8));
        let rates: Vec<f64> = [1e-12, 1e-9, 1e-7, 1e-5, 1e-3].map(|l| at(l).rate.0).to_vec();
        assert!(rates.windows(2).all(|w| w[0] >= w[1]), "{rates:?}");
    }

    #[test]
    fn floors_bound_format_and_loss() {
        let weight = weight(vec![candidates()]);
        let floors = || vec![Floor::new("*q_proj*", Format::Fp8).unwrap()];
        let chosen =
            |name| select_weight(name, &weight, &policy(&Format::ALL, floors()), Lambda(1.0)).unwrap().chosen[0];
        assert_eq!(chosen("a.q_proj.weight").step, -8, "INT8 that loses less than FP8 would");
        assert_eq!(chosen("a.k_proj.weight").step, 8);
        let only_int4 = policy(&[Format::Int4], floors());
        let error = select_weight("a.q_proj.weight", &weight, &only_int4, Lambda(1.0)).unwrap_err().to_string();
        assert!(error.contains("a.q_proj.weight") && error.contains("int4") && error.contains("fp8"), "{error}");
    }

    #[test]
    fn resident_bits_can_be_the_rate() {
        let weight =
            weight(vec![vec![candidate(Format::Int8, -8, 1e-6, 900.0), candidate(Format::Int4, 0, 1e-4, 1000.0)]]);
        let mut policy = policy(&Format::ALL, vec![]);
        assert_eq!(select_weight("w", &weight, &policy, Lambda(1e-6)).unwrap().chosen[0].format, Format::Int8);
        policy.rate = RateWeights { storage: 0.0, resident: 1.0 };
        let selection = select_weight("w", &weight, &policy, Lambda(1e-6)).unwrap();
        assert_eq!(selection.chosen[0].format, Format::Int4);
        assert_eq!(selection.resident, Rate(4.0 * 256.0 + 14.0));
    }

    proptest! {
        /// No other choice for one tile, the others fixed, has a lower J: greedy is optimal when
        /// headers cost the same.
        #[test]
        fn the_choice_minimises_j(raw in prop::collection::vec((0.0f64..1e-3, 10.0f64..3000.0), 1..20), lambda in 1e-9f64..1e-5) {
            let all: Vec<RdCandidate> = raw.iter().map(|&(l, r)| candidate(Format::Int8, 0, f64::from(l as f32), f64::from(r as f32))).collect();
            let weight = weight(vec![all.clone()]);
            let got = select_weight("w", &weight, &policy(&Format::ALL, vec![]), Lambda(lambda)).unwrap();
            let cost = |p: &RdCandidate| Lambda(lambda).cost(p.loss, p.rate);
            let best = all.iter().map(cost).fold(f64::INFINITY, f64::min);
            prop_assert!(cost(&got.chosen[0]) <= best * (1.0 + 1e-12));
        }
    }
}
