//! Sensitivities on disk: one safetensors file a block with tensors named `<weight>|<statistic>`, and next to it
//! `moments-<file>` with Hessians and gradient covariances, which are far larger and read on their own.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use ndarray::{Array1, Array2};
use safetensors::tensor::{Dtype, TensorView};
use waterfill_checkpoint::SafetensorsFile;
use waterfill_checkpoint::writer::write_tensors;
use waterfill_model::{ModelError, TensorRole};
use waterfill_quadratic::{GradientCovariance, Hessian, SymmetricBlocks};
use waterfill_store::Work;

use crate::error::{CalibrateError, Result};
use crate::hessian::HessianSums;
use crate::settings::Shrinkage;
use crate::statistics::Sums;

const INDEX: &str = "index.json";
/// Names of the diagonals of Hessian and gradient covariance, and suffixes of their other parts.
const INPUT: &str = "second_moment";
const OUTPUT: &str = "output_moment";
const CORRELATIONS: &str = "_correlations";
const LOOKUP: &str = "lookup_row_fisher";
const SIDE: &str = "_side";
/// Added to the damping that is chosen for gradient covariances: gradients that a coded layer gets have passed through coded
/// layers behind it. Measured (`docs/decisions/shrinkage.md`): a tenth takes 10 to 20 % of the KL of two small models and
/// costs two others nothing; a tenth on Hessians costs 5 % on the largest of them.
const OF_OUTPUTS: f64 = 0.1;
/// Suffixes of the chosen damping, and of the tokens that count.
const DAMPING: &str = "_damping";
const TOKENS: &str = "_effective_tokens";
/// Prefix of the files with Hessians.
const MOMENTS: &str = "moments-";

/// Sensitivity of one weight matrix; everything is a mean over tokens.
#[derive(Debug, Clone)]
pub struct Sensitivity {
    /// Fisher information summed over each 16x16 tile, for every calibration fold.
    pub tile_fisher: Vec<Array2<f64>>,
    /// Fisher information summed over each row.
    pub row_fisher: Array1<f64>,
    /// Fisher information summed over each column.
    pub col_fisher: Array1<f64>,
    /// E[g_i^2] for every output row.
    pub row_g2: Array1<f64>,
    /// E[x_j^2] for every input column.
    pub col_x2: Array1<f64>,
    /// Of an embedding, the part of `row_fisher` that comes from looking rows up.
    pub lookup_row_fisher: Option<Array1<f64>>,
}

impl Sensitivity {
    /// Share of an embedding's Fisher information that comes from looking rows up; 0 of other weights.
    pub fn lookup_share(&self) -> f64 {
        let lookup = self.lookup_row_fisher.as_ref().map_or(0.0, |l| l.sum());
        lookup / self.row_fisher.sum().max(f64::MIN_POSITIVE)
    }
}

/// A sensitivity artifact.
#[derive(Debug, Clone)]
pub struct Sensitivities {
    dir: PathBuf,
    /// File of every weight.
    files: BTreeMap<String, String>,
    /// Damping of all matrices; none for the chosen ones.
    damping: Option<f64>,
}

fn failed(path: &Path) -> impl Fn(String) -> CalibrateError + '_ {
    move |reason| CalibrateError::File { path: path.to_path_buf(), reason }
}

impl Sensitivities {
    /// Opens the directory that [`crate::calibrate`] filled.
    ///
    /// # Errors
    /// A missing or malformed index.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join(INDEX);
        let text = std::fs::read_to_string(&path).map_err(|e| failed(&path)(e.to_string()))?;
        let files = serde_json::from_str(&text).map_err(|e| failed(&path)(e.to_string()))?;
        Ok(Self { dir: dir.to_path_buf(), files, damping: None })
    }

    /// With one damping for all matrices, in units of each column's own diagonal, where one is given; the one that was
    /// chosen for each from the calibration else.
    pub fn damped(self, damping: Option<f64>) -> Self {
        Self { damping, ..self }
    }

    /// Names of all weights.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }

    /// Sensitivity of a weight of `rows` x `cols`.
    ///
    /// # Errors
    /// A weight that was not calibrated, or statistics of another shape.
    pub fn read(&self, name: &str, rows: usize, cols: usize) -> Result<Sensitivity> {
        let path = self.path(name, "")?;
        let file = SafetensorsFile::open(&path).map_err(ModelError::from)?;
        let wrong = failed(&path);
        let get = |statistic: &str| values(&file, &format!("{name}|{statistic}"));
        let vector = |statistic: &str, length: usize| -> Result<Array1<f64>> {
            let (_, values) = get(statistic)?;
            let found = values.len();
            let reason = || wrong(format!("{name}|{statistic} has {found} entries, expected {length}"));
            (found == length).then(|| Array1::from(values)).ok_or_else(reason)
        };
        let (shape, tiles) = get("tile_fisher")?;
        let (down, across) = (rows.div_ceil(16), cols.div_ceil(16));
        if shape.len() != 3 || shape[1..] != [down, across] || shape[0] == 0 {
            return Err(wrong(format!("{name}|tile_fisher has shape {shape:?}, expected [_, {down}, {across}]")));
        }
        let tile_fisher = tiles
            .chunks_exact(down * across)
            .map(|t| Array2::from_shape_vec((down, across), t.to_vec()).expect("shape was checked"))
            .collect();
        Ok(Sensitivity {
            tile_fisher,
            row_fisher: vector("row_fisher", rows)?,
            col_fisher: vector("col_fisher", cols)?,
            row_g2: vector("row_g2", rows)?,
            col_x2: vector("col_x2", cols)?,
            lookup_row_fisher: match file.contains(&format!("{name}|{LOOKUP}")) {
                true => Some(vector(LOOKUP, rows)?),
                false => None,
            },
        })
    }

    /// Hessian `[in, in]` of a linear layer's input, its correlations shrunk by the damping; `None` when only the diagonal was kept.
    ///
    /// # Errors
    /// As [`Sensitivities::read`].
    pub fn hessian(&self, name: &str) -> Result<Option<Hessian>> {
        // Layers that read the same input share its plain Hessian, stored with the first.
        let first = TensorRole::parse(name).and_then(TensorRole::first_of_input);
        match (self.matrix(name, name, INPUT)?, first) {
            (None, Some(first)) => self.matrix(name, &first.name(), INPUT),
            (found, _) => Ok(found),
        }
    }

    /// Covariance `[out, out]` of a linear layer's output gradient, tokens weighted by the energy of the input,
    /// its correlations shrunk by the damping; `None`
    /// where none was kept.
    ///
    /// # Errors
    /// As [`Sensitivities::read`].
    pub fn gradient_covariance(&self, name: &str) -> Result<Option<GradientCovariance>> {
        self.matrix(name, name, OUTPUT)
    }

    /// How much the Hessian of each weight that holds one is believed.
    ///
    /// # Errors
    /// As [`Sensitivities::read`].
    pub fn hessian_shrinkage(&self) -> Result<BTreeMap<String, Shrinkage>> {
        self.shrinkage(INPUT)
    }

    /// How much the output-gradient covariance of each weight that has one is believed.
    ///
    /// # Errors
    /// As [`Sensitivities::read`].
    pub fn gradient_shrinkage(&self) -> Result<BTreeMap<String, Shrinkage>> {
        self.shrinkage(OUTPUT)
    }

    fn shrinkage(&self, part: &str) -> Result<BTreeMap<String, Shrinkage>> {
        let mut found = BTreeMap::new();
        for name in self.names() {
            let path = self.path(name, MOMENTS)?;
            if !path.exists() {
                continue;
            }
            let file = SafetensorsFile::open(&path).map_err(ModelError::from)?;
            if !file.contains(&format!("{name}|{part}{DAMPING}")) {
                continue;
            }
            let side = scalar(&file, &format!("{name}|{part}{SIDE}"))?;
            let damping = self.damping.map_or_else(|| scalar(&file, &format!("{name}|{part}{DAMPING}")), Ok)?;
            let effective_tokens_per_column = scalar(&file, &format!("{name}|{part}{TOKENS}"))? / side.max(1.0);
            found.insert(name.to_string(), Shrinkage { damping, effective_tokens_per_column });
        }
        Ok(found)
    }

    /// The matrix `part` that is stored under `holder` in the file of `name`.
    fn matrix(&self, name: &str, holder: &str, part: &str) -> Result<Option<SymmetricBlocks>> {
        let path = self.path(name, MOMENTS)?;
        if !path.exists() {
            return Ok(None);
        }
        let file = SafetensorsFile::open(&path).map_err(ModelError::from)?;
        let correlations = format!("{holder}|{part}{CORRELATIONS}");
        if !file.contains(&correlations) {
            return Ok(None);
        }
        let (_, diagonal) = values(&file, &format!("{holder}|{part}"))?;
        let side = scalar(&file, &format!("{holder}|{part}{SIDE}"))? as usize;
        let (_, bytes) = file.read(&correlations, Dtype::I16).map_err(ModelError::from)?;
        let stored = bytes.chunks_exact(2).map(|b| i16::from_le_bytes([b[0], b[1]])).collect();
        let diagonal = diagonal.into_iter().map(|v| v as f32).collect();
        let matrix = SymmetricBlocks::new(diagonal, side, stored);
        let damping = match self.damping {
            Some(damping) => damping,
            None => scalar(&file, &format!("{holder}|{part}{DAMPING}"))?,
        };
        let matrix = matrix.map(|m| m.shrunk(damping));
        matrix.map(Some).ok_or_else(|| failed(&path)(format!("{holder}: correlations do not fit the diagonal")))
    }

    /// A weight's file of one kind.
    fn path(&self, name: &str, prefix: &str) -> Result<PathBuf> {
        let index = self.dir.join(INDEX);
        let file = self.files.get(name).ok_or_else(|| failed(&index)(format!("has no weight {name}")))?;
        Ok(self.dir.join(format!("{prefix}{file}")))
    }
}

/// Shape and values of a statistic; Hessians of a block take hundreds of megabytes, so that tensors are
/// read one at a time.
fn values(file: &SafetensorsFile, name: &str) -> Result<(Vec<usize>, Vec<f64>)> {
    let (shape, values) = file.read_f32(name).map_err(ModelError::from)?;
    Ok((shape.to_vec(), values.into_iter().map(f64::from).collect()))
}

/// The one value of a statistic.
fn scalar(file: &SafetensorsFile, name: &str) -> Result<f64> {
    Ok(values(file, name)?.1.first().copied().unwrap_or(0.0))
}

/// Accumulated sums of one weight, ready to be written.
pub(crate) struct Entry<'a> {
    pub name: &'a str,
    /// One for each fold.
    pub folds: &'a [Sums],
    /// Tokens of each fold.
    pub tokens: &'a [f64],
    /// The input Hessian, where this weight holds one.
    pub hessian: Option<&'a HessianSums>,
    /// The output-gradient covariance, where this weight holds one.
    pub gradient_covariance: Option<&'a HessianSums>,
    /// Side of the Hessian's diagonal blocks.
    pub side: usize,
    /// Of an embedding, the rows' Fisher information as a lookup.
    pub lookup: Option<&'a Array1<f64>>,
}

/// Name, element type, shape and bytes of a tensor.
type Named = (String, Dtype, Vec<usize>, Vec<u8>);

fn save(path: &Path, tensors: &[Named]) -> Result<()> {
    let views: Vec<(&str, TensorView)> = tensors
        .iter()
        .map(|(n, t, s, b)| (n.as_str(), TensorView::new(*t, s.clone(), b).expect("shape fits the bytes")))
        .collect();
    Ok(write_tensors(path, views, None)?)
}

/// Collects files and writes the index.
pub(crate) struct Writer<'a> {
    pub work: &'a Work,
    /// File of every weight.
    pub files: BTreeMap<String, String>,
}

impl Writer<'_> {
    /// Writes the means of `entries` to `file`.
    pub fn write(&mut self, file: &str, entries: &[Entry]) -> Result<()> {
        let mut tensors: Vec<Named> = Vec::new();
        let mut moments: Vec<Named> = Vec::new();
        let bytes = |values: &mut dyn Iterator<Item = f64>| -> Vec<u8> {
            values.flat_map(|v| (v as f32).to_le_bytes()).collect()
        };
        for entry in entries {
            entry.folds.iter().try_for_each(|s| s.check(entry.name))?;
            let (down, across) = entry.folds[0].tile_fisher.dim();
            let tiles =
                entry.folds.iter().zip(entry.tokens).flat_map(|(s, &n)| s.tile_fisher.iter().map(move |v| v / n));
            let name = |statistic: &str| format!("{}|{statistic}", entry.name);
            tensors.push((
                name("tile_fisher"),
                Dtype::F32,
                vec![entry.folds.len(), down, across],
                bytes(&mut tiles.into_iter()),
            ));
            let mut total = entry.folds[0].clone();
            entry.folds[1..].iter().for_each(|s| total.add(s));
            let tokens: f64 = entry.tokens.iter().sum();
            for (statistic, values) in [
                ("row_fisher", &total.row_fisher),
                ("col_fisher", &total.col_fisher),
                ("row_g2", &total.row_g2),
                ("col_x2", &total.col_x2),
            ] {
                let means = bytes(&mut values.iter().map(|v| v / tokens));
                tensors.push((name(statistic), Dtype::F32, vec![values.len()], means));
            }
            if let Some(lookup) = entry.lookup {
                let means = bytes(&mut lookup.iter().map(|v| v / tokens));
                tensors.push((name(LOOKUP), Dtype::F32, vec![lookup.len()], means));
            }
            for (kept, part, side, least) in
                [(entry.hessian, INPUT, entry.side, 0.0), (entry.gradient_covariance, OUTPUT, usize::MAX, OF_OUTPUTS)]
            {
                let Some(kept) = kept else { continue };
                let (diagonal, correlations) = kept.to_stored();
                if !kept.is_finite() || diagonal.iter().any(|d| !d.is_finite()) {
                    return Err(CalibrateError::NotFinite { weight: entry.name.into(), statistic: "the Hessian" });
                }
                let (width, count) = (diagonal.len(), correlations.len());
                let f32s = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
                let correlations = correlations.iter().flat_map(|v| v.to_le_bytes()).collect();
                let name = |of: &str| format!("{}|{part}{of}", entry.name);
                moments.push((name(""), Dtype::F32, vec![width], f32s(&diagonal)));
                moments.push((name(DAMPING), Dtype::F32, vec![1], f32s(&[(kept.damping() + least) as f32])));
                moments.push((name(TOKENS), Dtype::F32, vec![1], f32s(&[kept.effective_tokens() as f32])));
                moments.push((name(SIDE), Dtype::F32, vec![1], f32s(&[side.min(width) as f32])));
                moments.push((name(CORRELATIONS), Dtype::I16, vec![count], correlations));
            }
            self.files.insert(entry.name.to_string(), file.to_string());
        }
        if !moments.is_empty() {
            self.work.file(&format!("{MOMENTS}{file}"), |path| save(path, &moments))?;
        }
        self.work.file(file, |path| save(path, &tensors))?;
        Ok(())
    }

    /// True when an earlier process has written `file`, which holds `names`.
    pub fn has(&mut self, file: &str, names: &[String]) -> bool {
        let written = self.work.has_file(file);
        if written {
            self.files.extend(names.iter().map(|n| (n.clone(), file.to_string())));
        }
        written
    }

    /// Puts all files into the artifact and writes the index.
    pub fn finish(self) -> Result<()> {
        let files: BTreeSet<&String> = self.files.values().collect();
        for file in files {
            self.work.adopt(file)?;
            let moments = format!("{MOMENTS}{file}");
            if self.work.has_file(&moments) {
                self.work.adopt(&moments)?;
            }
        }
        let path = self.work.path(INDEX);
        let text = serde_json::to_string_pretty(&self.files).expect("strings");
        std::fs::write(&path, text).map_err(|e| failed(&path)(e.to_string()))
    }
}
