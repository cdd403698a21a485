//! The normative level tables are what the specification's formula gives.

use std::fmt::Write;

/// Frequencies of |level| = 0..=m and of the escape for a Gaussian of spread `sigma`.
fn frequencies(sigma: f64) -> Vec<u16> {
    const ONE: i64 = 1 << 14;
    let most = ((5.0 * sigma).ceil() as i64 + 1).min(31);
    let cdf = |x: f64| 0.5 * libm::erfc(-x / sigma / std::f64::consts::SQRT_2);
    let mass = |level: i64| cdf(level as f64 + 0.5) - cdf(level as f64 - 0.5);
    let mut half: Vec<i64> = (0..=most).map(|l| ((mass(l) * ONE as f64).round() as i64).max(1)).collect();
    let escape = ((2.0 * cdf(-(most as f64) - 0.5) * ONE as f64).round() as i64).max(1);
    // Zero takes what rounding left, so that the sum is exact.
    half[0] = ONE - escape - 2 * half[1..].iter().sum::<i64>();
    half.push(escape);
    half.into_iter().map(|f| f as u16).collect()
}

#[test]
fn level_tables_equal_the_formula() {
    let mut expected = String::from(
        "//! Normative level frequencies; `tests/tables.rs` holds the formula. Any change is a change of\n\
         //! the bitstream.\n\n\
         /// Number of tables: spreads 2^((i - 12)/4), i = 0..25.\npub const TABLES: usize = 25;\n\n\
         /// Frequencies out of 2^14 of |level| = 0..=m (each sign alone), then of the escape.\n\
         #[rustfmt::skip]\npub const FREQUENCIES: [&[u16]; TABLES] = [\n",
    );
    for class in 0..25 {
        let row: Vec<String> = frequencies((f64::from(class - 12) / 4.0).exp2()).iter().map(u16::to_string).collect();
        writeln!(expected, "    &[{}],", row.join(", ")).unwrap();
    }
    expected.push_str("];\n");
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/tables.rs");
    if std::env::var_os("WATERFILL_WRITE_TABLES").is_some() {
        std::fs::write(path, &expected).unwrap();
    }
    assert_eq!(std::fs::read_to_string(path).unwrap(), expected, "the formula and src/tables.rs differ");
}
