//! compressed-tensors directories: size and loss of linear layers in every scheme, and the directory with the chosen ones.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::json;
use waterfill_allocate::TensorCandidates;
use waterfill_calibrate::Sensitivities;
use waterfill_checkpoint::writer::{Data, Entry, write_checkpoint, write_file};
use waterfill_checkpoint::{Checkpoint, Element, TensorInfo};
use waterfill_codec::TILE;
use waterfill_export::{Candidate, Chosen, Scheme, describe, read_values};
use waterfill_model::roles::{input_group, is_linear};
use waterfill_quadratic::{Curvature, Damping, LdlFactor, LossWeights, QuadraticLoss};
use waterfill_store::{Identity, Progress, Work, in_groups};

use super::measure::candidate_files;
use crate::context::Context;
use crate::error::{PipelineError, Result};
use crate::estimate::{PROGRAM, coding_memory};
use crate::results::{ExportSummary, write_json};
use crate::stage::{ArtifactRef, Estimate, Stage};

/// Version of both artifacts; raised when candidates or files change.
const VERSION: u32 = 1;
/// Bytes of a tensor's entry in the file's header, about.
pub(crate) const ENTRY: u64 = 150;

/// Linear layers that get the same scheme; without one they stay as they are.
#[derive(Debug, Clone)]
pub(crate) struct PackedGroup {
    pub names: Vec<String>,
    pub weights: u64,
    pub candidates: Vec<Candidate<Option<Scheme>>>,
}

/// Size and loss of one matrix in every scheme that it can have.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Measured {
    candidates: Vec<Candidate<Option<Scheme>>>,
}

/// Linear layers of blocks.
fn linears(context: &Context) -> Vec<(String, [usize; 2])> {
    context.model.weights().into_iter().filter(|(name, _)| is_linear(name)).collect()
}

fn unit(n: usize) -> String {
    format!("{n:04}.json")
}

/// Values of a matrix with what quantizing it needs.
struct Material {
    values: Vec<f32>,
    loss_weights: LossWeights,
    factor: LdlFactor,
}

impl Material {
    fn read(
        context: &Context,
        (sensitivities, files): (&Sensitivities, &BTreeMap<String, PathBuf>),
        name: &str,
        shape: &[usize; 2],
    ) -> Result<Self> {
        let e = &context.config.encode;
        let loss_weights = TensorCandidates::read(&files.get(name).cloned().unwrap_or_default())?.loss_weights;
        let hessian = sensitivities.hessian(name)?;
        let damping = Damping { uniform: 0.0, lookup: loss_weights.lookup_share(), levels: &[] };
        let factor = match (&hessian, e.feedback) {
            (Some(hessian), true) => LdlFactor::new(hessian, &damping),
            _ => LdlFactor::diagonal(loss_weights.cols.clone()),
        };
        let values = context.model.checkpoint().read_f32(name, shape)?;
        Ok(Self { values, loss_weights, factor })
    }
}

/// Size and loss of every linear layer in every scheme.
pub(crate) struct MeasurePacked<'a> {
    pub calibration: &'a ArtifactRef,
    /// Candidates, whose loss weights count errors.
    pub measured: &'a ArtifactRef,
}

impl MeasurePacked<'_> {
    /// The layers of a finished artifact, in groups that runtimes compute as one matrix.
    pub fn read(artifact: &ArtifactRef, context: &Context) -> Result<Vec<PackedGroup>> {
        let mut groups: BTreeMap<String, PackedGroup> = BTreeMap::new();
        for (i, (name, [rows, cols])) in linears(context).iter().enumerate() {
            let measured: Measured = artifact.read(&unit(i))?;
            let group = groups.entry(input_group(name).unwrap_or_default()).or_insert_with(|| PackedGroup {
                names: vec![],
                weights: 0,
                candidates: measured.candidates.iter().map(|c| Candidate { bytes: 0, loss: 0.0, ..*c }).collect(),
            });
            // Only schemes that all of them can have.
            group.candidates.retain(|c| measured.candidates.iter().any(|t| t.kind == c.kind));
            for candidate in &mut group.candidates {
                let own = measured.candidates.iter().find(|t| t.kind == candidate.kind);
                candidate.bytes += own.map_or(0, |t| t.bytes);
                candidate.loss += own.map_or(0.0, |t| t.loss);
            }
            group.names.push(name.clone());
            group.weights += (rows * cols) as u64;
        }
        Ok(groups.into_values().collect())
    }
}

impl Stage for MeasurePacked<'_> {
    fn label(&self) -> String {
        "measure schemes of compressed-tensors".into()
    }

    fn identity(&self, context: &Context) -> Result<Identity> {
        let e = &context.config.encode;
        let settings = json!({"feedback": e.feedback, "damping": e.damping});
        let inputs = [("measure", self.measured.digest())];
        let mut identity = context.identity("measure-packed", VERSION, &inputs, settings);
        identity.inputs.insert("calibrate".into(), self.calibration.digest());
        Ok(identity)
    }

    fn estimate(&self, context: &Context) -> Estimate {
        let operations = context.model.checkpoint().weights() as f64 * 2e4;
        Estimate { operations, memory: PROGRAM + coding_memory(), disk: 0 }
    }

    fn units(&self, context: &Context) -> Result<Vec<String>> {
        Ok((0..linears(context).len()).map(unit).collect())
    }

    fn run(&self, context: &Context, work: &Work) -> Result<()> {
        let linears = linears(context);
        let files: BTreeMap<String, PathBuf> = candidate_files(self.measured)?.into_iter().collect();
        let fitted = Sensitivities::open(self.calibration.dir())?.damped(context.config.encode.damping);
        context.console.start("measure-packed", linears.len() as u64);
        let sizes: Vec<u64> =
            linears.iter().map(|(_, [rows, cols])| (16 * (rows * cols + rows * rows + cols * cols)) as u64).collect();
        in_groups(&sizes, coding_memory(), |i| -> Result<()> {
            let (name, shape) = &linears[i];
            work.file(&unit(i), |path| -> Result<()> {
                let Material { values, loss_weights, factor } =
                    Material::read(context, (&fitted, &files), name, shape)?;
                let (hessian, gradient_covariance) = (fitted.hessian(name)?, fitted.gradient_covariance(name)?);
                let curvature =
                    Curvature { hessian: hessian.as_ref(), gradient_covariance: gradient_covariance.as_ref() };
                let model = QuadraticLoss::new(&loss_weights, TILE, curvature);
                let plain = context.model.checkpoint().tensor(name)?.bytes;
                let mut candidates = vec![Candidate { kind: None, bytes: plain, loss: 0.0 }];
                for scheme in Scheme::ALL.into_iter().filter(|s| s.fits(shape[1])) {
                    let mut errors = scheme.quantize(&values, shape[1], &loss_weights.cols, &factor).values;
                    errors.iter_mut().zip(&values).for_each(|(e, w)| *e -= w);
                    let bytes = scheme.bytes(shape[0], shape[1]) + 2 * ENTRY;
                    candidates.push(Candidate { kind: Some(scheme), bytes, loss: model.of(errors) });
                }
                write_json(path, &Measured { candidates })
            })?;
            context.console.advance(1);
            Ok(())
        })?;
        Ok((0..linears.len()).try_for_each(|i| work.adopt(&unit(i)))?)
    }
}

/// `model/` with codes and scales, and in `checkpoint/` the values that a runtime reads from it.
pub(crate) struct WritePacked<'a> {
    pub calibration: &'a ArtifactRef,
    pub measured: &'a ArtifactRef,
    pub groups: &'a [PackedGroup],
    pub chosen: &'a Chosen,
}

impl WritePacked<'_> {
    fn pairs(&self) -> impl Iterator<Item = (&PackedGroup, Candidate<Option<Scheme>>)> {
        self.groups.iter().zip(&self.chosen.candidates).map(|(g, &n)| (g, g.candidates[n]))
    }

    /// Scheme of every linear layer that gets one.
    fn schemes(&self) -> BTreeMap<&str, Scheme> {
        self.pairs().flat_map(|(g, c)| g.names.iter().filter_map(move |name| Some((name.as_str(), c.kind?)))).collect()
    }

    /// Weights by scheme.
    fn types(&self, context: &Context) -> BTreeMap<String, u64> {
        let mut types: BTreeMap<String, u64> = BTreeMap::new();
        for (group, candidate) in self.pairs() {
            let name = candidate.kind.map_or("plain".to_string(), Scheme::name);
            *types.entry(name).or_default() += group.weights;
        }
        let coded: u64 = self.groups.iter().map(|g| g.weights).sum();
        *types.entry("plain".into()).or_default() += context.model.checkpoint().weights() - coded;
        types
    }

    fn write_model(&self, context: &Context, work: &Work) -> Result<()> {
        let schemes = self.schemes();
        let dir = work.path("model");
        std::fs::create_dir(&dir).map_err(PipelineError::io(&dir))?;
        let files: BTreeMap<String, PathBuf> = candidate_files(self.measured)?.into_iter().collect();
        let sensitivities = Sensitivities::open(self.calibration.dir())?.damped(context.config.encode.damping);
        let checkpoint = context.model.checkpoint();
        let infos: Vec<&TensorInfo> = checkpoint.tensors().collect();
        context.console.start("packed", infos.len() as u64);
        let size = |info: &&TensorInfo| match info.shape[..] {
            [rows, cols] => 16 * (rows * cols + cols * cols) as u64,
            _ => info.bytes,
        };
        let sizes: Vec<u64> = infos.iter().map(size).collect();
        let entries = in_groups(&sizes, coding_memory(), |i| -> Result<Vec<Entry>> {
            let info = infos[i];
            let blob = |part: &str, bytes: Vec<u8>| {
                let file =
                    work.file(&format!("tensor-{i}{part}"), |path| Ok::<(), PipelineError>(write_file(path, &bytes)?))?;
                Ok::<_, PipelineError>(Data::checked(file, &bytes))
            };
            context.console.advance(1);
            let (Some(scheme), &[rows, cols]) = (schemes.get(info.name.as_str()), info.shape.as_slice()) else {
                let data = blob("", checkpoint.read_raw(&info.name)?)?;
                let (name, shape, plain) = (info.name.clone(), info.shape.clone(), Some(info.element));
                return Ok(vec![Entry { name, shape, plain, data, bytes: info.bytes }]);
            };
            let material = Material::read(context, (&sensitivities, &files), &info.name, &[rows, cols])?;
            let packed = scheme.quantize(&material.values, cols, &material.loss_weights.cols, &material.factor);
            packed.stored(*scheme, [rows, cols]).entries(&info.name, blob)
        })?;
        let entries: Vec<Entry> = entries.into_iter().flatten().collect();
        write_checkpoint(&context.source.dir, &dir, &entries, false)?;
        let linears = linears(context);
        let plain = linears.iter().map(|(name, _)| name.as_str()).filter(|name| !schemes.contains_key(name));
        Ok(describe(&dir, &schemes, plain)?)
    }

    /// Reads codes and scales back, into a checkpoint that can be evaluated.
    fn write_decoded(&self, context: &Context, work: &Work) -> Result<()> {
        let (schemes, source) = (self.schemes(), context.model.checkpoint());
        let (model, dense) = (work.path("model"), work.path("checkpoint"));
        let written = Checkpoint::open(&model)?;
        std::fs::create_dir(&dense).map_err(PipelineError::io(&dense))?;
        let blobs = tempfile::tempdir().map_err(PipelineError::io(&dense))?;
        let mut entries = Vec::new();
        for (i, info) in source.tensors().enumerate() {
            let values = match schemes.get(info.name.as_str()) {
                None => written.read_f32(&info.name, &info.shape)?,
                Some(scheme) => read_values(&written, &info.name, [info.shape[0], info.shape[1]], *scheme)?,
            };
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            let blob = blobs.path().join(i.to_string());
            entries.push(Entry {
                name: info.name.clone(),
                shape: info.shape.clone(),
                plain: Some(Element::F32),
                bytes: bytes.len() as u64,
                data: Data::keep(blob, &bytes)?,
            });
        }
        Ok(write_checkpoint(source.dir(), &dense, &entries, false)?)
    }
}

impl Stage for WritePacked<'_> {
    fn label(&self) -> String {
        "packed".into()
    }

    fn identity(&self, context: &Context) -> Result<Identity> {
        let e = &context.config.encode;
        let named: BTreeMap<&str, String> = self.schemes().iter().map(|(name, s)| (*name, s.name())).collect();
        let settings = json!({"schemes": named, "feedback": e.feedback, "damping": e.damping});
        let inputs = [
            ("calibrate", self.calibration.digest()),
            ("measure", self.measured.digest()),
            ("companions", context.companions_digest.clone()),
        ];
        Ok(context.identity("packed", VERSION, &inputs, settings))
    }

    fn estimate(&self, context: &Context) -> Estimate {
        let operations = context.model.checkpoint().weights() as f64 * 2e3;
        Estimate { operations, memory: PROGRAM + coding_memory(), disk: 0 }
    }

    fn run(&self, context: &Context, work: &Work) -> Result<()> {
        self.write_model(context, work)?;
        self.write_decoded(context, work)?;
        let predicted_loss = self.pairs().map(|(_, c)| c.loss).sum();
        let summary = ExportSummary { lambda: self.chosen.lambda.0, predicted_loss, types: self.types(context) };
        write_json(&work.path("summary.json"), &summary)
    }
}
