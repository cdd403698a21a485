//! The normative tables are what the specification's formulas give.

use std::fmt::Write;

const ONE: i64 = 1 << 12;

/// Mass of a standard Gaussian below x.
fn cdf(x: f64) -> f64 {
    0.5 * libm::erfc(-x / std::f64::consts::SQRT_2)
}

/// Rounds masses to at least one part in 4096 each; the largest takes what rounding left.
fn frequencies(masses: &[f64]) -> Vec<u16> {
    let mut rounded: Vec<i64> = masses.iter().map(|m| ((m * ONE as f64).round() as i64).max(1)).collect();
    let rest = ONE - rounded.iter().sum::<i64>();
    let largest = (0..masses.len()).max_by(|&a, &b| masses[a].total_cmp(&masses[b]).then(b.cmp(&a))).unwrap();
    rounded[largest] += rest;
    rounded.into_iter().map(|f| u16::try_from(f).unwrap()).collect()
}

/// |level| = 0..=m (each sign alone), then the escape, for a spread of `sigma` levels.
fn levels(sigma: f64) -> Vec<u16> {
    let most = ((4.0 * sigma).ceil() as i64 + 1).min(40);
    let mass = |level: i64| cdf((level as f64 + 0.5) / sigma) - cdf((level as f64 - 0.5) / sigma);
    let mut half: Vec<f64> = (0..=most).map(mass).collect();
    half.push(2.0 * cdf(-(most as f64 + 0.5) / sigma));
    let mut rounded: Vec<i64> = half.iter().map(|m| ((m * ONE as f64).round() as i64).max(1)).collect();
    // Zero takes what rounding left, so that the sum is exact.
    rounded[0] = ONE - rounded[most as usize + 1] - 2 * rounded[1..=most as usize].iter().sum::<i64>();
    rounded.into_iter().map(|f| u16::try_from(f).unwrap()).collect()
}

/// Escape, zero, then heads of eight to an octave from 2^-8 to 2^3.625, for a spread of 2^(quarter/4).
fn heads(quarter: i32) -> Vec<u16> {
    let sigma = (f64::from(quarter) / 4.0).exp2();
    let edge = |n: i64| (n.div_euclid(8) as f64).exp2() * (1.0 + n.rem_euclid(8) as f64 / 8.0) / sigma;
    let mass = |n: i64| 2.0 * (cdf(edge(n + 1)) - cdf(edge(n)));
    let mut masses = vec![1.0 - (-64..29).map(mass).sum::<f64>(), 0.0];
    masses.extend((-64..29).map(mass));
    frequencies(&masses)
}

/// Indices 0..=m of odd levels (each as likely as that of the level's negative), then the escape, for a
/// spread of `sigma` indices.
fn odd_levels(sigma: f64) -> Vec<u16> {
    let most = ((4.0 * sigma).ceil() as i64).min(40);
    let mass = |index: i64| cdf((index + 1) as f64 / sigma) - cdf(index as f64 / sigma);
    let mut half: Vec<f64> = (0..=most).map(mass).collect();
    half.push(2.0 * cdf(-(most + 1) as f64 / sigma));
    let mut rounded: Vec<i64> = half.iter().map(|m| ((m * ONE as f64).round() as i64).max(1)).collect();
    // The escape makes the rest even, the first takes what rounding left.
    rounded[most as usize + 1] += rounded[most as usize + 1] % 2;
    rounded[0] = ONE / 2 - rounded[most as usize + 1] / 2 - rounded[1..=most as usize].iter().sum::<i64>();
    rounded.into_iter().map(|f| u16::try_from(f).unwrap()).collect()
}

#[test]
fn tables_equal_their_formulas() {
    let mut expected = String::from(
        "//! Normative frequencies; `tests/tables.rs` holds the formulas. Any change is a change of the\n\
         //! bitstream.\n\n\
         /// Number of level tables: spreads 2^((i - 12)/4), i = 0..25.\npub const LEVEL_TABLES: usize = 25;\n\n\
         /// Frequencies out of 2^12 of |level| = 0..=m (each sign alone), then of the escape.\n\
         #[rustfmt::skip]\npub const LEVELS: [&[u16]; LEVEL_TABLES] = [\n",
    );
    let rows = |expected: &mut String, rows: Vec<Vec<u16>>| {
        for row in rows {
            let row: Vec<String> = row.iter().map(u16::to_string).collect();
            writeln!(expected, "    &[{}],", row.join(", ")).unwrap();
        }
        expected.push_str("];\n");
    };
    rows(&mut expected, (0..25).map(|class| levels((f64::from(class - 12) / 4.0).exp2())).collect());
    expected.push_str(
        "\n/// Frequencies out of 2^12 of the indices 0..=m of odd levels (as of -1, -2, ...), then of the escape.\n\
         #[rustfmt::skip]\npub const ODD_LEVELS: [&[u16]; LEVEL_TABLES] = [\n",
    );
    rows(&mut expected, (0..25).map(|class| odd_levels((f64::from(class - 12) / 4.0).exp2())).collect());
    expected.push_str(
        "\n/// Frequencies out of 2^12 of the escape, of zero, and of heads from 64 below the spread's octave to 28\n\
         /// above it, for spreads 2^(i/4) of an octave.\n\
         #[rustfmt::skip]\npub const HEADS: [&[u16]; 4] = [\n",
    );
    rows(&mut expected, (0..4).map(heads).collect());
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/entropy/table_data.rs");
    if std::env::var_os("WATERFILL_WRITE_TABLES").is_some() {
        std::fs::write(path, &expected).unwrap();
    }
    assert_eq!(std::fs::read_to_string(path).unwrap(), expected, "the formula and src/entropy/table_data.rs differ");
}
