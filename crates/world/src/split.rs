//! Splits of sentences: each belongs to one text, by its digest.

/// A part of all sentences. The parts share facts, never sentences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// For training models.
    Train,
    /// For measuring sensitivities.
    Calibration,
    /// For choices during development.
    Validation,
    /// For reported results.
    Test,
}

impl Split {
    /// True if a sentence belongs to this split: of ten sentences seven are for training, and one for each of the others.
    pub fn owns(self, sentence: &str) -> bool {
        let home = match blake3::hash(sentence.as_bytes()).as_bytes()[0] % 10 {
            0 => Self::Calibration,
            1 => Self::Validation,
            2 => Self::Test,
            _ => Self::Train,
        };
        home == self
    }
}
