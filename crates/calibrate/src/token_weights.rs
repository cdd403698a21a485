//! Mean weights of tokens in a Hessian, for tokens whose gradient is not known.

/// Tokens whose mean weight is known apart: the first of each sequence, which attention rests on, and all others.
#[derive(Clone, Copy, Default)]
pub(crate) struct Weights {
    /// Tokens and their summed weight: of first tokens, of others.
    kinds: [(f64, f64); 2],
}

impl Weights {
    /// Adds weights of rows of `context` tokens each.
    pub fn add(&mut self, weights: &[f64], context: usize) {
        for (t, weight) in weights.iter().enumerate() {
            let (tokens, sum) = &mut self.kinds[usize::from(t % context != 0)];
            *tokens += 1.0;
            *sum += weight;
        }
    }

    /// Mean weights of first tokens and of others; of all where one of both has none.
    pub fn means(&self) -> [f64; 2] {
        let (tokens, sum) = self.kinds.iter().fold((0.0, 0.0), |all, kind| (all.0 + kind.0, all.1 + kind.1));
        self.kinds.map(|kind| if kind.0 > 0.0 { kind.1 / kind.0 } else { sum / f64::max(tokens, 1.0) })
    }

    /// As numbers, for a state.
    pub fn values(&mut self) -> [&mut f64; 4] {
        let [(a, b), (c, d)] = &mut self.kinds;
        [a, b, c, d]
    }
}
