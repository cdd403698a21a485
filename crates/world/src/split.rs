//! Which sentences belong to which text: every sentence has one home, by its digest.

/// A part of all sentences. The parts share facts, never sentences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// What models are trained on.
    Train,
    /// What sensitivities are measured on.
    Calibration,
    /// What is looked at while working.
    Validation,
    /// What results are measured on.
    Test,
}

impl Split {
    /// True when a sentence belongs to this part: of every ten sentences, seven are for training
    /// and one for each of the others.
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
