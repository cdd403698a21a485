//! Subjects of MMLU by group.

/// Parts of MMLU, as the harness groups its subjects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// Science, technology, engineering, mathematics.
    Stem,
    /// Humanities.
    Humanities,
    /// Social sciences.
    SocialSciences,
    /// Business, health, miscellaneous.
    Other,
}

const STEM: [&str; 19] = [
    "abstract_algebra",
    "anatomy",
    "astronomy",
    "college_biology",
    "college_chemistry",
    "college_computer_science",
    "college_mathematics",
    "college_physics",
    "computer_security",
    "conceptual_physics",
    "electrical_engineering",
    "elementary_mathematics",
    "high_school_biology",
    "high_school_chemistry",
    "high_school_computer_science",
    "high_school_mathematics",
    "high_school_physics",
    "high_school_statistics",
    "machine_learning",
];
const HUMANITIES: [&str; 13] = [
    "formal_logic",
    "high_school_european_history",
    "high_school_us_history",
    "high_school_world_history",
    "international_law",
    "jurisprudence",
    "logical_fallacies",
    "moral_disputes",
    "moral_scenarios",
    "philosophy",
    "prehistory",
    "professional_law",
    "world_religions",
];
const SOCIAL_SCIENCES: [&str; 12] = [
    "econometrics",
    "high_school_geography",
    "high_school_government_and_politics",
    "high_school_macroeconomics",
    "high_school_microeconomics",
    "high_school_psychology",
    "human_sexuality",
    "professional_psychology",
    "public_relations",
    "security_studies",
    "sociology",
    "us_foreign_policy",
];
const OTHER: [&str; 13] = [
    "business_ethics",
    "clinical_knowledge",
    "college_medicine",
    "global_facts",
    "human_aging",
    "management",
    "marketing",
    "medical_genetics",
    "miscellaneous",
    "nutrition",
    "professional_accounting",
    "professional_medicine",
    "virology",
];

impl Group {
    /// Group of one of the 57 subjects.
    pub(super) fn of(subject: &str) -> Option<Self> {
        let groups: [(Self, &[&str]); 4] = [
            (Self::Stem, &STEM),
            (Self::Humanities, &HUMANITIES),
            (Self::SocialSciences, &SOCIAL_SCIENCES),
            (Self::Other, &OTHER),
        ];
        groups.into_iter().find(|(_, subjects)| subjects.contains(&subject)).map(|(group, _)| group)
    }

    /// Name in tables and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stem => "stem",
            Self::Humanities => "humanities",
            Self::SocialSciences => "social sciences",
            Self::Other => "other",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_subject_has_a_group() {
        assert_eq!(STEM.len() + HUMANITIES.len() + SOCIAL_SCIENCES.len() + OTHER.len(), 57);
        assert_eq!((Group::of("virology"), Group::of("cooking")), (Some(Group::Other), None));
    }
}
