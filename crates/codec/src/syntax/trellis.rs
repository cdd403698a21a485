//! Trellis-coded quantisation: the quantiser of a level, from the levels before it in its column (sections 7.3 and
//! 8.2 of `docs/BITSTREAM.md`).
//!
//! Levels are multiples of the step of a union quantiser. Its even levels form one quantiser, its odd levels the
//! other. A state selects one of them, and the second bit of the level moves the state. States are those of
//! Ungerboeck's one-dimensional codes (1982, table I) as systematic feedback encoders, with entropy-coded indices
//! (Fischer & Wang 1992).

/// Parity-check polynomials (h0, h1) by log2 of the number of states, from 2 on.
const POLYNOMIALS: [(u16, u16); 7] =
    [(0o5, 0o2), (0o13, 0o4), (0o23, 0o4), (0o45, 0o10), (0o103, 0o24), (0o235, 0o126), (0o515, 0o362)];

/// State machine of a trellis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trellis {
    log2_states: u8,
    /// Polynomials without their constant terms.
    h0: u8,
    h1: u8,
}

impl Trellis {
    /// The machine of 2^`log2_states` states, 4 to 256.
    pub const fn new(log2_states: u32) -> Option<Self> {
        if log2_states < 2 || log2_states as usize > 1 + POLYNOMIALS.len() {
            return None;
        }
        let (h0, h1) = POLYNOMIALS[log2_states as usize - 2];
        Some(Self { log2_states: log2_states as u8, h0: (h0 >> 1) as u8, h1: (h1 >> 1) as u8 })
    }

    /// Log2 of the number of states.
    pub const fn log2_states(self) -> u32 {
        self.log2_states as u32
    }

    /// Number of states.
    pub const fn states(self) -> usize {
        1 << self.log2_states
    }

    /// State after a level.
    #[inline]
    pub const fn next(self, state: u8, level: i32) -> u8 {
        let feedback = if state & 1 == 1 { self.h0 } else { 0 };
        let forward = if level & 2 == 2 { self.h1 } else { 0 };
        state >> 1 ^ feedback ^ forward
    }
}

/// Parity of the levels of a state's quantiser.
#[inline]
pub const fn parity(state: u8) -> i32 {
    (state & 1) as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every state is left to two others and reached from two, and of two levels side by side in a
    /// quantiser one goes each way.
    #[test]
    fn states_are_met_evenly() {
        for log2 in 2..=8 {
            let trellis = Trellis::new(log2).unwrap();
            let mut reached = vec![0; trellis.states()];
            for state in 0..trellis.states() {
                let q = parity(state as u8);
                let [a, b] = [q, q + 2].map(|level| trellis.next(state as u8, level));
                assert_ne!(a, b);
                assert_eq!((trellis.next(state as u8, q + 4), trellis.next(state as u8, q - 2)), (a, b));
                reached[usize::from(a)] += 1;
                reached[usize::from(b)] += 1;
            }
            assert!(reached.iter().all(|&n| n == 2), "{log2}: {reached:?}");
        }
        assert!(Trellis::new(1).is_none() && Trellis::new(9).is_none());
    }

    /// Least squared distance between two paths that part and meet again, in squared steps: with the
    /// distance 2 (16, squared) between parallel branches, the published free distances 9, 10, 11, 13, 14, 16, 16.
    #[test]
    fn free_distances_are_the_published_ones() {
        for (log2, published) in [(2, 9), (3, 10), (4, 11), (5, 13), (6, 14), (7, 16), (8, 16)] {
            let trellis = Trellis::new(log2).unwrap();
            // Least distance of pairs of states, from pairs that part.
            let n = trellis.states();
            let mut least = vec![u32::MAX; n * n];
            let mut queue = std::collections::VecDeque::new();
            let mut best = 16;
            let step = |a: usize, b: usize, sum: u32, least: &mut Vec<u32>, best: &mut u32| {
                let mut grown = Vec::new();
                for x in 0..4 {
                    for y in 0..4 {
                        if x % 2 != parity(a as u8) || y % 2 != parity(b as u8) {
                            continue;
                        }
                        let distance = (x - y).rem_euclid(4).min((y - x).rem_euclid(4)).pow(2) as u32 + sum;
                        let (c, d) = (trellis.next(a as u8, x) as usize, trellis.next(b as u8, y) as usize);
                        if a == b && x == y {
                            continue;
                        }
                        if c == d {
                            *best = distance.min(*best);
                        } else if distance < least[c * n + d] {
                            least[c * n + d] = distance;
                            grown.push((c, d));
                        }
                    }
                }
                grown
            };
            for state in 0..n {
                queue.extend(step(state, state, 0, &mut least, &mut best));
            }
            while let Some((a, b)) = queue.pop_front() {
                let sum = least[a * n + b];
                if sum < best {
                    queue.extend(step(a, b, sum, &mut least, &mut best));
                }
            }
            assert_eq!(best, published, "{n} states");
        }
    }
}
