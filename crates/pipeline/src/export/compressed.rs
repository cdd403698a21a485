//! Directories in the compressed-tensors format: INT4 or INT8 for every linear layer, as vLLM multiplies from.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::json;
use waterfill_allocate::{Sharing, TensorCandidates};
use waterfill_calibrate::Sensitivities;
use waterfill_checkpoint::writer::{Data, Entry, write_checkpoint, write_file};
use waterfill_checkpoint::{Checkpoint, Element, Prefix, TensorInfo};
use waterfill_codec::{BitsPerWeight, Lambda, TILE};
use waterfill_export::{Candidate, Chosen, ExportError, Scheme, choose, describe, read_values};
use waterfill_model::roles::{input_group, is_linear};
use waterfill_quadratic::{Curvature, Damping, LdlFactor, LossWeights, QuadraticLoss};
use waterfill_store::{Artifact, Identity, Progress, Work, in_groups};

use super::exact::export_tuned;
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
/// Bytes of a tensor's entry in the file's header, about.
const ENTRY: u64 = 150;

/// Linear layers that get the same scheme; without one they stay as they are.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Group {
    names: Vec<String>,
    weights: u64,
    candidates: Vec<Candidate<Option<Scheme>>>,
}

/// What of one matrix was tried.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Tried {
    candidates: Vec<Candidate<Option<Scheme>>>,
}

/// Writes a directory for every goal of the configuration, measured as its codes and scales are read back: tuned
/// checkpoints with their own codes where the configuration's granularity is that of the format, else types and codes
/// chosen for it.
///
/// # Errors
/// The first failure of any stage.
pub fn export_compressed(session: &Session, out: Option<&Path>) -> Result<ExportOutput> {
    let granularity = session.config.allocate.granularity;
    if granularity.sharing() != Sharing::Tile {
        return match out {
            Some(out) => export_tuned(session, out),
            None => {
                let reason = format!("allocate.granularity {} needs --out, a directory", String::from(granularity));
                Err(ExportError::Target { target: "compressed-tensors", reason }.into())
            }
        };
    }
    let groups = session.packed_points()?;
    let asked = session.asked()?;
    let base = session.evaluate(Whose::Original, &asked)?;
    let original = base.read(None)?;
    let mut all = Vec::new();
    for goal in session.goals() {
        let chosen = session.packed_choice(&groups, goal)?;
        let artifact = session.packed(&groups, &chosen)?;
        let text = session.evaluate(Whose::Tuned(&artifact, Prefix::All, &base), &asked)?.read(Some(&base))?.text;
        let summary: Summary = read_json(&artifact.path("summary.json"))?;
        let mut dir = artifact.path("model");
        let bytes = Checkpoint::open(&dir)?.bytes();
        let bits = BitsPerWeight::of_bytes(bytes, session.model.checkpoint().weights());
        if let Some(out) = out {
            let to = out.join(format!("{}-{:.2}bpw", session.config.name, bits.0));
            std::fs::create_dir_all(&to).map_err(io(&to))?;
            for entry in std::fs::read_dir(&dir).map_err(io(&dir))? {
                let entry = entry.map_err(io(&dir))?;
                std::fs::copy(entry.path(), to.join(entry.file_name())).map_err(io(&to))?;
            }
            dir = to;
        }
        all.push(ExportPoint::of(summary, bytes, bits, &text, (dir, None)));
    }
    all.sort_by_key(|p| p.bytes);
    Ok(ExportOutput { model: session.config.name.clone(), base: BaseOutput::of(&original), points: all })
}

/// What quantising a matrix takes.
struct Material {
    values: Vec<f32>,
    loss_weights: LossWeights,
    factor: LdlFactor,
}

impl Session<'_> {
    /// Linear layers of blocks.
    fn linears(&self) -> Vec<(String, [usize; 2])> {
        self.model.weights().into_iter().filter(|(name, _)| is_linear(name)).collect()
    }

    fn material(
        &self,
        calibration: &Calibration,
        points: &Artifact,
        name: &str,
        shape: &[usize; 2],
    ) -> Result<Material> {
        let index: Vec<(String, String)> = read_json(&points.path("index.json"))?;
        let file = index.iter().find(|(n, _)| n == name).map(|(_, file)| points.path(file)).unwrap_or_default();
        let loss_weights = TensorCandidates::read(&file)?.loss_weights;
        let hessian = Sensitivities::open(&calibration.fitted.dir)?.hessian(name)?;
        let damping = self.config.encode.damping;
        let factor = match (&hessian, self.config.encode.feedback) {
            (Some(hessian), true) => {
                let lookup = loss_weights.lookup_share();
                LdlFactor::new(hessian, &Damping { uniform: damping, lookup, levels: &[] })
            }
            _ => LdlFactor::diagonal(loss_weights.cols.clone()),
        };
        let values = self.model.checkpoint().read_f32(name, shape)?;
        Ok(Material { values, loss_weights, factor })
    }

    /// Size and loss of every group of linear layers under every scheme.
    fn packed_points(&self) -> Result<Vec<Group>> {
        let calibration = self.calibrate()?;
        let points = self.points(&calibration.fitted)?;
        let linears = self.linears();
        let artifact = self.stage("packed-points", &self.packed_points_identity(&calibration, &points), |work| {
            let predicting = calibration.held_out.as_ref().unwrap_or(&calibration.fitted);
            let predicting = Sensitivities::open(&predicting.dir)?;
            self.console.start("packed-points", linears.len() as u64);
            let sizes: Vec<u64> = linears
                .iter()
                .map(|(_, [rows, cols])| (16 * (rows * cols + rows * rows + cols * cols)) as u64)
                .collect();
            in_groups(&sizes, coding_memory(), |i| -> Result<()> {
                let (name, shape) = &linears[i];
                work.file(&format!("{i:04}.json"), |path| -> Result<()> {
                    let Material { values, loss_weights, factor } =
                        self.material(&calibration, &points, name, shape)?;
                    let (input, output) = (predicting.hessian(name)?, predicting.gradient_covariance(name)?);
                    let curvature = Curvature { hessian: input.as_ref(), gradient_covariance: output.as_ref() };
                    let model = QuadraticLoss::new(&loss_weights, TILE, curvature);
                    let plain = self.model.checkpoint().tensor(name)?.bytes;
                    let mut candidates = vec![Candidate { kind: None, bytes: plain, loss: 0.0 }];
                    for scheme in Scheme::ALL.into_iter().filter(|s| s.fits(shape[1])) {
                        let mut errors = scheme.quantize(&values, shape[1], &loss_weights.cols, &factor).values;
                        errors.iter_mut().zip(&values).for_each(|(e, w)| *e -= w);
                        let bytes = scheme.bytes(shape[0], shape[1]) + 2 * ENTRY;
                        candidates.push(Candidate { kind: Some(scheme), bytes, loss: model.of(errors) });
                    }
                    write_json(path, &Tried { candidates })
                })?;
                self.console.advance(1);
                Ok(())
            })?;
            Ok((0..linears.len()).try_for_each(|i| work.adopt(&format!("{i:04}.json")))?)
        })?;
        let mut groups: BTreeMap<String, Group> = BTreeMap::new();
        for (i, (name, [rows, cols])) in linears.iter().enumerate() {
            let tried: Tried = read_json(&artifact.path(&format!("{i:04}.json")))?;
            let group = groups.entry(input_group(name).unwrap_or_default()).or_insert_with(|| Group {
                names: vec![],
                weights: 0,
                candidates: tried.candidates.iter().map(|c| Candidate { bytes: 0, loss: 0.0, ..*c }).collect(),
            });
            // Only what all of them can have.
            group.candidates.retain(|c| tried.candidates.iter().any(|t| t.kind == c.kind));
            for candidate in &mut group.candidates {
                let own = tried.candidates.iter().find(|t| t.kind == candidate.kind);
                candidate.bytes += own.map_or(0, |t| t.bytes);
                candidate.loss += own.map_or(0.0, |t| t.loss);
            }
            group.names.push(name.clone());
            group.weights += (rows * cols) as u64;
        }
        Ok(groups.into_values().collect())
    }

    fn packed_points_identity(&self, calibration: &Calibration, points: &Artifact) -> Identity {
        let inputs = [("calibrate", calibration.fitted.digest()), ("points", points.digest())];
        let e = &self.config.encode;
        let settled = json!({"damping": e.feedback.then_some(e.damping)});
        let mut identity = self.identity("packed-points", VERSION, inputs, settled);
        identity.inputs.extend(calibration.held_out.iter().map(|a| ("held-out".to_string(), a.digest())));
        identity
    }

    fn packed_choice(&self, groups: &[Group], goal: Goal) -> Result<Chosen> {
        let candidates: Vec<Vec<Candidate<Option<Scheme>>>> = groups.iter().map(|g| g.candidates.clone()).collect();
        let goal = match goal {
            Goal::Lambda(lambda) => Err(Lambda(lambda)),
            Goal::Bytes(bytes) => {
                let linears: BTreeSet<&String> = groups.iter().flat_map(|g| &g.names).collect();
                let around = |info: &TensorInfo| ENTRY + if linears.contains(&info.name) { 0 } else { info.bytes };
                let around: u64 = self.model.checkpoint().tensors().map(around).sum();
                let least: u64 = candidates.iter().map(|c| c.iter().map(|c| c.bytes).min().unwrap_or(0)).sum();
                if around + least > bytes {
                    let reason = format!(
                        "{bytes} bytes are wanted; embedding, head and norms, which stay as they are, take {around}, and \
                         linear layers {least} at least"
                    );
                    return Err(ExportError::Target { target: "compressed-tensors", reason }.into());
                }
                Ok(bytes - around)
            }
            Goal::Width(_) => return Err(no_baseline("compressed-tensors")),
        };
        Ok(choose(&candidates, goal))
    }

    /// `model/` with codes and scales, and in `checkpoint/` what a runtime makes of them.
    fn packed(&self, groups: &[Group], chosen: &Chosen) -> Result<Artifact> {
        let pairs = || groups.iter().zip(&chosen.candidates).map(|(g, &n)| (g, g.candidates[n]));
        let schemes: BTreeMap<&str, Scheme> =
            pairs().flat_map(|(g, c)| g.names.iter().filter_map(move |name| Some((name.as_str(), c.kind?)))).collect();
        let calibration = self.calibrate()?;
        let points = self.points(&calibration.fitted)?;
        let named: BTreeMap<&str, String> = schemes.iter().map(|(name, s)| (*name, s.name())).collect();
        let e = &self.config.encode;
        let settled = json!({"schemes": named, "damping": e.feedback.then_some(e.damping)});
        let inputs = [("calibrate", calibration.fitted.digest()), ("points", points.digest())];
        let identity = self.identity("packed", VERSION, inputs, settled);
        let predicted_loss = pairs().map(|(_, c)| c.loss).sum();
        let mut types: BTreeMap<String, u64> = BTreeMap::new();
        for (group, candidate) in pairs() {
            let name = candidate.kind.map_or("plain".to_string(), Scheme::name);
            *types.entry(name).or_default() += group.weights;
        }
        let coded: u64 = groups.iter().map(|g| g.weights).sum();
        *types.entry("plain".into()).or_default() += self.model.checkpoint().weights() - coded;
        self.stage("packed", &identity, |work| {
            self.write_packed(work, &calibration, &points, &schemes)?;
            write_decoded(work, self.model.checkpoint(), &schemes)?;
            write_json(&work.path("summary.json"), &Summary { lambda: chosen.lambda.0, predicted_loss, types })
        })
    }

    fn write_packed(
        &self,
        work: &Work,
        calibration: &Calibration,
        points: &Artifact,
        schemes: &BTreeMap<&str, Scheme>,
    ) -> Result<()> {
        let dir = work.path("model");
        std::fs::create_dir(&dir).map_err(io(&dir))?;
        let checkpoint = self.model.checkpoint();
        let infos: Vec<&TensorInfo> = checkpoint.tensors().collect();
        self.console.start("packed", infos.len() as u64);
        let size = |info: &&TensorInfo| match info.shape[..] {
            [rows, cols] => 16 * (rows * cols + cols * cols) as u64,
            _ => info.bytes,
        };
        let sizes: Vec<u64> = infos.iter().map(size).collect();
        let entries = in_groups(&sizes, coding_memory(), |i| -> Result<Vec<Entry>> {
            let info = infos[i];
            let blob = |part: &str, bytes: Vec<u8>| {
                work.file(&format!("tensor-{i}{part}"), |path| {
                    Ok::<(), crate::PipelineError>(write_file(path, &bytes)?)
                })
            };
            self.console.advance(1);
            let (Some(scheme), &[rows, cols]) = (schemes.get(info.name.as_str()), info.shape.as_slice()) else {
                let data = Data::File(blob("", checkpoint.read_raw(&info.name)?)?);
                let (name, shape, plain) = (info.name.clone(), info.shape.clone(), Some(info.element));
                return Ok(vec![Entry { name, shape, plain, data, bytes: info.bytes }]);
            };
            let material = self.material(calibration, points, &info.name, &[rows, cols])?;
            let packed = scheme.quantize(&material.values, cols, &material.loss_weights.cols, &material.factor);
            packed.stored(*scheme, [rows, cols]).entries(&info.name, blob)
        })?;
        write_checkpoint(&self.source.dir, &dir, &entries.into_iter().flatten().collect::<Vec<_>>(), false)?;
        let linears = self.linears();
        let plain = linears.iter().map(|(name, _)| name.as_str()).filter(|name| !schemes.contains_key(name));
        Ok(describe(&dir, schemes, plain)?)
    }
}

/// Reads codes and scales back, into a checkpoint that can be evaluated.
fn write_decoded(work: &Work, source: &Checkpoint, schemes: &BTreeMap<&str, Scheme>) -> Result<()> {
    let (model, dense) = (work.path("model"), work.path("checkpoint"));
    let written = Checkpoint::open(&model)?;
    std::fs::create_dir(&dense).map_err(io(&dense))?;
    let blobs = tempfile::tempdir().map_err(io(&dense))?;
    let mut entries = Vec::new();
    for (i, info) in source.tensors().enumerate() {
        let bytes: Vec<u8> = match schemes.get(info.name.as_str()) {
            None => written.read_f32(&info.name, &info.shape)?.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Some(scheme) => {
                let shape = [info.shape[0], info.shape[1]];
                read_values(&written, &info.name, shape, *scheme)?.iter().flat_map(|v| v.to_le_bytes()).collect()
            }
        };
        let blob = blobs.path().join(i.to_string());
        std::fs::write(&blob, &bytes).map_err(io(&blob))?;
        entries.push(Entry {
            name: info.name.clone(),
            shape: info.shape.clone(),
            plain: Some(Element::F32),
            bytes: bytes.len() as u64,
            data: Data::File(blob),
        });
    }
    Ok(write_checkpoint(source.dir(), &dense, &entries, false)?)
}
