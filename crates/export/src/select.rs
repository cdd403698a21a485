//! Which type every matrix gets.

use waterfill_codec::Lambda;

/// A type of one matrix, or of several that have to have the same.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Candidate<K> {
    /// The type.
    pub kind: K,
    /// Bytes it takes.
    pub bytes: u64,
    /// Predicted loss, nats per token.
    pub loss: f64,
}

/// The chosen types.
#[derive(Debug, Clone, PartialEq)]
pub struct Chosen {
    /// Of every matrix, a number of its candidates.
    pub candidates: Vec<usize>,
    /// Nats for a bit.
    pub lambda: Lambda,
    /// Bytes of all matrices.
    pub bytes: u64,
}

/// Halvings of the interval that a lambda for a size is looked for in.
const HALVINGS: usize = 80;

/// Minimises loss + lambda * bits matrix by matrix (Shoham & Gersho 1988).
fn at_lambda<K>(matrices: &[Vec<Candidate<K>>], lambda: Lambda) -> Chosen {
    let cost = |c: &Candidate<K>| c.loss + lambda.0 * 8.0 * c.bytes as f64;
    let best = |candidates: &Vec<Candidate<K>>| {
        let least = candidates.iter().enumerate().min_by(|a, b| cost(a.1).total_cmp(&cost(b.1)));
        least.map_or(0, |(n, _)| n)
    };
    let candidates: Vec<usize> = matrices.iter().map(best).collect();
    let bytes = matrices.iter().zip(&candidates).map(|(m, &n)| m.get(n).map_or(0, |c| c.bytes)).sum();
    Chosen { candidates, lambda, bytes }
}

/// Chooses the types that lose least within `bytes` for all matrices, or at a given lambda. Bytes that the convex hull of all leaves are
/// spent where they save most for each of them.
pub fn choose<K>(matrices: &[Vec<Candidate<K>>], goal: std::result::Result<u64, Lambda>) -> Chosen {
    let limit = match goal {
        Err(lambda) => return at_lambda(matrices, lambda),
        Ok(bytes) => bytes,
    };
    let (mut low, mut high) = (1e-30f64.ln(), 1e3f64.ln());
    for _ in 0..HALVINGS {
        let middle = (low + high) / 2.0;
        if at_lambda(matrices, Lambda(middle.exp())).bytes > limit { low = middle } else { high = middle }
    }
    let mut chosen = at_lambda(matrices, Lambda(high.exp()));
    loop {
        let room = limit.saturating_sub(chosen.bytes);
        let mut best: Option<(f64, usize, usize)> = None;
        for (m, candidates) in matrices.iter().enumerate() {
            let Some(now) = candidates.get(chosen.candidates[m]) else { continue };
            for (n, c) in candidates.iter().enumerate() {
                if c.loss < now.loss && c.bytes > now.bytes && c.bytes - now.bytes <= room {
                    let gain = (now.loss - c.loss) / (c.bytes - now.bytes) as f64;
                    if best.is_none_or(|b| gain > b.0) {
                        best = Some((gain, m, n));
                    }
                }
            }
        }
        let Some((_, m, n)) = best else { return chosen };
        chosen.bytes = chosen.bytes - matrices[m][chosen.candidates[m]].bytes + matrices[m][n].bytes;
        chosen.candidates[m] = n;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn matrix(weights: u64, scale: f64) -> Vec<Candidate<u8>> {
        let kinds = [(2, 2.625), (4, 4.5), (6, 6.5625)];
        let candidate = |(kind, bits): (u8, f64)| Candidate {
            kind,
            bytes: (weights as f64 * bits / 8.0) as u64,
            loss: scale * (-2.0 * bits).exp2(),
        };
        kinds.map(candidate).to_vec()
    }

    #[test]
    fn bits_go_where_they_save_most() {
        let matrices = [matrix(1 << 16, 1.0), matrix(1 << 16, 1e-3)];
        let chosen = choose(&matrices, Ok(76_000));
        assert!(chosen.candidates[0] > chosen.candidates[1], "{chosen:?}");
        let finest = choose(&matrices, Err(Lambda(0.0)));
        assert_eq!(finest.candidates, [2, 2]);
    }

    proptest! {
        /// Within the limit wherever that is possible at all, and no single finer type would still fit.
        #[test]
        fn sizes_are_kept_and_used(scales in prop::collection::vec(1e-6f64..1.0, 1..9), share in 0.0f64..1.2) {
            let matrices: Vec<_> = scales.iter().map(|&s| matrix(1 << 14, s)).collect();
            let sizes = |n: usize| matrices.iter().map(|m| m[n].bytes).sum::<u64>();
            let limit = sizes(0) + ((sizes(2) - sizes(0)) as f64 * share) as u64;
            let chosen = choose(&matrices, Ok(limit));
            prop_assert!(chosen.bytes <= limit);
            let total: u64 = matrices.iter().zip(&chosen.candidates).map(|(m, &n)| m[n].bytes).sum();
            prop_assert_eq!(total, chosen.bytes);
            for (m, &n) in matrices.iter().zip(&chosen.candidates) {
                prop_assert!(n == 2 || chosen.bytes - m[n].bytes + m[n + 1].bytes > limit);
            }
        }
    }
}
