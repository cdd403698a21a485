//! The search for a path through the trellis: the levels of a column, one row after the other, that
//! minimise squared error + lambda * bits (Viterbi 1967; Marcellin & Fischer 1990).

use waterfill_codec::Trellis;
use waterfill_codec::entropy::tables::class_of;
use waterfill_codec::syntax::level_costs::LevelCosts;

/// One sample of a column.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// In steps.
    pub value: f32,
    /// Nats for a squared step.
    pub weight: f32,
    /// Spread of the level, quarter octaves.
    pub sigma: i32,
    /// Least and largest level.
    pub range: (i32, i32),
}

/// Further levels tried in each subset after the nearest one: that many fours towards zero.
const INWARD: i32 = 1;

/// A search over columns; keeps its memory between them.
pub struct PathSearch {
    trellis: Trellis,
    costs: &'static LevelCosts,
    /// Nats for a bit.
    lambda: f32,
    /// By sample and subset (level mod 4): the best level.
    levels: Vec<[i16; 4]>,
    /// By sample: a bit for each state, which of the two ways into it is the better.
    ways: Vec<u64>,
}

impl PathSearch {
    /// A search where a bit costs `lambda` nats.
    pub fn new(trellis: Trellis, lambda: f32) -> Self {
        Self { trellis, costs: LevelCosts::get(), lambda, levels: Vec::new(), ways: Vec::new() }
    }

    /// Levels of samples, from state 0 on; as many as there are samples.
    pub fn search(&mut self, samples: &[Sample], levels: &mut [i32]) {
        match self.trellis.log2_states() {
            2 => self.run::<4>(samples, levels),
            3 => self.run::<8>(samples, levels),
            4 => self.run::<16>(samples, levels),
            5 => self.run::<32>(samples, levels),
            6 => self.run::<64>(samples, levels),
            7 => self.run::<128>(samples, levels),
            _ => self.run::<256>(samples, levels),
        }
    }

    /// Best level of every subset and its cost.
    #[inline(always)]
    fn candidates(&self, sample: &Sample) -> ([f32; 4], [i16; 4]) {
        let class = class_of(sample.sigma - 4);
        let (low, high) = sample.range;
        let mut best = ([f32::INFINITY; 4], [0i16; 4]);
        for subset in 0..4i32 {
            let parity = subset & 1;
            // Levels subset + 4 n within the range.
            let (least, most) = ((low - subset + 3) >> 2, (high - subset) >> 2);
            let nearest = (((sample.value - subset as f32) / 4.0).round_ties_even() as i32).clamp(least, most);
            let inward = if nearest * 4 + subset > 0 { -1 } else { 1 };
            for n in 0..=INWARD {
                let level = (nearest + n * inward).clamp(least, most) * 4 + subset;
                let index = ((level - parity) >> 1).clamp(-127, 127);
                let bits = self.costs.index_cost(parity as usize, class, index);
                let cost = sample.weight * (sample.value - level as f32).powi(2) + self.lambda * bits;
                let s = subset as usize;
                if cost < best.0[s] {
                    (best.0[s], best.1[s]) = (cost, level as i16);
                }
            }
        }
        best
    }

    #[inline(always)]
    fn run<const N: usize>(&mut self, samples: &[Sample], levels: &mut [i32]) {
        let words = N.div_ceil(64);
        let half = N / 2;
        // Effects of a level's second bit and of the quantizer's parity on a state's low bits, for the upper
        // half is always entered from odd states.
        let forward = usize::from(self.trellis.next(0, 2));
        let feedback = usize::from(self.trellis.next(1, 1)) & (half - 1);
        let mut old = [f32::INFINITY; N];
        old[0] = 0.0;
        self.levels.clear();
        self.ways.clear();
        for sample in samples {
            let (costs, best) = self.candidates(sample);
            let mut new = [0.0; N];
            let mut ways = [false; N];
            for m in 0..half {
                let (a, b) = (old[2 * m] + costs[0], old[2 * (m ^ forward)] + costs[2]);
                (new[m], ways[m]) = (a.min(b), b < a);
                let odd = m ^ feedback;
                let (a, b) = (old[2 * odd + 1] + costs[1], old[2 * (odd ^ forward) + 1] + costs[3]);
                (new[half + m], ways[half + m]) = (a.min(b), b < a);
            }
            self.levels.push(best);
            for word in ways.chunks(64) {
                self.ways.push(word.iter().enumerate().fold(0, |bits, (i, &way)| bits | u64::from(way) << i));
            }
            // Costs from the least on, so that long columns lose no digits.
            let least = new.iter().fold(f32::INFINITY, |m, &c| m.min(c));
            old = new.map(|c| c - least);
        }
        let mut state = (0..N).min_by(|&a, &b| old[a].total_cmp(&old[b])).unwrap_or(0);
        for (t, level) in levels.iter_mut().enumerate().take(samples.len()).rev() {
            let way = self.ways[t * words + state / 64] >> (state % 64) & 1;
            let parity = state / half;
            let into = state & (half - 1) ^ (parity * feedback) ^ (way as usize * forward);
            *level = self.levels[t][parity + 2 * way as usize].into();
            state = 2 * into + parity;
        }
    }
}

#[cfg(test)]
mod tests {
    use waterfill_codec::syntax::trellis::parity;

    use super::*;

    fn sample(value: f32) -> Sample {
        Sample { value, weight: 1.0, sigma: 8, range: (-127, 127) }
    }

    /// Total cost of a path, and whether it is one.
    fn cost_of(trellis: Trellis, lambda: f32, samples: &[Sample], levels: &[i32]) -> Option<f64> {
        let (mut state, mut cost) = (0, 0.0);
        for (sample, &level) in samples.iter().zip(levels) {
            if level & 1 != parity(state) {
                return None;
            }
            let index = (level - parity(state)) >> 1;
            let bits = LevelCosts::get().index_cost(parity(state) as usize, class_of(sample.sigma - 4), index);
            cost += f64::from((sample.value - level as f32).powi(2) + lambda * bits);
            state = trellis.next(state, level);
        }
        Some(cost)
    }

    /// Against every path of a short column.
    #[test]
    fn no_path_costs_less() {
        for log2 in 2..=8 {
            let trellis = Trellis::new(log2).unwrap();
            let samples: Vec<Sample> =
                (0..6).map(|i| sample(((i * 37 + log2 as i32 * 11) % 29) as f32 / 4.0 - 3.3)).collect();
            let lambda = 0.35;
            let mut found = [0; 6];
            PathSearch::new(trellis, lambda).search(&samples, &mut found);
            let found = cost_of(trellis, lambda, &samples, &found).expect("a path");
            let mut least = f64::INFINITY;
            let mut levels = [0; 6];
            for code in 0..16usize.pow(6) {
                (0..6).for_each(|i| levels[i] = (code / 16usize.pow(i as u32) % 16) as i32 - 8);
                if let Some(cost) = cost_of(trellis, lambda, &samples, &levels) {
                    least = cost.min(least);
                }
            }
            assert!((found - least).abs() < 1e-4, "{log2}: {found} {least}");
        }
    }

    #[test]
    fn levels_stay_in_their_range() {
        let trellis = Trellis::new(3).unwrap();
        let samples: Vec<Sample> =
            (0..200).map(|i| Sample { range: (-8, 7), ..sample((i % 41) as f32 - 20.0) }).collect();
        let mut levels = vec![0; 200];
        PathSearch::new(trellis, 0.1).search(&samples, &mut levels);
        assert!(cost_of(trellis, 0.1, &samples, &levels).is_some());
        assert!(levels.iter().all(|l| (-8..=7).contains(l)));
    }
}
