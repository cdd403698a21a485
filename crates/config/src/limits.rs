//! Limits of a configuration's values.

use waterfill_calibrate::HessianKind;
use waterfill_evaluate::tasks::{Retrieval, Scoring, Task};

use crate::allocate::{Probes, Size};
use crate::baseline::BaselineMethod;
use crate::config::Config;
use crate::error::Problem;
use crate::evaluate::MultipleChoice;

/// Every value that is outside its limits or does not go with another.
pub(crate) fn problems(config: &Config) -> Vec<Problem> {
    let mut found = Vec::new();
    let mut range = |key: &str, value: f64, low: f64, high: f64| {
        if !(low..=high).contains(&value) {
            found.push(Problem::OutOfRange { key: key.into(), value, low, high });
        }
    };
    let (c, a, e) = (&config.calibrate, &config.allocate, &config.evaluate);
    range("calibrate.context", c.context as f64, 1.0, 1_048_576.0);
    for (key, tokens) in [("calibrate.batch_tokens", c.batch_tokens), ("evaluate.batch_tokens", e.batch_tokens)] {
        range(key, tokens as f64, 1.0, 1e7);
    }
    range("calibrate.sequences", c.sequences as f64, 1.0, 1e9);
    let hessians = c.hessian_sequences.unwrap_or(c.sequences);
    range("calibrate.hessian_sequences", hessians as f64, c.sequences as f64, 1e9);
    for (i, text) in c.text.iter().enumerate() {
        range(&format!("calibrate.text[{i}].share"), text.share, 1e-6, 1e6);
        let [from, to] = text.part.unwrap_or([0.0, 1.0]);
        range(&format!("calibrate.text[{i}].part[0]"), from, 0.0, 1.0);
        range(&format!("calibrate.text[{i}].part[1]"), to, from, 1.0);
    }
    range("calibrate.folds", c.folds as f64, 1.0, c.sequences as f64);
    range("calibrate.hessian_block", c.hessian_block as f64, 16.0, 8192.0);
    range("allocate.margin", a.margin, 0.0, 100.0);
    range("allocate.sensitivity_floor", a.sensitivity_floor, 0.0, 10.0);
    let rate = a.rate();
    range("allocate.rate.storage", rate.storage, 0.0, 1e6);
    range("allocate.rate.resident", rate.resident, 0.0, 1e6);
    range("evaluate.context", e.context as f64, 1.0, 1_048_576.0);
    range("evaluate.sequences", e.sequences as f64, 1.0, 1e9);
    if let Some(long) = e.long_context {
        range("evaluate.long_context.context", long.context.unwrap_or(1) as f64, 1.0, 1_048_576.0);
        range("evaluate.long_context.sequences", long.sequences as f64, 1.0, 1e9);
        range("evaluate.long_context.bands", long.bands as f64, 1.0, 20.0);
    }
    range("encode.damping", config.encode.damping.unwrap_or(0.0), 0.0, 1e6);
    range("encode.rounding", config.encode.rounding.into(), 0.0, 10.0);
    if let Some(sequential) = config.encode.sequential {
        range("encode.sequential.steps", sequential.steps as f64, 1.0, 1e6);
        range("encode.sequential.rate", sequential.rate, 1e-9, 1.0);
    }
    range("calibrate.held_out", c.held_out() as f64, 0.0, 1e6);
    for (i, &lambda) in a.lambdas.iter().enumerate() {
        range(&format!("allocate.lambdas[{i}]"), lambda, 1e-18, 1e3);
    }
    for (key, [from, to]) in [("calibrate.part", c.part), ("evaluate.part", e.part)] {
        range(&format!("{key}[0]"), from, 0.0, 1.0);
        range(&format!("{key}[1]"), to, from, 1.0);
    }
    for (i, size) in a.sizes.iter().enumerate() {
        match size {
            Size::BitsPerWeight(bits) => range(&format!("allocate.sizes[{i}].bits_per_weight"), *bits, 0.01, 40.0),
            Size::Bytes(bytes) => range(&format!("allocate.sizes[{i}].bytes"), *bytes as f64, 1.0, 1e15),
            Size::ResidentBitsPerWeight(bits) => {
                range(&format!("allocate.sizes[{i}].resident_bits_per_weight"), *bits, 0.01, 40.0);
            }
            Size::ResidentGb(size) => range(&format!("allocate.sizes[{i}].resident_gb"), *size, 1e-9, 1e6),
            Size::Within { resident_gb, bytes } => {
                range(&format!("allocate.sizes[{i}].within.resident_gb"), *resident_gb, 1e-9, 1e6);
                range(&format!("allocate.sizes[{i}].within.bytes"), *bytes as f64, 1.0, 1e15);
            }
        }
    }
    let keyed = e.benchmarks.iter().enumerate().map(|(i, m)| (format!("evaluate.benchmarks[{i}]"), m));
    let keyed: Vec<(String, &MultipleChoice)> =
        e.multiple_choice.iter().map(|m| ("evaluate.multiple_choice".into(), m)).chain(keyed).collect();
    for (key, m) in &keyed {
        range(&format!("{key}.questions"), m.questions as f64, 1.0, 1e9);
        let most = if m.task.takes_examples() { 100.0 } else { 0.0 };
        range(&format!("{key}.shots"), m.shots() as f64, 0.0, most);
    }
    let mut require = |holds: bool, message: &str| {
        if !holds {
            found.push(Problem::Unmet(message.into()));
        }
    };
    let plain =
        |s: &str| !s.is_empty() && s.chars().all(|c| c.is_alphanumeric() || "-_.".contains(c)) && !s.starts_with('.');
    for (key, m) in &keyed {
        let retrieves = m.task == Task::Retrieval;
        let scored = m.scoring == Scoring::Letter || (retrieves && m.scoring == Scoring::Written);
        let mmlu = m.task == Task::Mmlu || (m.subjects.is_empty() && scored);
        require(mmlu, &format!("{key} has subjects or scoring, which only mmlu takes"));
        require(retrieves || m.retrieval.is_none(), &format!("{key} has retrieval, but asks {}", m.task.name()));
        if let Some(problem) = m.retrieval.as_ref().and_then(Retrieval::problem) {
            require(false, &format!("{key}.retrieval: {problem}"));
        }
        let (gsm8k, given) = (m.task == Task::Gsm8k, m.examples.is_some());
        require(gsm8k || !given, &format!("{key} has examples, which only gsm8k takes"));
        require(
            m.has_examples() || m.shots() == 0,
            &format!("{key} asks for shots, which come from a file: give examples"),
        );
    }
    require(plain(&config.name), &format!("name is {:?}, expected letters, digits, '-', '_' and '.'", config.name));
    let known = ["path:", "fixture:", "hf:"].iter().any(|p| config.model.starts_with(p));
    require(known, &format!("model is {:?}, expected hf:OWNER/NAME, path:DIR or fixture:SEED", config.model));
    require(!(a.lambdas.is_empty() && a.sizes.is_empty()), "allocate needs at least one entry in lambdas or sizes");
    let experimental = a.formats.iter().find(|f| f.0.is_experimental());
    if let (Some(format), false) = (experimental, config.experimental) {
        require(false, &format!("allocate.formats has {}, which needs experimental: true", format.0.name()));
    }
    if let (Some(tool), false) = (config.encode.with.iter().find(|t| t.is_experimental()), config.experimental) {
        require(false, &format!("encode.with has {}, which needs experimental: true", tool.name()));
    }
    require(
        matches!(a.probes, Probes::None | Probes::Together) || c.held_out() > 0,
        "allocate.probes needs calibrate.held_out of 1 or more",
    );
    if a.closed_loop != Probes::None {
        require(c.held_out() > 0, "allocate.closed_loop needs calibrate.held_out of 1 or more");
        require(a.closed_loop != Probes::Together, "allocate.closed_loop is together, expected roles or tensors");
        require(config.baseline.is_none(), "allocate.closed_loop is not for a baseline");
        require(config.encode.quality_layers.is_none(), "allocate.closed_loop is not for encode.quality_layers");
    }
    if let Some(b) = &config.baseline {
        let bits = !b.bits.is_empty() && b.bits.iter().all(|bits| (2..=8).contains(bits));
        require(bits, &format!("baseline.bits is {:?}, expected one or more of 2 to 8", b.bits));
        let fits = b.method != BaselineMethod::Fp8 || b.bits == [8];
        require(fits, &format!("baseline.bits is {:?}, expected [8] for fp8", b.bits));
        require(b.group >= 1, "baseline.group is 0, expected 1 or more");
    }
    require(
        c.gradient_covariance != HessianKind::BlockDiagonal,
        "calibrate.gradient_covariance is block-diagonal, expected full or diagonal",
    );
    let states = config.encode.states.unwrap_or(0);
    let tiles = rate.memory_first() && a.granularity.sharing() == waterfill_allocate::Sharing::Tile;
    let possible = if tiles { 256..=65536 } else { 4..=256 };
    require(
        states == 0 || states.is_power_of_two() && possible.contains(&states),
        &format!(
            "encode.states is {states}, expected 0 or a power of two from {} to {}{}",
            possible.start(),
            possible.end(),
            if tiles { " where memory comes first" } else { "" }
        ),
    );
    if let Some(layers) = &config.encode.quality_layers {
        let bits = (1..=8).contains(&layers.bits.len()) && layers.bits.iter().all(|b| (0.1..=8.0).contains(b));
        require(
            bits,
            &format!("encode.quality_layers.bits is {:?}, expected one to eight numbers of 0.1 to 8", layers.bits),
        );
        let error_penalty = layers.error_penalty();
        require(
            (0.0..=1000.0).contains(&error_penalty),
            &format!("encode.quality_layers.error_penalty is {error_penalty}, expected 0 to 1000"),
        );
        require(layers.parts <= 100, &format!("encode.quality_layers.parts is {}, expected 0 to 100", layers.parts));
        require(config.encode.feedback, "encode.quality_layers needs encode.feedback");
        require(config.baseline.is_none(), "encode.quality_layers is not for a baseline");
    }
    if a.granularity.sharing() != waterfill_allocate::Sharing::Tile {
        let named = |key: &str| format!("allocate.granularity {} {key}", String::from(a.granularity));
        require(config.encode.feedback, &named("needs encode.feedback"));
        require(config.encode.quality_layers.is_none(), &named("is not for encode.quality_layers"));
    }
    require(!a.formats.is_empty(), "allocate.formats is empty, expected some of int4, int8, fp8, lossless");
    require(rate.storage + rate.resident > 0.0, "allocate.rate prices no bits, expected storage or resident above 0");
    require(
        rate.memory_first() || !a.sizes.iter().any(Size::is_resident),
        "allocate.sizes has sizes in memory beside sizes of files or lambdas (which may be included: `lambdas: []` drops them); \
         allocate.rate {storage: 0, resident: 1} would put memory first for all of them",
    );
    require(
        !rate.memory_first() || !a.formats.iter().any(|f| f.0 == waterfill_codec::Format::Fp4),
        "allocate.formats has fp4, which packed tiles do not hold: with allocate.rate that puts memory first it would be decoded",
    );
    require(
        !rate.memory_first() || config.encode.quality_layers.is_none(),
        "allocate.rate puts memory first, which encode.quality_layers cannot have: layers are held as elements",
    );
    require(e.text.is_some() != e.tokens.is_some(), "evaluate needs either text or tokens");
    found
}
