//! GGUF files with a type for every matrix.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use waterfill_allocate::TensorCandidates;
use waterfill_calibrate::Sensitivities;
use waterfill_checkpoint::writer::{self, Entry, write_checkpoint};
use waterfill_checkpoint::{Element, Prefix};
use waterfill_codec::{BitsPerWeight, Lambda, TILE};
use waterfill_export::{
    Candidate, Chosen, Data, ExportError, GgufFile, GgufTensor, GgufType, Name, Value, choose, head_bytes, metadata,
    permute_rows, rope_factors, write_gguf,
};
use waterfill_quadratic::{Curvature, QuadraticLoss};
use waterfill_store::{Artifact, Identity, Progress, Work, in_groups};

use super::{ExportOutput, ExportPoint, Summary, io, no_baseline};
use crate::error::Result;
use crate::estimate::coding_memory;
use crate::evaluation::Whose;
use crate::results::{read_json, write_json};
use crate::run::BaseOutput;
use crate::session::{Goal, Session};
use crate::stages::Calibration;

/// Goes up when points or files change.
const VERSION: u32 = 1;
const FILE: &str = "model.gguf";
/// Name of the tensor with what rotary frequencies are divided by.
const ROPE: &str = "rope_freqs.weight";

/// What of a matrix was tried.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Matrix {
    name: String,
    weights: u64,
    candidates: Vec<Candidate<GgufType>>,
}

/// Writes a GGUF file for every goal of the configuration, measured as its values are read back.
///
/// # Errors
/// The first failure of any stage; models that llama.cpp does not know.
pub fn export_gguf(session: &Session, out: Option<&Path>) -> Result<ExportOutput> {
    if let Some(out) = out {
        std::fs::create_dir_all(out).map_err(io(out))?;
    }
    // What cannot be exported is said before anything is computed.
    session.gguf_metadata(GgufType::Q8_0)?;
    let (points, matrices) = session.gguf_points()?;
    let asked = session.asked()?;
    let base = session.evaluate(Whose::Original, &asked)?;
    let original = base.read(None)?;
    let mut all = Vec::new();
    for goal in session.goals() {
        let chosen = session.gguf_choice(&matrices, goal)?;
        let artifact = session.gguf(&points, &matrices, &chosen)?;
        let text = session.evaluate(Whose::Tuned(&artifact, Prefix::All, &base), &asked)?.read(Some(&base))?.text;
        let summary: Summary = read_json(&artifact.path("summary.json"))?;
        let mut file = artifact.path(FILE);
        let mut recipe = artifact.path("recipe.txt");
        let bytes = file.metadata().map_err(io(&file))?.len();
        let bits = BitsPerWeight::of_bytes(bytes, session.model.checkpoint().weights());
        if let Some(out) = out {
            let name = format!("{}-{:.2}bpw", session.config.name, bits.0);
            for (path, ending) in [(&mut file, "gguf"), (&mut recipe, "recipe.txt")] {
                let to = out.join(format!("{name}.{ending}"));
                std::fs::copy(&*path, &to).map_err(io(&to))?;
                *path = to;
            }
        }
        all.push(ExportPoint::of(summary, bytes, bits, &text, (file, Some(recipe))));
    }
    all.sort_by_key(|p| p.bytes);
    Ok(ExportOutput { model: session.config.name.clone(), base: BaseOutput::of(&original), points: all })
}

/// Writes, for every goal, the types of all matrices for `llama-quantize --tensor-type-file` into `out`; returns the files.
///
/// # Errors
/// As [`export_gguf`].
pub fn write_recipes(session: &Session, out: &Path) -> Result<Vec<PathBuf>> {
    std::fs::create_dir_all(out).map_err(io(out))?;
    session.gguf_metadata(GgufType::Q8_0)?;
    let (_, matrices) = session.gguf_points()?;
    let weights: u64 = matrices.iter().map(|m| m.weights).sum();
    let mut files = Vec::new();
    for goal in session.goals() {
        let chosen = session.gguf_choice(&matrices, goal)?;
        let bits = BitsPerWeight::of_bytes(chosen.bytes, weights);
        let path = out.join(format!("{}-{:.2}bpw.recipe.txt", session.config.name, bits.0));
        std::fs::write(&path, session.gguf_recipe(&matrices, &chosen)?).map_err(io(&path))?;
        files.push(path);
    }
    Ok(files)
}

impl Session<'_> {
    fn gguf_metadata(&self, mostly: GgufType) -> Result<(&'static str, Vec<(String, Value)>)> {
        Ok(metadata(&self.source.dir, &self.config.name, &self.model.config, mostly)?)
    }

    fn gguf_name(&self, architecture: &str, tensor: &str) -> Result<Name> {
        let reason = || format!("tensor {tensor} has no place in a GGUF file of {architecture}");
        let found = Name::of(tensor, architecture, &self.model.config);
        Ok(found.ok_or_else(|| ExportError::Target { target: "gguf", reason: reason() })?)
    }

    /// Size and loss of every matrix in every type that it can have.
    fn gguf_points(&self) -> Result<(Artifact, Vec<Matrix>)> {
        let calibration = self.calibrate()?;
        let allocated = self.points(&calibration.fitted)?;
        let identity = self.gguf_points_identity(&calibration, &allocated);
        let artifact = self.stage("gguf-points", &identity, |work| {
            let index: Vec<(String, String)> = read_json(&allocated.path("index.json"))?;
            let sensitivities = Sensitivities::open(&calibration.fitted.dir)?;
            let predicting = match &calibration.held_out {
                Some(artifact) => Sensitivities::open(&artifact.dir)?,
                None => sensitivities,
            };
            self.console.start("gguf-points", index.len() as u64);
            let weights = self.model.weights();
            let sizes: Vec<u64> = weights.iter().map(|(_, [rows, cols])| (32 * rows * cols) as u64).collect();
            in_groups(&sizes, coding_memory(), |i| -> Result<()> {
                let (name, shape) = &weights[i];
                work.file(&format!("{i:04}.json"), |path| -> Result<()> {
                    let file = index.iter().find(|(n, _)| n == name).map(|(_, file)| allocated.path(file));
                    let loss_weights = TensorCandidates::read(&file.unwrap_or_default())?.loss_weights;
                    let values = self.model.checkpoint().read_f32(name, shape)?;
                    let (input, output) = (predicting.hessian(name)?, predicting.gradient_covariance(name)?);
                    let curvature = Curvature { hessian: input.as_ref(), gradient_covariance: output.as_ref() };
                    let model = QuadraticLoss::new(&loss_weights, TILE, curvature);
                    let mut candidates = Vec::new();
                    for kind in GgufType::MATRICES.into_iter().filter(|t| shape[1].is_multiple_of(t.block())) {
                        let mut errors = kind.quantize(name, &values, &loss_weights.cols)?.values;
                        errors.iter_mut().zip(&values).for_each(|(e, w)| *e -= w);
                        let bytes = kind.bytes(values.len()) as u64;
                        candidates.push(Candidate { kind, bytes, loss: model.of(errors) });
                    }
                    write_json(path, &Matrix { name: name.clone(), weights: values.len() as u64, candidates })
                })?;
                self.console.advance(1);
                Ok(())
            })?;
            (0..weights.len()).try_for_each(|i| work.adopt(&format!("{i:04}.json")))?;
            Ok(())
        })?;
        let count = self.model.weights().len();
        let matrices = (0..count).map(|i| read_json(&artifact.path(&format!("{i:04}.json")))).collect::<Result<_>>()?;
        Ok((artifact, matrices))
    }

    fn gguf_points_identity(&self, calibration: &Calibration, points: &Artifact) -> Identity {
        let inputs = [("calibrate", calibration.fitted.digest()), ("points", points.digest())];
        let mut identity = self.identity("gguf-points", VERSION, inputs, serde_json::Value::Null);
        identity.inputs.extend(calibration.held_out.iter().map(|a| ("held-out".to_string(), a.digest())));
        identity
    }

    fn gguf_choice(&self, matrices: &[Matrix], goal: Goal) -> Result<Chosen> {
        let candidates: Vec<Vec<Candidate<GgufType>>> = matrices.iter().map(|m| m.candidates.clone()).collect();
        let goal = match goal {
            Goal::Lambda(lambda) => Err(Lambda(lambda)),
            Goal::Bytes(bytes) => {
                let (architecture, metadata) = self.gguf_metadata(GgufType::Q8_0)?;
                let mut around = 0;
                let mut names = Vec::new();
                for info in self.model.checkpoint().tensors() {
                    names.push(self.gguf_name(architecture, &info.name)?.gguf.len());
                    around += if matrices.iter().any(|m| m.name == info.name) { 16 } else { 4 * info.weights() + 16 };
                }
                around += head_bytes(&metadata, names.into_iter());
                let least: u64 = candidates.iter().map(|c| c.iter().map(|c| c.bytes).min().unwrap_or(0)).sum();
                if around + least > bytes {
                    let reason = format!("{bytes} bytes are wanted, the smallest file takes {}", around + least);
                    return Err(ExportError::Target { target: "gguf", reason }.into());
                }
                Ok(bytes - around)
            }
            Goal::Width(_) => return Err(no_baseline("gguf")),
        };
        Ok(choose(&candidates, goal))
    }

    fn gguf_recipe(&self, matrices: &[Matrix], chosen: &Chosen) -> Result<String> {
        let (architecture, _) = self.gguf_metadata(GgufType::Q8_0)?;
        let mut text = String::new();
        for (matrix, &n) in matrices.iter().zip(&chosen.candidates) {
            let name = self.gguf_name(architecture, &matrix.name)?.gguf.replace('.', "\\.");
            text += &format!("^{name}$={}\n", matrix.candidates[n].kind.name());
        }
        Ok(text)
    }

    /// The file with the chosen types, and in `checkpoint/` what a runtime makes of it.
    fn gguf(&self, points: &Artifact, matrices: &[Matrix], chosen: &Chosen) -> Result<Artifact> {
        let kinds: BTreeMap<&str, GgufType> =
            matrices.iter().zip(&chosen.candidates).map(|(m, &n)| (m.name.as_str(), m.candidates[n].kind)).collect();
        let settled = serde_json::json!({"types": kinds, "name": self.config.name});
        let identity = self.identity("gguf", VERSION, [("points", points.digest())], settled);
        let predicted_loss = matrices.iter().zip(&chosen.candidates).map(|(m, &n)| m.candidates[n].loss).sum();
        let mut types: BTreeMap<String, u64> = BTreeMap::new();
        for matrix in matrices {
            *types.entry(kinds[matrix.name.as_str()].name().to_string()).or_default() += matrix.weights;
        }
        let mostly = GgufType::MATRICES.into_iter().max_by_key(|t| types.get(t.name()).copied().unwrap_or(0));
        self.stage("gguf", &identity, |work| {
            self.write_model(work, &kinds, mostly.unwrap_or(GgufType::Q8_0))?;
            let recipe = work.path("recipe.txt");
            std::fs::write(&recipe, self.gguf_recipe(matrices, chosen)?).map_err(io(&recipe))?;
            self.write_decoded(work)?;
            write_json(&work.path("summary.json"), &Summary { lambda: chosen.lambda.0, predicted_loss, types })
        })
    }

    fn write_model(&self, work: &Work, kinds: &BTreeMap<&str, GgufType>, mostly: GgufType) -> Result<()> {
        let (architecture, metadata) = self.gguf_metadata(mostly)?;
        let checkpoint = self.model.checkpoint();
        let calibration = self.calibrate()?;
        let allocated = self.points(&calibration.fitted)?;
        let index: BTreeMap<String, String> =
            read_json::<Vec<(String, String)>>(&allocated.path("index.json"))?.into_iter().collect();
        let infos: Vec<_> = checkpoint.tensors().collect();
        self.console.start("gguf", infos.len() as u64);
        let sizes: Vec<u64> = infos.iter().map(|info| 24 * info.weights()).collect();
        let mut tensors = in_groups(&sizes, coding_memory(), |i| -> Result<GgufTensor> {
            let info = infos[i];
            let name = self.gguf_name(architecture, &info.name)?;
            let kind = kinds.get(info.name.as_str()).copied().unwrap_or(GgufType::F32);
            let blob = work.file(&format!("tensor-{i}"), |path| -> Result<()> {
                let values = checkpoint.read_f32(&info.name, &info.shape)?;
                let width = if info.shape.len() > 1 { info.shape[1] } else { 1 };
                let values = permute_rows(&values, width, name.permuted, false);
                let bytes = match kind {
                    GgufType::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
                    _ => {
                        let file = index.get(&info.name).map(|file| allocated.path(file)).unwrap_or_default();
                        let loss_weights = TensorCandidates::read(&file)?.loss_weights;
                        kind.quantize(&info.name, &values, &loss_weights.cols)?.bytes
                    }
                };
                std::fs::write(path, bytes).map_err(io(path))
            })?;
            self.console.advance(1);
            Ok(GgufTensor { name: name.gguf, shape: info.shape.clone(), kind, data: Data::File(blob) })
        })?;
        if let Some(factors) = rope_factors(&self.model.config) {
            let data = Data::Bytes(factors.iter().flat_map(|v| v.to_le_bytes()).collect());
            tensors.push(GgufTensor { name: ROPE.into(), shape: vec![factors.len()], kind: GgufType::F32, data });
        }
        Ok(write_gguf(&work.path(FILE), &metadata, &tensors)?)
    }

    /// Reads the file back as a runtime does, into a checkpoint that can be evaluated.
    fn write_decoded(&self, work: &Work) -> Result<()> {
        let (architecture, _) = self.gguf_metadata(GgufType::Q8_0)?;
        let file = GgufFile::open(&work.path(FILE))?;
        let dense = work.path("checkpoint");
        std::fs::create_dir(&dense).map_err(io(&dense))?;
        let blobs = tempfile::tempdir().map_err(io(&dense))?;
        let mut entries = Vec::new();
        for (i, info) in self.model.checkpoint().tensors().enumerate() {
            let name = self.gguf_name(architecture, &info.name)?;
            let width = if info.shape.len() > 1 { info.shape[1] } else { 1 };
            let values = permute_rows(&file.values(&name.gguf)?, width, name.permuted, true);
            let blob = blobs.path().join(i.to_string());
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            std::fs::write(&blob, &bytes).map_err(io(&blob))?;
            entries.push(Entry {
                name: info.name.clone(),
                shape: info.shape.clone(),
                plain: Some(Element::F32),
                data: writer::Data::File(blob),
                bytes: bytes.len() as u64,
            });
        }
        Ok(write_checkpoint(&self.source.dir, &dense, &entries, false)?)
    }
}
