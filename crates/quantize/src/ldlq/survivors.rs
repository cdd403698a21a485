//! The search for a path through the trellis where every level changes the targets of the levels after it:
//! each survivor carries what its own errors make of the rows below (per-survivor processing: Raheli,
//! Polydoros & Tzou 1995).

use std::ops::Range;

use waterfill_codec::Trellis;
use waterfill_codec::entropy::tables::class_of;
use waterfill_codec::syntax::level_costs::LevelCosts;

use super::viterbi::Sample;

/// Rows behind which all survivors are taken to agree: five times the longest code's memory.
const DELAY: usize = 88;
/// Rows that are settled at once.
const SETTLED: usize = 8;
/// Rows below that a survivor keeps account of.
pub(super) const WINDOW: usize = DELAY + SETTLED;

/// How a row gets its value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Kind {
    /// By a level of the trellis.
    Level,
    /// Rounded so finely that it is its target.
    Fine,
    /// As it is, with this error.
    Exact(f32),
}

/// Sums that survivors carry for the rows below, the next row first.
type Pending = [f32; WINDOW];

/// The paths that end in each state after some rows.
pub(super) struct Survivors {
    trellis: Trellis,
    costs: &'static LevelCosts,
    /// Nats for a bit.
    lambda: f32,
    /// By state.
    cost: Vec<f32>,
    pending: Vec<Pending>,
    /// Those of the row before, while new ones are made.
    before: Vec<Pending>,
    /// By row and state: the state before, and the level that led here.
    steps: Vec<(u8, i16)>,
    rows: usize,
    settled: usize,
}

impl Survivors {
    /// Survivors where a bit costs `lambda` nats.
    pub fn new(trellis: Trellis, lambda: f32) -> Self {
        let states = trellis.states();
        Self {
            trellis,
            costs: LevelCosts::get(),
            lambda,
            cost: vec![0.0; states],
            pending: vec![[0.0; WINDOW]; states],
            before: vec![[0.0; WINDOW]; states],
            steps: Vec::new(),
            rows: 0,
            settled: 0,
        }
    }

    /// Begins a column, in state 0.
    pub fn begin(&mut self) {
        self.cost.fill(f32::INFINITY);
        self.cost[0] = 0.0;
        self.pending.fill([0.0; WINDOW]);
        self.steps.clear();
        (self.rows, self.settled) = (0, 0);
    }

    /// Goes on by a row: `offset` is what rows that are settled add to its target, `factors` what its
    /// error makes of the rows below.
    #[inline(always)]
    pub fn advance(&mut self, kind: Kind, sample: &Sample, step: f32, offset: f32, factors: &[f32]) {
        let mut window = [0.0; WINDOW];
        let count = factors.len().min(WINDOW);
        window[..count].copy_from_slice(&factors[..count]);
        std::mem::swap(&mut self.pending, &mut self.before);
        self.rows += 1;
        if kind != Kind::Level {
            for (state, (new, old)) in self.pending.iter_mut().zip(&self.before).enumerate() {
                let error = if let Kind::Exact(error) = kind { error } else { -(offset + old[0]) };
                carry(new, old, error, &window);
                self.steps.push((state as u8, 0));
            }
            return;
        }
        match self.trellis.log2_states() {
            2 => self.branch::<4>(sample, step, offset, &window),
            3 => self.branch::<8>(sample, step, offset, &window),
            4 => self.branch::<16>(sample, step, offset, &window),
            5 => self.branch::<32>(sample, step, offset, &window),
            6 => self.branch::<64>(sample, step, offset, &window),
            7 => self.branch::<128>(sample, step, offset, &window),
            _ => self.branch::<256>(sample, step, offset, &window),
        }
    }

    #[inline(always)]
    fn branch<const N: usize>(&mut self, sample: &Sample, step: f32, offset: f32, window: &Pending) {
        let half = N / 2;
        // By second bit of the level and state: what the best level costs, and that level.
        let (mut cost, mut level) = ([[0.0f32; N]; 2], [[0.0f32; N]; 2]);
        let mut values = [0.0f32; N];
        for (value, before) in values.iter_mut().zip(&self.before) {
            *value = sample.value - (offset + before[0]) / step;
        }
        for subset in 0..4usize {
            let (parity, second) = (subset & 1, subset >> 1);
            let bits = self.costs.of(parity, class_of(sample.sigma - 4));
            let search = Subset::new(sample, subset as i32);
            let mut near = [[0.0f32; N]; 2];
            for k in 0..half {
                (near[0][k], near[1][k]) = search.levels(values[2 * k + parity]);
            }
            let mut rates = [[0.0f32; N]; 2];
            for n in 0..2 {
                for k in 0..half {
                    let index = (near[n][k] as i32 - parity as i32) >> 1;
                    rates[n][k] = bits[(index.clamp(-127, 127) + 128) as usize & 255];
                }
            }
            for k in 0..half {
                let state = 2 * k + parity;
                let of = |n: usize| sample.weight * (values[state] - near[n][k]).powi(2) + self.lambda * rates[n][k];
                let (a, b) = (of(0), of(1));
                cost[second][state] = self.cost[state] + a.min(b);
                level[second][state] = if b < a { near[1][k] } else { near[0][k] };
            }
        }
        let forward = usize::from(self.trellis.next(0, 2));
        let feedback = usize::from(self.trellis.next(1, 1)) & (half - 1);
        let start = self.steps.len();
        self.steps.resize(start + N, (0, 0));
        for (state, made) in self.steps[start..].iter_mut().enumerate() {
            let parity = state / half;
            let into = state & (half - 1) ^ (parity * feedback);
            let [a, b] = [2 * into + parity, 2 * (into ^ forward) + parity];
            let (from, second) = if cost[1][b] < cost[0][a] { (b, 1) } else { (a, 0) };
            self.cost[state] = cost[second][from];
            let level = level[second][from];
            carry(&mut self.pending[state], &self.before[from], (level - sample.value) * step, window);
            *made = (from as u8, level as i16);
        }
        // Costs from the least on, so that long columns lose no digits.
        let least = self.cost.iter().fold(f32::INFINITY, |m, &c| m.min(c));
        self.cost.iter_mut().for_each(|c| *c -= least);
    }

    /// Rows that can be settled now, with their levels; all that are left where the column `ends`.
    #[inline(always)]
    pub fn settle(&mut self, ends: bool, levels: &mut [i32]) -> Range<usize> {
        let first = self.settled;
        let end = match ends {
            true => self.rows,
            false if self.rows - first >= WINDOW => first + SETTLED,
            false => return first..first,
        };
        let best = (0..self.cost.len()).min_by(|&a, &b| self.cost[a].total_cmp(&self.cost[b])).unwrap_or(0);
        let settled = self.state_before(end, best);
        let mut state = settled;
        for row in (first..end).rev() {
            let (before, level) = self.steps[row * self.cost.len() + state];
            levels[row] = level.into();
            state = before.into();
        }
        // Later rows go on from there.
        for state in 0..self.cost.len() {
            if self.state_before(end, state) != settled {
                self.cost[state] = f32::INFINITY;
            }
        }
        self.settled = end;
        first..end
    }

    /// State before row `row` of the survivor that is in `state` now.
    #[inline(always)]
    fn state_before(&self, row: usize, state: usize) -> usize {
        (row..self.rows).rev().fold(state, |state, row| self.steps[row * self.cost.len() + state].0.into())
    }
}

/// Levels of a subset: those that are the same modulo 4.
struct Subset {
    subset: f32,
    /// Fours that the least and the largest are above it.
    least: f32,
    most: f32,
}

/// Added and taken away again, it leaves the nearest integer of a number below 2^22.
const ROUND: f32 = 12_582_912.0;

impl Subset {
    fn new(sample: &Sample, subset: i32) -> Self {
        let (low, high) = sample.range;
        let (least, most) = ((low - subset + 3) >> 2, (high - subset) >> 2);
        Self { subset: subset as f32, least: least as f32, most: most as f32 }
    }

    /// The nearest level to a value and the next one towards zero.
    #[inline(always)]
    fn levels(&self, value: f32) -> (f32, f32) {
        let fours = ((value - self.subset) * 0.25).clamp(-1e6, 1e6);
        let nearest = (fours + ROUND - ROUND).clamp(self.least, self.most);
        let level = nearest * 4.0 + self.subset;
        let inward = if level > 0.0 { -1.0 } else { 1.0 };
        (level, (nearest + inward).clamp(self.least, self.most) * 4.0 + self.subset)
    }
}

/// Moves pending sums one row down, and adds an error's share.
#[inline(always)]
fn carry(new: &mut Pending, old: &Pending, error: f32, window: &Pending) {
    for k in 0..WINDOW - 1 {
        new[k] = old[k + 1] + error * window[k];
    }
    new[WINDOW - 1] = error * window[WINDOW - 1];
}

#[cfg(test)]
mod tests {
    use waterfill_codec::syntax::trellis::parity;

    use super::super::viterbi::PathSearch;
    use super::*;

    const LAMBDA: f32 = 0.35;

    fn samples(count: usize) -> Vec<Sample> {
        let value = |i: usize| ((i * 37 + i * i % 101) % 29) as f32 / 4.0 - 3.3;
        (0..count).map(|i| Sample { value: value(i), weight: 1.0, sigma: 8, range: (-127, 127) }).collect()
    }

    /// Share of an error that reaches the row `apart` rows below.
    fn factor(apart: usize, strength: f32) -> f32 {
        strength * (-(apart as f32) / 20.0).exp()
    }

    fn found(trellis: Trellis, samples: &[Sample], strength: f32) -> Vec<i32> {
        let count = samples.len();
        let (mut levels, mut far) = (vec![0; count], vec![0.0; count]);
        let mut survivors = Survivors::new(trellis, LAMBDA);
        survivors.begin();
        for (i, sample) in samples.iter().enumerate() {
            let factors: Vec<f32> = (i + 1..count).map(|j| factor(j - i, strength)).collect();
            survivors.advance(Kind::Level, sample, 1.0, far[i], &factors);
            for i in survivors.settle(i + 1 == count, &mut levels) {
                let error = levels[i] as f32 - samples[i].value;
                (i + 1 + WINDOW..count).for_each(|j| far[j] += error * factor(j - i, strength));
            }
        }
        levels
    }

    /// Cost of levels with all that errors make of rows below.
    fn cost_of(trellis: Trellis, samples: &[Sample], levels: &[i32], strength: f32) -> f64 {
        let (mut state, mut cost, mut errors) = (0, 0.0, Vec::<f32>::new());
        for (i, (sample, &level)) in samples.iter().zip(levels).enumerate() {
            assert_eq!(level & 1, parity(state), "row {i}");
            let above: f32 = errors.iter().enumerate().map(|(k, e)| e * factor(i - k, strength)).sum();
            let index = (level - parity(state)) >> 1;
            let bits = LevelCosts::get().index_cost(parity(state) as usize, class_of(sample.sigma - 4), index);
            cost += f64::from((sample.value - above - level as f32).powi(2) + LAMBDA * bits);
            errors.push(level as f32 - sample.value);
            state = trellis.next(state, level);
        }
        cost
    }

    #[test]
    fn without_factors_it_is_the_same_search() {
        let samples = samples(200);
        for log2 in 2..=8 {
            let trellis = Trellis::new(log2).unwrap();
            let mut levels = vec![0; 200];
            PathSearch::new(trellis, LAMBDA).search(&samples, &mut levels);
            let (own, other) = (found(trellis, &samples, 0.0), levels);
            let [own, other] = [own, other].map(|levels| cost_of(trellis, &samples, &levels, 0.0));
            assert!((own / other - 1.0).abs() < 0.02, "{log2}: {own} {other}");
        }
    }

    #[test]
    fn paths_take_account_of_their_own_errors() {
        let samples = samples(300);
        for log2 in 2..=8 {
            let trellis = Trellis::new(log2).unwrap();
            let mut blind = vec![0; 300];
            PathSearch::new(trellis, LAMBDA).search(&samples, &mut blind);
            let blind = cost_of(trellis, &samples, &blind, 0.3);
            let seeing = cost_of(trellis, &samples, &found(trellis, &samples, 0.3), 0.3);
            assert!(seeing < 0.97 * blind, "{log2}: {seeing} {blind}");
        }
    }
}
