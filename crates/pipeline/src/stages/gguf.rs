//! GGUF files: size and loss of every matrix in every type, and the file with the chosen types.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use waterfill_allocate::TensorCandidates;
use waterfill_calibrate::Sensitivities;
use waterfill_checkpoint::Element;
use waterfill_checkpoint::writer::{self, Entry, write_checkpoint};
use waterfill_codec::TILE;
use waterfill_export::{
    Candidate, Chosen, Data, ExportError, GgufFile, GgufTensor, GgufType, Name, Value, metadata, permute_rows,
    rope_factors, write_gguf,
};
use waterfill_quadratic::{Curvature, QuadraticLoss};
use waterfill_store::{Identity, Progress, Work, in_groups};

use super::measure::candidate_files;
use crate::context::Context;
use crate::error::{PipelineError, Result};
use crate::estimate::{PROGRAM, coding_memory};
use crate::results::{ExportSummary, write_json};
use crate::stage::{ArtifactRef, Estimate, Stage};

/// Version of both artifacts; raised when candidates or files change.
const VERSION: u32 = 2;
/// The file in its artifact.
pub(crate) const FILE: &str = "model.gguf";
/// The types of all matrices in the same artifact, as `llama-quantize --tensor-type-file` reads them.
pub(crate) const RECIPE: &str = "recipe.txt";
/// Name of the tensor with the divisors of the rotary frequencies.
const ROPE: &str = "rope_freqs.weight";

/// Size and loss of one matrix in every type that it can have.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct GgufMatrix {
    pub name: String,
    pub weights: u64,
    pub candidates: Vec<Candidate<GgufType>>,
}

/// Architecture and metadata of the model's file; `mostly` is the type of most weights.
///
/// # Errors
/// Models that llama.cpp does not know.
pub(crate) fn gguf_metadata(context: &Context, mostly: GgufType) -> Result<(&'static str, Vec<(String, Value)>)> {
    Ok(metadata(&context.source.dir, &context.config.name, &context.model.config, mostly)?)
}

/// Name of a tensor in the file.
pub(crate) fn gguf_name(context: &Context, architecture: &str, tensor: &str) -> Result<Name> {
    let reason = || format!("tensor {tensor} has no place in a GGUF file of {architecture}");
    let found = Name::of(tensor, architecture, &context.model.config);
    Ok(found.ok_or_else(|| ExportError::Target { target: "gguf", reason: reason() })?)
}

/// The chosen type of every matrix as `llama-quantize --tensor-type-file` reads it.
pub(crate) fn gguf_recipe(context: &Context, matrices: &[GgufMatrix], chosen: &Chosen) -> Result<String> {
    let (architecture, _) = gguf_metadata(context, GgufType::Q8_0)?;
    let mut text = String::new();
    for (matrix, &n) in matrices.iter().zip(&chosen.candidates) {
        let name = gguf_name(context, architecture, &matrix.name)?.gguf.replace('.', "\\.");
        text += &format!("^{name}$={}\n", matrix.candidates[n].kind.name());
    }
    Ok(text)
}

fn unit(n: usize) -> String {
    format!("{n:04}.json")
}

/// Size and loss of every matrix in every GGUF type.
pub(crate) struct MeasureGguf<'a> {
    pub calibration: &'a ArtifactRef,
    /// Candidates, whose loss weights count errors.
    pub measured: &'a ArtifactRef,
}

impl MeasureGguf<'_> {
    /// The matrices of a finished artifact.
    pub fn read(artifact: &ArtifactRef, context: &Context) -> Result<Vec<GgufMatrix>> {
        (0..context.model.weights().len()).map(|n| artifact.read(&unit(n))).collect()
    }
}

impl Stage for MeasureGguf<'_> {
    fn label(&self) -> String {
        "measure types of GGUF".into()
    }

    fn identity(&self, context: &Context) -> Result<Identity> {
        let inputs = [("measure", self.measured.digest())];
        let mut identity = context.identity(
            "measure-gguf",
            VERSION,
            &inputs,
            serde_json::json!({"damping": context.config.encode.damping}),
        );
        identity.inputs.insert("calibrate".into(), self.calibration.digest());
        Ok(identity)
    }

    fn estimate(&self, context: &Context) -> Estimate {
        let operations = context.model.checkpoint().weights() as f64 * 4e3;
        Estimate { operations, memory: PROGRAM + coding_memory(), disk: 0 }
    }

    fn units(&self, context: &Context) -> Result<Vec<String>> {
        Ok((0..context.model.weights().len()).map(unit).collect())
    }

    fn run(&self, context: &Context, work: &Work) -> Result<()> {
        let files: BTreeMap<String, _> = candidate_files(self.measured)?.into_iter().collect();
        let predicting = Sensitivities::open(self.calibration.dir())?.damped(context.config.encode.damping);
        let weights = context.model.weights();
        context.console.start("measure-gguf", weights.len() as u64);
        let sizes: Vec<u64> = weights.iter().map(|(_, [rows, cols])| (32 * rows * cols) as u64).collect();
        in_groups(&sizes, coding_memory(), |i| -> Result<()> {
            let (name, shape) = &weights[i];
            work.file(&unit(i), |path| -> Result<()> {
                let loss_weights = TensorCandidates::read(&files.get(name).cloned().unwrap_or_default())?.loss_weights;
                let values = context.model.checkpoint().read_f32(name, shape)?;
                let (hessian, gradient_covariance) = (predicting.hessian(name)?, predicting.gradient_covariance(name)?);
                let curvature =
                    Curvature { hessian: hessian.as_ref(), gradient_covariance: gradient_covariance.as_ref() };
                let model = QuadraticLoss::new(&loss_weights, TILE, curvature);
                let mut candidates = Vec::new();
                for kind in GgufType::MATRICES.into_iter().filter(|t| shape[1].is_multiple_of(t.block())) {
                    let mut errors = kind.quantize(name, &values, &loss_weights.cols)?.values;
                    errors.iter_mut().zip(&values).for_each(|(e, w)| *e -= w);
                    let (bytes, loss) = (kind.bytes(values.len()) as u64, model.of(errors));
                    // Scales in half precision cannot hold weights beyond 6e4 times the type's largest code.
                    if loss.is_finite() {
                        candidates.push(Candidate { kind, bytes, loss });
                    }
                }
                write_json(path, &GgufMatrix { name: name.clone(), weights: values.len() as u64, candidates })
            })?;
            context.console.advance(1);
            Ok(())
        })?;
        Ok((0..weights.len()).try_for_each(|i| work.adopt(&unit(i)))?)
    }
}

/// `model.gguf` with the chosen types, `recipe.txt`, and in `checkpoint/` the values that a runtime reads from the file.
pub(crate) struct WriteGguf<'a> {
    pub measured: &'a ArtifactRef,
    pub matrices: &'a [GgufMatrix],
    pub chosen: &'a Chosen,
}

impl WriteGguf<'_> {
    fn types(&self) -> BTreeMap<&str, GgufType> {
        let pairs = self.matrices.iter().zip(&self.chosen.candidates);
        pairs.map(|(m, &n)| (m.name.as_str(), m.candidates[n].kind)).collect()
    }
}

impl Stage for WriteGguf<'_> {
    fn label(&self) -> String {
        "gguf".into()
    }

    fn identity(&self, context: &Context) -> Result<Identity> {
        let settings = serde_json::json!({"types": self.types(), "name": context.config.name});
        let inputs = [("measure", self.measured.digest()), ("companions", context.companions_digest.clone())];
        Ok(context.identity("gguf", VERSION, &inputs, settings))
    }

    fn estimate(&self, context: &Context) -> Estimate {
        let operations = context.model.checkpoint().weights() as f64 * 2e3;
        Estimate { operations, memory: PROGRAM + coding_memory(), disk: 0 }
    }

    fn run(&self, context: &Context, work: &Work) -> Result<()> {
        let kinds = self.types();
        let pairs = self.matrices.iter().zip(&self.chosen.candidates);
        let predicted_loss = pairs.map(|(m, &n)| m.candidates[n].loss).sum();
        let mut types: BTreeMap<String, u64> = BTreeMap::new();
        for matrix in self.matrices {
            *types.entry(kinds[matrix.name.as_str()].name().to_string()).or_default() += matrix.weights;
        }
        let mostly = GgufType::MATRICES.into_iter().max_by_key(|t| types.get(t.name()).copied().unwrap_or(0));
        self.write_model(context, work, mostly.unwrap_or(GgufType::Q8_0))?;
        let recipe = work.path(RECIPE);
        std::fs::write(&recipe, gguf_recipe(context, self.matrices, self.chosen)?)
            .map_err(PipelineError::io(&recipe))?;
        write_decoded(context, work)?;
        let summary = ExportSummary { lambda: self.chosen.lambda.0, predicted_loss, types };
        write_json(&work.path("summary.json"), &summary)
    }
}

impl WriteGguf<'_> {
    fn write_model(&self, context: &Context, work: &Work, mostly: GgufType) -> Result<()> {
        let kinds = self.types();
        let (architecture, metadata) = gguf_metadata(context, mostly)?;
        let checkpoint = context.model.checkpoint();
        let files: BTreeMap<String, _> = candidate_files(self.measured)?.into_iter().collect();
        let infos: Vec<_> = checkpoint.tensors().collect();
        context.console.start("gguf", infos.len() as u64);
        let sizes: Vec<u64> = infos.iter().map(|info| 24 * info.weights()).collect();
        let mut tensors = in_groups(&sizes, coding_memory(), |i| -> Result<GgufTensor> {
            let info = infos[i];
            let name = gguf_name(context, architecture, &info.name)?;
            let kind = kinds.get(info.name.as_str()).copied().unwrap_or(GgufType::F32);
            let blob = work.file(&format!("tensor-{i}"), |path| -> Result<()> {
                let values = checkpoint.read_f32(&info.name, &info.shape)?;
                let width = if info.shape.len() > 1 { info.shape[1] } else { 1 };
                let values = permute_rows(&values, width, name.permuted, false);
                let bytes = match kind {
                    GgufType::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
                    _ => {
                        let file = files.get(&info.name).cloned().unwrap_or_default();
                        let loss_weights = TensorCandidates::read(&file)?.loss_weights;
                        kind.quantize(&info.name, &values, &loss_weights.cols)?.bytes
                    }
                };
                std::fs::write(path, bytes).map_err(PipelineError::io(path))
            })?;
            context.console.advance(1);
            Ok(GgufTensor { name: name.gguf, shape: info.shape.clone(), kind, data: Data::File(blob) })
        })?;
        if let Some(factors) = rope_factors(&context.model.config) {
            let data = Data::Bytes(factors.iter().flat_map(|v| v.to_le_bytes()).collect());
            tensors.push(GgufTensor { name: ROPE.into(), shape: vec![factors.len()], kind: GgufType::F32, data });
        }
        Ok(write_gguf(&work.path(FILE), &metadata, &tensors)?)
    }
}

/// Reads the file back as a runtime does, into a checkpoint that can be evaluated.
fn write_decoded(context: &Context, work: &Work) -> Result<()> {
    let (architecture, _) = gguf_metadata(context, GgufType::Q8_0)?;
    let file = GgufFile::open(&work.path(FILE))?;
    let dense = work.path("checkpoint");
    std::fs::create_dir(&dense).map_err(PipelineError::io(&dense))?;
    let blobs = tempfile::tempdir().map_err(PipelineError::io(&dense))?;
    let mut entries = Vec::new();
    for (i, info) in context.model.checkpoint().tensors().enumerate() {
        let name = gguf_name(context, architecture, &info.name)?;
        let width = if info.shape.len() > 1 { info.shape[1] } else { 1 };
        let values = permute_rows(&file.values(&name.gguf)?, width, name.permuted, true);
        let blob = blobs.path().join(i.to_string());
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        entries.push(Entry {
            name: info.name.clone(),
            shape: info.shape.clone(),
            plain: Some(Element::F32),
            data: writer::Data::keep(blob, &bytes)?,
            bytes: bytes.len() as u64,
        });
    }
    Ok(write_checkpoint(&context.source.dir, &dense, &entries, false)?)
}
