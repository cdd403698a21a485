//! How far calibrations agree: sensitivities of tiles by rank, and what allocations make of them.

use std::collections::BTreeMap;
use std::path::Path;

use rayon::prelude::*;
use serde_json::Value;
use waterfill_calibrate::Sensitivities;
use waterfill_checkpoint::Checkpoint;
use waterfill_evaluate::rank_correlation;
use waterfill_report::{Cells, Table, all_tile_bits};

use crate::error::Result;
use crate::record::{Record, by_model, label};

/// A run's calibration compared with others of the same model.
#[derive(Debug, Clone)]
pub(crate) struct Agreement {
    /// The run, its name in figures, and its pipeline.
    pub run: String,
    pub label: String,
    pub model: String,
    /// All settings of the calibration but how many sequences it has.
    pub kind: String,
    /// Tokens of the calibration.
    pub tokens: u64,
    /// Rank correlation of tile sensitivities between the run's own folds, a mean over pairs and tiles.
    pub folds: Option<f64>,
    /// The same with the run of the same kind that has most tokens.
    pub with_most: Option<f64>,
    /// The same with the run of the first kind that has most tokens.
    pub with_first: Option<f64>,
    /// Bits a weight by which tiles of the middle point differ from those of the run of the same kind that has most tokens.
    pub bits_change: Option<f64>,
}

/// Fisher information of the tiles of every matrix, by fold.
type Tiles = BTreeMap<String, Vec<Vec<f64>>>;

fn tiles(record: &Record) -> Option<Tiles> {
    let store = Sensitivities::open(record.output.artifacts.get("calibrate")?).ok()?;
    let checkpoint = Checkpoint::open(record.output.points.first()?.checkpoint.as_ref()?).ok()?;
    let names: Vec<String> = store.names().map(String::from).collect();
    let read = |name: &String| {
        let shape = &checkpoint.tensor(name).ok()?.shape;
        let (rows, cols) = (shape[0], *shape.get(1)?);
        let folds = store.read(name, rows, cols).ok()?.tile_fisher;
        Some((name.clone(), folds.iter().map(|s| s.iter().copied().collect()).collect()))
    };
    names.par_iter().map(read).collect()
}

/// Sum over folds.
fn whole(folds: &[Vec<f64>]) -> Vec<f64> {
    let mut sum = vec![0.0; folds.first().map_or(0, Vec::len)];
    folds.iter().for_each(|s| sum.iter_mut().zip(s).for_each(|(sum, v)| *sum += v));
    sum
}

/// Mean over matrices, by their tiles.
fn mean(correlations: impl Iterator<Item = (f64, usize)>) -> Option<f64> {
    let (sum, count) = correlations.fold((0.0, 0), |(sum, count), (r, n)| (sum + r * n as f64, count + n));
    (count > 0).then(|| sum / count as f64)
}

fn correlation(a: &Tiles, b: &Tiles) -> Option<f64> {
    let pairs: Vec<_> = a.iter().filter_map(|(name, a)| Some((a, b.get(name)?))).collect();
    let one = |(a, b): &(&Vec<Vec<f64>>, &Vec<Vec<f64>>)| {
        let (a, b) = (whole(a), whole(b));
        Some((rank_correlation(&a, &b)?, a.len()))
    };
    mean(pairs.par_iter().filter_map(one).collect::<Vec<_>>().into_iter())
}

fn between_folds(tiles: &Tiles) -> Option<f64> {
    let pairs = tiles.values().flat_map(|folds| {
        let pairs = (0..folds.len()).flat_map(|i| (i + 1..folds.len()).map(move |j| (i, j)));
        pairs.filter_map(|(i, j)| Some((rank_correlation(&folds[i], &folds[j])?, folds[i].len())))
    });
    mean(pairs)
}

/// Tiles' bits of the middle point.
fn middle_bits(record: &Record) -> Option<Vec<f32>> {
    let points = &record.output.points;
    all_tile_bits(&points.get(points.len() / 2)?.allocation.as_ref()?.join("tiles.parquet")).ok()
}

fn tokens(record: &Record) -> u64 {
    let number = |key: &str| record.config.pointer(key).and_then(Value::as_u64).unwrap_or(0);
    number("/calibrate/sequences") * number("/calibrate/context")
}

/// The calibration's settings without the number of sequences, and folds, which change nothing but what is kept apart.
fn kind(record: &Record) -> String {
    let mut calibrate = record.config.get("calibrate").cloned().unwrap_or_default();
    if let Some(map) = calibrate.as_object_mut() {
        map.remove("sequences");
        map.remove("folds");
    }
    calibrate.to_string()
}

/// Agreement of the calibrations of a sweep's runs, of models with several; runs with the same calibration count once.
pub(crate) fn agreements(records: &[Record]) -> Vec<Agreement> {
    let mut found = Vec::new();
    for (model, runs) in by_model(records) {
        let mut own: Vec<&Record> = Vec::new();
        for r in runs {
            let calibration = |r: &Record| r.output.artifacts.get("calibrate").cloned();
            if !own.iter().any(|o| calibration(o) == calibration(r))
                && r.output.points.iter().any(|p| p.allocation.is_some())
            {
                own.push(r);
            }
        }
        if own.len() < 2 {
            continue;
        }
        let largest = |kind_of: &str| own.iter().filter(|r| kind(r) == kind_of).max_by_key(|r| tokens(r)).copied();
        let first = largest(&kind(own[0])).and_then(tiles);
        // Of the kind before: runs of a kind usually follow each other.
        let mut most: Option<(String, Option<Tiles>, Option<Vec<f32>>)> = None;
        for r in &own {
            let (own_kind, sensitivities) = (kind(r), tiles(r));
            if most.as_ref().is_none_or(|(k, ..)| *k != own_kind) {
                let largest = largest(&own_kind);
                most = Some((own_kind.clone(), largest.and_then(tiles), largest.and_then(middle_bits)));
            }
            let (most_tiles, most_bits) = most.as_ref().map_or((None, None), |m| (m.1.as_ref(), m.2.as_ref()));
            let with = |other: Option<&Tiles>| correlation(sensitivities.as_ref()?, other?);
            let bits_change = middle_bits(r).zip(most_bits).filter(|(a, b)| a.len() == b.len()).map(|(a, b)| {
                a.iter().zip(b).map(|(a, b)| f64::from((a - b).abs())).sum::<f64>() / (256 * a.len().max(1)) as f64
            });
            found.push(Agreement {
                run: r.id.clone(),
                label: label(r),
                model: model.to_string(),
                kind: own_kind,
                tokens: tokens(r),
                folds: sensitivities.as_ref().and_then(between_folds),
                with_most: with(most_tiles),
                with_first: with(first.as_ref()),
                bits_change,
            });
        }
    }
    found
}

/// The same as a tidy table.
pub(crate) fn table(all: &[Agreement]) -> Table {
    let text = |f: fn(&Agreement) -> &String| Cells::Text(all.iter().map(|a| f(a).clone()).collect());
    let number = |f: fn(&Agreement) -> Option<f64>| Cells::Number(all.iter().map(f).collect());
    let columns = vec![
        ("run", text(|a| &a.run)),
        ("label", text(|a| &a.label)),
        ("pipeline", text(|a| &a.model)),
        ("tokens", Cells::Whole(all.iter().map(|a| a.tokens).collect())),
        ("folds", number(|a| a.folds)),
        ("with_most", number(|a| a.with_most)),
        ("with_first", number(|a| a.with_first)),
        ("bits_change", number(|a| a.bits_change)),
    ];
    Table { name: "calibrations", columns }
}

/// Writes it into the folder of the other tables.
pub(crate) fn write(all: &[Agreement], dir: &Path) -> Result<()> {
    if all.is_empty() { Ok(()) } else { Ok(table(all).write(dir)?) }
}
