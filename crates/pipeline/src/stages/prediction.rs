//! Predictions of KL from predicted losses.

use serde::{Deserialize, Serialize};
use waterfill_evaluate::Estimate as Measured;

/// What quantizing all matrices loses on one text, over what is predicted.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct TextRatio {
    /// The text, as the configuration names it.
    pub text: String,
    /// Mean over its sequences, at the first level.
    pub ratio: Measured,
}

/// Predictions of KL from predicted losses.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Prediction {
    /// Of each text with held-out sequences, and of all of them.
    pub texts: Vec<TextRatio>,
    pub all: Option<Measured>,
    /// Predicted loss of each level, and measured over predicted loss in units of the first level's.
    pub levels: Vec<(f64, f64)>,
    /// The loss at which the model leaves the quadratic regime, where it does, and the block behind which errors grow most
    /// otherwise than by their scale.
    pub leaves: Option<(f64, usize)>,
}

/// A measured loss so many times the predicted one, or so many times less, already at the first level: a model that bears no
/// errors of that size, for which nothing is predicted.
const BEARS: f64 = 4.0;

impl Prediction {
    /// Whether the model bears errors of the first level.
    pub fn holds(&self) -> bool {
        self.all.is_some_and(|all| (BEARS.recip()..=BEARS).contains(&all.mean))
    }

    /// Expected KL at a predicted loss for one ratio, which grows with the loss as it does from level to level: linearly
    /// between logarithms.
    pub fn expected(&self, ratio: Measured, loss: f64) -> Measured {
        let pair = self.levels.windows(2).find(|pair| loss <= pair[1].0).or(self.levels.windows(2).last());
        let growth = match pair {
            Some(&[(low, from), (high, to)]) if high > low => {
                let share = (loss / low).max(1.0).ln() / (high / low).ln();
                from * (to / from).powf(share)
            }
            _ => 1.0,
        };
        Measured { mean: loss * growth * ratio.mean, se: loss * growth * ratio.se }
    }

    /// The block by which predictions for such a loss are beyond the quadratic regime.
    pub fn beyond(&self, loss: f64) -> Option<usize> {
        self.leaves.filter(|(from, _)| loss > *from).map(|(_, block)| block)
    }
}
