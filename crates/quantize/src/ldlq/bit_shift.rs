//! The search for a path through a bit-shift trellis: the codes of a column, one row after the other, that leave the least
//! squared error (Viterbi 1967).

use waterfill_codec::BitShiftTrellis;
use waterfill_codec::dispatch;
use waterfill_codec::syntax::bit_shift::{LARGEST_LEVEL, level};

/// Values beyond this many steps count as so many: none of them has a level near it.
const FARTHEST: f32 = 4.0 * LARGEST_LEVEL as f32;

/// Cost of a state that cannot be reached.
const UNREACHED: f32 = 1e30;

/// One sample of a column.
#[derive(Debug, Clone, Copy)]
pub(super) struct CodeSample {
    /// In steps.
    pub value: f32,
    /// Cost of a squared step, in any unit.
    pub weight: f32,
    /// Bits of its code.
    pub bits: u8,
}

/// A search over columns; keeps its memory between them.
pub(super) struct BitShiftSearch {
    trellis: BitShiftTrellis,
    /// Level of every state.
    levels: Vec<f32>,
    /// Least cost of a path to every state.
    costs: Vec<f32>,
    /// By the bits that states before and after a code share: the least cost, as bits of a float whose lowest are the highest
    /// of the state before.
    best: Vec<u32>,
    /// Those bits of every sample, one after the other.
    ways: Vec<u8>,
}

impl BitShiftSearch {
    pub fn new(trellis: BitShiftTrellis) -> Self {
        let states = trellis.states();
        let levels = (0..states as u32).map(|state| level(state) as f32).collect();
        Self { trellis, levels, costs: vec![0.0; states], best: vec![0; states / 2], ways: Vec::new() }
    }

    /// The states of a path from `state` on, one for each sample.
    pub fn search(&mut self, state: u32, samples: &[CodeSample], states: &mut [u32]) {
        dispatch(
            #[inline(always)]
            || self.run(state, samples, states),
        );
    }

    #[inline(always)]
    fn run(&mut self, first: u32, samples: &[CodeSample], states: &mut [u32]) {
        self.costs.fill(UNREACHED);
        self.costs[first as usize] = 0.0;
        self.ways.clear();
        // Costs are of the order of squared levels, whatever a squared step costs and however far beyond levels a value lies; no
        // sample is free.
        let largest = samples.iter().fold(f32::MIN_POSITIVE, |m, s| m.max(s.weight));
        for sample in samples {
            let weight = (sample.weight / largest).max(1e-20);
            self.step(sample.bits.into(), sample.value.clamp(-FARTHEST, FARTHEST), weight);
        }
        let least =
            |(at, least): (usize, f32), (n, &cost): (usize, &f32)| if cost < least { (n, cost) } else { (at, least) };
        let mut state = self.costs.iter().enumerate().fold((0, f32::INFINITY), least).0;
        let mut end = self.ways.len();
        for (out, sample) in states.iter_mut().zip(samples).rev() {
            *out = state as u32;
            let shared = self.trellis.state_bits() - u32::from(sample.bits);
            end -= 1 << shared;
            let kept = state >> sample.bits;
            state = usize::from(self.ways[end + kept]) << shared | kept;
        }
    }

    /// Moves costs on by a code of `bits` bits.
    #[inline(always)]
    fn step(&mut self, bits: usize, value: f32, weight: f32) {
        let (costs, levels) = (&mut self.costs[..], &self.levels[..]);
        let shared = costs.len() >> bits;
        let mask = (1u32 << bits) - 1;
        let start = self.ways.len();
        self.ways.resize(start + shared, 0);
        let (best, ways) = (&mut self.best[..shared], &mut self.ways[start..]);
        // States that differ in their highest bits alone lead to the same ones.
        let mut least = u32::MAX;
        for (n, (best, ways)) in best.chunks_mut(PART).zip(ways.chunks_mut(PART)).enumerate() {
            best.fill(u32::MAX);
            for highest in 0..1 << bits {
                let costs = &costs[(highest as usize) * shared + PART * n..][..best.len()];
                for (best, cost) in best.iter_mut().zip(costs) {
                    // Floats that are not negative are in the order of their bits.
                    *best = (*best).min(cost.to_bits() & !mask | highest);
                }
            }
            for (best, way) in best.iter_mut().zip(ways) {
                *way = (*best & mask) as u8;
                *best &= !mask;
                least = least.min(*best);
            }
        }
        let least = f32::from_bits(least);
        let cost = |before: f32, level: f32| {
            let error = value - level;
            before + weight * error * error
        };
        if bits >= 4 {
            let groups = costs.chunks_exact_mut(1 << bits).zip(levels.chunks_exact(1 << bits));
            for (best, (costs, levels)) in best.iter().zip(groups) {
                let before = f32::from_bits(*best) - least;
                costs.iter_mut().zip(levels).for_each(|(c, level)| *c = cost(before, *level));
            }
            return;
        }
        let mut before = [0.0; 4 * PART];
        let parts = costs.chunks_mut(4 * PART).zip(levels.chunks(4 * PART));
        for (best, (costs, levels)) in best.chunks((4 * PART) >> bits).zip(parts) {
            repeated(bits, best, least, &mut before);
            costs.iter_mut().zip(levels).zip(&before).for_each(|((c, level), before)| *c = cost(*before, *level));
        }
    }
}

/// States that are worked on at a time.
const PART: usize = 64;

/// Each of `best` less `least`, 2^`bits` times, for 1 to 3 bits.
#[inline(always)]
fn repeated(bits: usize, best: &[u32], least: f32, out: &mut [f32; 4 * PART]) {
    let double = |from: &[f32], to: &mut [f32]| {
        to.as_chunks_mut::<2>().0.iter_mut().zip(from).for_each(|(to, from)| *to = [*from, *from]);
    };
    let (mut one, mut two) = ([0.0; 2 * PART], [0.0; 2 * PART]);
    one.iter_mut().zip(best).for_each(|(one, best)| *one = f32::from_bits(*best) - least);
    match bits {
        1 => double(&one, out),
        2 => {
            double(&one[..PART], &mut two);
            double(&two, out);
        }
        _ => {
            double(&one[..PART / 2], &mut two[..PART]);
            double(&two[..PART], &mut one);
            double(&one, out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost_of(samples: &[CodeSample], states: &[u32]) -> f64 {
        let error =
            |(s, &state): (&CodeSample, &u32)| f64::from(s.weight) * f64::from(s.value - level(state) as f32).powi(2);
        samples.iter().zip(states).map(error).sum()
    }

    fn samples(count: usize, bits: impl Fn(usize) -> u8) -> Vec<CodeSample> {
        let value = |i: usize| ((i * 37 + 11) % 97) as f32 * 3.1 - 150.0;
        (0..count).map(|i| CodeSample { value: value(i), weight: 0.5 + (i % 3) as f32, bits: bits(i) }).collect()
    }

    /// Against every path of a short column, whose codes have several widths.
    #[test]
    fn no_path_costs_less() {
        for state_bits in [8, 10] {
            let trellis = BitShiftTrellis::new(state_bits).unwrap();
            let samples = samples(6, |i| [2, 3, 1, 4, 2, 3][i]);
            let mut found = [0; 6];
            BitShiftSearch::new(trellis).search(77, &samples, &mut found);
            let mut least = f64::INFINITY;
            for path in 0..1u32 << 15 {
                let (mut rest, mut state) = (path, 77);
                let states: Vec<u32> = samples
                    .iter()
                    .map(|s| {
                        state = trellis.next(state, s.bits.into(), rest);
                        rest >>= s.bits;
                        state
                    })
                    .collect();
                least = least.min(cost_of(&samples, &states));
            }
            assert!((cost_of(&samples, &found) / least - 1.0).abs() < 1e-3, "{state_bits}: {found:?}");
        }
    }

    #[test]
    fn states_follow_each_other() {
        let trellis = BitShiftTrellis::new(12).unwrap();
        let samples = samples(300, |i| 1 + (i / 16 % 8) as u8);
        let mut found = vec![0; 300];
        BitShiftSearch::new(trellis).search(5, &samples, &mut found);
        let mut state = 5;
        for (sample, &next) in samples.iter().zip(&found) {
            assert_eq!(trellis.next(state, sample.bits.into(), next), next);
            state = next;
        }
    }
}
