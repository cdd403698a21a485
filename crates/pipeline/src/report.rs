//! The report of a run: what its tables, figures and page are made from.

use std::collections::BTreeMap;

use waterfill_model::roles::is_linear;
use waterfill_report as report;
use waterfill_store::{Artifact, Identity};

use crate::error::Result;
use crate::pictures::{of_matrix, parts_of, sensitivities};
use crate::results::Evaluation;
use crate::run::{Made, PointOutput, RunOutput};
use crate::session::Session;

/// The tuned checkpoint in the middle, and the linear layer that its allocation expects to lose most in.
fn pictured<'a>(made: &'a [Made], output: &'a RunOutput) -> Option<(&'a Made, &'a PointOutput, &'a str)> {
    let coded: Vec<(&Made, &PointOutput)> =
        made.iter().zip(&output.points).filter(|(m, p)| m.allocated.is_some() && p.layers.is_none()).collect();
    let &(made, point) = coded.get(coded.len() / 2)?;
    let linear = made.summary.tensors.iter().filter(|t| is_linear(&t.name));
    let tensor = linear.max_by(|a, b| a.loss.total_cmp(&b.loss))?;
    Some((made, point, &tensor.name))
}

/// The page of a run, with its tables and figures.
///
/// # Errors
/// Files that cannot be read or written.
pub(crate) fn write_report(
    session: &Session,
    base: &Evaluation,
    made: &[Made],
    output: &RunOutput,
) -> Result<Artifact> {
    let points = made.iter().zip(&output.points).filter_map(|(made, out)| {
        let (evaluation, bytes) = (made.evaluated.as_ref()?, out.bytes?);
        let text = &evaluation.text;
        let choice = evaluation.choices.first();
        Some(report::Point {
            lambda: out.lambda,
            bytes,
            bits_per_weight: out.bits_per_weight?,
            linear_bits_per_weight: out.linear_bits_per_weight?,
            resident_bits_per_weight: out.resident_bits_per_weight,
            nll: text.nll.mean,
            nll_se: text.nll.se,
            nll_change: text.nll_change.mean,
            nll_change_se: text.nll_change.se,
            perplexity: text.perplexity,
            kl: text.kl.mean,
            kl_se: text.kl.se,
            top1: text.top1.mean,
            top1_se: text.top1.se,
            accuracy: choice.map(|c| c.result.all.accuracy),
            accuracy_low: choice.map(|c| c.result.all.interval.0),
            accuracy_high: choice.map(|c| c.result.all.interval.1),
            accuracy_change: choice.map(|c| c.change.mean),
            accuracy_change_se: choice.map(|c| c.change.se),
            predicted_loss: out.predicted_kl.unwrap_or(out.predicted_loss),
            tensors: made
                .summary
                .tensors
                .iter()
                .map(|t| report::Tensor {
                    name: t.name.clone(),
                    weights: t.weights,
                    bits: t.bits,
                    loss: t.loss,
                    formats: t.formats.clone(),
                })
                .collect(),
        })
    });
    let text = &base.text;
    let choice = base.choices.first();
    let mut data = report::Report {
        model: output.model.clone(),
        weights: made.first().map_or(0, |m| m.summary.weights),
        original_bytes: session.model.checkpoint().bytes(),
        base_nll: text.nll.mean,
        base_nll_se: text.nll.se,
        base_perplexity: text.perplexity,
        base_accuracy: choice.map(|c| c.result.all.accuracy),
        sequences: text.sequences,
        context: text.context,
        questions: choice.map_or(0, |c| c.result.all.questions),
        configuration: serde_json::to_string_pretty(session.config).expect("plain data"),
        points: points.collect(),
        sensitivities: vec![],
        map: None,
        levels: None,
    };
    let digest = blake3::hash(serde_json::to_string(&data).expect("plain data").as_bytes()).to_hex().to_string();
    let (calibration, pictured) = (output.artifacts.get("calibrate").cloned(), pictured(made, output));
    let mut inputs = BTreeMap::from([("data".to_string(), digest)]);
    let calibrated = calibration.as_deref().map(Artifact::open).transpose()?;
    inputs.extend(calibrated.map(|artifact| ("calibrate".to_string(), artifact.digest())));
    if let Some((made, _, tensor)) = &pictured {
        let coded = made.encoded.as_ref().map(|(artifact, _)| artifact.digest());
        inputs.extend(coded.map(|digest| ("pictured".to_string(), format!("{tensor} of {digest}"))));
    }
    let identity = Identity {
        stage: "report".into(),
        version: 2,
        inputs,
        config: serde_json::Value::Null,
        seeds: BTreeMap::new(),
    };
    session.console.step("report");
    let artifact = session.store.get_or_make::<crate::PipelineError>(
        &session.config.name,
        &identity,
        session.console,
        |work| {
            if let Some(calibration) = calibration {
                data.sensitivities = sensitivities(&calibration, &session.model.weights())?;
                if let Some((_, parts, tensor)) =
                    pictured.as_ref().and_then(|(m, p, t)| Some((m, parts_of(p, &calibration)?, t)))
                {
                    let (map, levels) = of_matrix(&parts, tensor)?;
                    (data.map, data.levels) = (Some(map), levels);
                }
            }
            Ok(report::write(&data, work.out())?)
        },
    )?;
    session.console.step_done(artifact.cached, artifact.timings().seconds, None);
    Ok(artifact)
}
