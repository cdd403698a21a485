//! The stages: identity and work of each.
//!
//! Identities take digests of what a stage reads, so that a plan can be made before anything is
//! computed.

use std::collections::BTreeMap;
use std::path::PathBuf;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use waterfill_allocate as alloc;
use waterfill_calibrate as calib;
use waterfill_checkpoint::Checkpoint;
use waterfill_codec::{Format, Lambda, Rate};
use waterfill_model::roles::{input_group, is_linear};
use waterfill_model::{EMBEDDING, Model, TensorRole, Windows};
use waterfill_quadratic::{Damping, LdlFactor};
use waterfill_store::{Artifact, Identity, Progress, in_groups};

use crate::config::{self, PolicyName};
use crate::error::Result;
use crate::estimate::coding_memory;
use crate::probe::Probed;
use crate::results::{AllocationSummary, TensorSummary, read_json, write_json};
use crate::session::{Goal, Session};

/// Tokens of a batch in calibration and evaluation.
pub(crate) const BATCH_TOKENS: usize = 2048;

/// Bytes of points that are read side by side.
const POINT_BYTES: u64 = 1 << 30;

/// The last stage to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Until {
    /// Sensitivities.
    Calibrate,
    /// Allocations.
    Allocate,
    /// Tuned checkpoints.
    Encode,
    /// Their quality.
    Evaluate,
    /// Tables and figures.
    Report,
}

/// Sensitivities that decide, and those of other tokens, by which losses are predicted.
pub(crate) struct Calibration {
    pub fitted: Artifact,
    pub held_out: Option<Artifact>,
}

impl Calibration {
    /// Digests of both.
    pub fn digests(&self) -> (String, Option<String>) {
        (self.fitted.digest(), self.held_out.as_ref().map(Artifact::digest))
    }
}

impl Session<'_> {
    /// Sensitivities of all weights, and those on held-out text if there is any.
    pub(crate) fn calibrate(&self) -> Result<Calibration> {
        let c = &self.config.calibrate;
        let (windows, held_out) = self.source.calibration(self.config, &self.model.config, self.console)?;
        let fitted = self.calibrate_on("calibrate", &windows, c.shards)?;
        let held_out = match self.predicts_held_out() {
            true => Some(self.calibrate_on("calibrate on held-out text", &held_out, 1)?),
            false => None,
        };
        Ok(Calibration { fitted, held_out })
    }

    /// Whether losses are predicted by second moments that feedback has not fitted.
    pub(crate) fn predicts_held_out(&self) -> bool {
        self.config.calibrate.held_out > 0 && self.config.encode.feedback && self.config.baseline.is_none()
    }

    fn calibrate_on(&self, label: &str, windows: &Windows, shards: usize) -> Result<Artifact> {
        let c = &self.config.calibrate;
        let kind = |moment: config::SecondMoment| match moment {
            config::SecondMoment::Full => calib::HessianKind::Full,
            config::SecondMoment::BlockDiagonal => calib::HessianKind::BlockDiagonal,
            config::SecondMoment::Diagonal => calib::HessianKind::Diagonal,
        };
        let settings = calib::CalibrateSettings {
            labels: match c.labels {
                config::Labels::Sampled => calib::Labels::Sampled,
                config::Labels::Data => calib::Labels::Data,
            },
            seed: c.seed,
            folds: shards,
            gradient_covariance: kind(c.output_moment),
            hessian: calib::HessianSettings {
                kind: kind(c.second_moment),
                block: c.second_moment_block,
                weighting: match c.second_moment_weighting {
                    config::Weighting::Plain => calib::HessianWeighting::Plain,
                    config::Weighting::Gradient => calib::HessianWeighting::Gradient,
                },
            },
            batch_tokens: c.batch_tokens,
        };
        self.stage(label, &self.calibration_identity(windows, shards), |work| {
            let summary = calib::calibrate(&self.model, windows, &settings, work, self.console)?;
            write_json(&work.path("summary.json"), &summary)
        })
    }

    pub(crate) fn calibration_identity(&self, windows: &Windows, shards: usize) -> Identity {
        let c = &self.config.calibrate;
        // The text's path does not matter, its tokens do.
        let settled = serde_json::json!({
            "context": windows.context, "labels": c.labels, "shards": shards, "second_moment": c.second_moment,
            "second_moment_block": c.second_moment_block, "second_moment_weighting": c.second_moment_weighting, "output_moment": c.output_moment,
            "batch_tokens": c.batch_tokens, "device": self.device,
        });
        let mut identity = self.identity("calibrate", 6, [("tokens", tokens_digest(windows))], settled);
        identity.seeds.insert("labels".into(), c.seed);
        identity
    }

    /// Rate-distortion points of all tiles.
    pub(crate) fn points(&self, calibration: &Artifact) -> Result<Artifact> {
        let a = &self.config.allocate;
        let rule = match a.shard_rule {
            config::ShardRule::Mean => alloc::FoldRule::Mean,
            config::ShardRule::Worst => alloc::FoldRule::Worst,
        };
        let (of_linears, of_others) = a.granularity.scales();
        self.stage("points", &self.points_identity(calibration.digest()), |work| {
            let sensitivities = calib::Sensitivities::open(&calibration.dir)?;
            let summary: calib::CalibrateSummary = read_json(&calibration.path("summary.json"))?;
            let weights = self.model.weights();
            let checkpoint = self.model.checkpoint();
            let erasure = |(name, shape): &(String, [usize; 2])| -> Result<_> {
                let sensitivity = sensitivities.read(name, shape[0], shape[1])?;
                let rows = checkpoint.rows(name, shape)?;
                alloc::erasure_loss(|range| Ok(rows.read(range)?), &sensitivity, rule)
            };
            let erasures = weights.par_iter().map(erasure).collect::<Result<Vec<_>>>()?;
            let raises = alloc::sensitivity_floor(&erasures, a.sensitivity_floor);
            let formats = self.formats();
            self.console.start("points", weights.len() as u64);
            let mut index = Vec::new();
            for (i, weight) in weights.iter().enumerate() {
                let (file, name) = (format!("{i:04}.safetensors"), &weight.0);
                work.file(&file, |path| -> Result<()> {
                    let sensitivity = sensitivities.read(name, weight.1[0], weight.1[1])?;
                    let values = checkpoint.read_f32(name, &weight.1)?;
                    let dtype = checkpoint.dtype(name)?;
                    let unseen = if name == EMBEDDING { 0.5 / summary.tokens as f64 } else { 0.0 };
                    let moment = match self.config.encode.feedback {
                        true => sensitivities.hessian(name)?,
                        false => None,
                    };
                    let (uniform, lookup) = (self.config.encode.damping, sensitivity.lookup_share());
                    let factor = moment.map(|m| LdlFactor::new(&m, &Damping { uniform, lookup, levels: &[] }));
                    let linear = is_linear(name);
                    let rules = alloc::MeasureOptions {
                        fold_rule: rule,
                        scale_vectors: if linear { of_linears } else { of_others },
                        shared_steps: linear && a.granularity.sharing() != alloc::Sharing::Tile,
                        unseen,
                        loss_factor: raises[i],
                        formats: &formats,
                        ldl: factor.as_ref(),
                    };
                    let points = alloc::measure_candidates(&values, dtype, &sensitivity, &rules);
                    Ok(points.write(path)?)
                })?;
                work.adopt(&file)?;
                index.push((name.clone(), file));
                self.console.advance(1);
            }
            write_json(&work.path("index.json"), &index)
        })
    }

    pub(crate) fn points_identity(&self, calibration: String) -> Identity {
        let a = &self.config.allocate;
        let e = &self.config.encode;
        let settled = serde_json::json!({
            "feedback": e.feedback.then_some(e.damping),
            "shard_rule": a.shard_rule, "granularity": a.granularity, "sensitivity_floor": a.sensitivity_floor,
            "float_formats": self.formats().iter().filter(|f| f.minifloat().is_some()).map(|f| f.name()).collect::<Vec<_>>(),
        });
        self.identity("points", 5, [("calibrate", calibration)], settled)
    }

    /// Formats that tiles may have.
    fn formats(&self) -> Vec<Format> {
        self.config.allocate.formats.iter().map(|f| f.in_codec()).collect()
    }

    pub(crate) fn policy(&self) -> Result<alloc::Policy> {
        let a = &self.config.allocate;
        let mut floors: Vec<alloc::Floor> = Vec::new();
        if a.policy == PolicyName::Safe {
            let names = self.model.weights().into_iter().map(|(name, _)| name);
            for name in names.filter(|n| TensorRole::parse(n).is_some_and(TensorRole::is_floored_by_safe)) {
                floors.push(alloc::Floor::new(&name, Format::Fp8)?);
            }
        }
        for floor in &a.floors {
            floors.push(alloc::Floor::new(&floor.pattern, floor.at_least.in_codec())?);
        }
        let rate = alloc::RateWeights { storage: a.rate.storage, resident: a.rate.resident };
        let (formats, corrections, structure) = (self.formats(), BTreeMap::new(), self.structure());
        Ok(alloc::Policy { formats, floors, margin: a.margin, rate, corrections, structure })
    }

    /// Matrices that are to have one format each.
    fn structure(&self) -> Option<alloc::Structure> {
        let sharing = self.config.allocate.granularity.sharing();
        let sets =
            || self.model.weights().into_iter().filter_map(|(name, _)| input_group(&name).map(|set| (name, set)));
        (sharing != alloc::Sharing::Tile).then(|| alloc::Structure {
            sharing,
            sets: sets().collect(),
            formats: BTreeMap::new(),
        })
    }

    /// File of every matrix' points.
    pub(crate) fn point_files(&self, points: &Artifact) -> Result<Vec<(String, PathBuf)>> {
        let index: Vec<(String, String)> = read_json(&points.path("index.json"))?;
        Ok(index.into_iter().map(|(n, f)| (n, points.path(&f))).collect())
    }

    /// One allocation.
    pub(crate) fn allocate(&self, points: &Artifact, probes: Option<&Artifact>, goal: Goal) -> Result<Artifact> {
        let probed = probes.map(Artifact::digest);
        self.stage(&goal.label(), &self.allocation_identity(points.digest(), probed, goal), |work| {
            let mut policy = self.policy()?;
            if let Some(probes) = probes {
                policy.corrections = read_json::<Probed>(&probes.path("probes.json"))?.corrections;
            }
            let files = self.point_files(points)?;
            let overhead = overhead(self.model.checkpoint(), &files);
            let lambda = match goal {
                Goal::Lambda(lambda) => Lambda(lambda),
                Goal::Bytes(bytes) => {
                    alloc::meet_target(bytes, &files, self.model.checkpoint(), &policy, overhead)?.lambda
                }
                Goal::Width(_) => unreachable!("baselines are not allocated"),
            };
            let sizes: Vec<u64> = files.iter().map(|(_, path)| path.metadata().map_or(0, |m| m.len())).collect();
            if policy.structure.is_some() {
                let costs = in_groups(&sizes, POINT_BYTES, |n| -> Result<_> {
                    let (name, path) = &files[n];
                    Ok((
                        name.as_str(),
                        alloc::format_costs(name, &alloc::TensorCandidates::read(path)?, &policy, lambda),
                    ))
                })?;
                policy = policy.with_formats(costs);
            }
            let selections = in_groups(&sizes, POINT_BYTES, |n| -> Result<_> {
                let (name, path) = &files[n];
                let points = alloc::TensorCandidates::read(path)?;
                Ok((name.as_str(), alloc::select_weight(name, &points, &policy, lambda)?))
            })?;
            let mut map = alloc::Allocation::new(&work.path("allocation.safetensors"));
            selections.iter().for_each(|(name, selection)| map.add(name, selection));
            map.write()?;
            alloc::write_table(&work.path("tiles.parquet"), selections.iter().map(|(n, s)| (*n, s)))?;
            let summary = summarise(&selections, lambda, goal, overhead, self.model.checkpoint().weights());
            write_json(&work.path("summary.json"), &summary)
        })
    }

    pub(crate) fn allocation_identity(&self, points: String, probed: Option<String>, goal: Goal) -> Identity {
        let a = &self.config.allocate;
        let mut settled = serde_json::json!({
            "goal": goal, "formats": a.formats, "policy": a.policy, "floors": a.floors, "margin": a.margin, "rate": a.rate,
        });
        if a.granularity.sharing() != alloc::Sharing::Tile {
            settled["granularity"] = String::from(a.granularity).into();
        }
        let mut identity = self.identity("allocate", 3, [("points", points)], settled);
        identity.inputs.extend(probed.map(|digest| ("probes".to_string(), digest)));
        identity
    }

    /// The tuned checkpoint of allocations, in `checkpoint/` of the artifact: the base's, and one for each refinement.
    pub(crate) fn encode(&self, calibration: &Calibration, allocations: &[Artifact]) -> Result<Artifact> {
        self.encode_as(calibration, allocations, self.config.encode.sequential)
    }

    /// As [`Session::encode`], whatever the configuration says of adaptation.
    pub(crate) fn encode_as(
        &self,
        calibration: &Calibration,
        allocations: &[Artifact],
        sequential: Option<config::Sequential>,
    ) -> Result<Artifact> {
        let digests: Vec<String> = allocations.iter().map(Artifact::digest).collect();
        let identity = self.encoding_identity(calibration.digests(), &digests, sequential);
        self.stage("encode", &identity, |work| {
            let open = |a: &Artifact| alloc::Allocation::open(&a.path("allocation.safetensors"));
            let maps = allocations.iter().map(open).collect::<std::result::Result<Vec<_>, _>>()?;
            let options = self.options(calibration)?;
            let (windows, _) = self.source.calibration(self.config, &self.model.config, self.console)?;
            let adaptation = sequential.map(|s| {
                let settings = waterfill_sequential::SequentialSettings {
                    steps: s.steps,
                    rate: s.rate,
                    batch_tokens: BATCH_TOKENS,
                };
                let copy = Model::open(&self.source.dir, self.model.device())?;
                let names = maps.last().map(alloc::Allocation::names).unwrap_or_default();
                waterfill_sequential::Adaptation::new(
                    &self.model,
                    copy,
                    &windows,
                    &names.into_iter().collect(),
                    settings,
                )
            });
            let (source, adaptation) = (self.model.checkpoint(), adaptation.transpose()?);
            let summary = waterfill_quantize::encode(source, &maps, &options, adaptation, work, self.console)?;
            write_json(&work.path("summary.json"), &summary)
        })
    }

    /// How tensors are coded.
    pub(crate) fn options(&self, calibration: &Calibration) -> Result<waterfill_quantize::EncodeOptions> {
        let e = &self.config.encode;
        let feedback = match e.feedback {
            true => Some(waterfill_quantize::ErrorFeedback {
                sensitivities: calib::Sensitivities::open(&calibration.fitted.dir)?,
                held_out: calibration.held_out.as_ref().map(|a| calib::Sensitivities::open(&a.dir)).transpose()?,
                damping: e.damping,
                trellis: e.trellis(),
                rounding: e.rounding,
                error_penalty: e.layers.as_ref().map_or(0.0, config::Layers::restraint),
                sparse: e.layers.as_ref().is_some_and(|l| l.structure.is_some()),
            }),
            false => None,
        };
        Ok(waterfill_quantize::EncodeOptions {
            tools: e.tools(),
            allow_int8: self.widen(),
            allow_lossless: self.escape(),
            feedback,
            memory: coding_memory(),
        })
    }

    /// What of the configuration coded tensors depend on.
    pub(crate) fn coding(&self) -> serde_json::Value {
        serde_json::json!({
            "bitstream": waterfill_checkpoint::VERSION, "encode": self.config.encode, "widen": self.widen(),
            "escape": self.escape(),
        })
    }

    /// Planes may be wider than allocated where INT8 is allowed and memory has no price.
    fn widen(&self) -> bool {
        let a = &self.config.allocate;
        a.rate.resident == 0.0 && a.formats.contains(&config::Format::Int8)
    }

    /// Tiles may become lossless where that is allowed and memory has no price.
    fn escape(&self) -> bool {
        let a = &self.config.allocate;
        a.rate.resident == 0.0 && a.formats.contains(&config::Format::Lossless)
    }

    pub(crate) fn encoding_identity(
        &self,
        (calibration, held_out): (String, Option<String>),
        allocations: &[String],
        sequential: Option<config::Sequential>,
    ) -> Identity {
        let Some((allocation, coarser)) = allocations.split_last() else { unreachable!("there is a base at least") };
        let layers = self.config.encode.layers.clone().filter(|_| !coarser.is_empty());
        let mut settled = serde_json::json!({
            "bitstream": waterfill_checkpoint::VERSION, "encode": config::Encode { sequential, layers, ..self.config.encode.clone() },
            "widen": self.widen(), "escape": self.escape(),
        });
        if sequential.is_some() {
            settled["adaptation"] = waterfill_sequential::VERSION.into();
        }
        // Second moments are read from the calibration, not from the allocation.
        let inputs = [("calibrate", calibration), ("allocate", allocation.clone())];
        let mut identity = self.identity("encode", 12, inputs, settled);
        let layers = coarser.iter().enumerate();
        identity.inputs.extend(layers.map(|(n, digest)| (format!("allocate-{n}"), digest.clone())));
        identity.inputs.extend(held_out.map(|digest| ("held-out".to_string(), digest)));
        identity
    }
}

fn summarise(
    selections: &[(&str, alloc::Selection)],
    lambda: Lambda,
    goal: Goal,
    overhead: alloc::Overhead,
    weights: u64,
) -> AllocationSummary {
    let tensors = selections.iter().map(|(name, s)| {
        let mut formats = BTreeMap::new();
        for (n, point) in s.chosen.iter().enumerate() {
            let (row, col) = (n / s.plan.tiles_across() * 16, n % s.plan.tiles_across() * 16);
            let inside = 16.min(s.plan.rows - row) * 16.min(s.plan.cols - col);
            *formats.entry(point.format.name().to_string()).or_insert(0) += inside as u64;
        }
        let bits = alloc::estimated_bits(s).0;
        TensorSummary {
            name: name.to_string(),
            weights: (s.plan.rows * s.plan.cols) as u64,
            bits,
            loss: s.loss.0,
            formats,
        }
    });
    let tensors: Vec<TensorSummary> = tensors.collect();
    let bits = tensors.iter().map(|t| t.bits).sum::<f64>() + overhead.plain.0;
    let resident: Rate = selections.iter().map(|(_, s)| s.resident).sum();
    AllocationSummary {
        lambda: lambda.0,
        target_bytes: match goal {
            Goal::Bytes(bytes) => Some(bytes),
            Goal::Lambda(_) | Goal::Width(_) => None,
        },
        predicted_loss: tensors.iter().map(|t| t.loss).sum(),
        estimated_bytes: (bits / 8.0).round() as u64,
        resident_bits: (resident + overhead.plain_resident).0,
        weights,
        tensors,
    }
}

/// Bits outside coded tensors: plain tensors, and the shard's header with offsets of about the
/// right number of digits.
pub(crate) fn overhead(checkpoint: &Checkpoint, coded: &[(String, PathBuf)]) -> alloc::Overhead {
    let (mut plain, mut header, mut offset) = (0, 110, 0);
    for tensor in checkpoint.tensors() {
        let is_coded = coded.iter().any(|(name, _)| *name == tensor.name);
        let (dtype, bytes) = if is_coded { ("U8", tensor.weights() / 2) } else { ("BF16", tensor.bytes) };
        plain += if is_coded { 0 } else { bytes };
        let entry = format!(
            "\"{}\":{{\"dtype\":\"{dtype}\",\"shape\":[{bytes}],\"data_offsets\":[{offset},{}]}},",
            tensor.name,
            offset + bytes
        );
        header += entry.len() as u64;
        offset += bytes;
    }
    alloc::Overhead { plain: Rate((plain + header) as f64 * 8.0), plain_resident: Rate(plain as f64 * 8.0) }
}

pub(crate) fn tokens_digest(windows: &Windows) -> String {
    let mut hasher = blake3::Hasher::new();
    for row in &windows.rows {
        row.iter().for_each(|id| {
            hasher.update(&id.to_le_bytes());
        });
    }
    hasher.finalize().to_hex().to_string()
}
