//! The report of a run: its tables, figures and page.

use std::collections::BTreeMap;

use waterfill_model::roles::is_linear;
use waterfill_pipeline::{
    ArtifactRef, Context, Engine, Estimate, EvaluationResult, PipelineError, PointArtifacts, PointOutput, RunArtifacts,
    Stage,
};
use waterfill_report as report;
use waterfill_store::{Identity, Work};

use crate::error::{ExperimentError, Result};
use crate::matrix_figures::{of_matrix, parts_of, sensitivities};

/// Version of the artifact; raised when the report changes.
const VERSION: u32 = 3;

/// The page of a run with its tables and figures; `None` where the original was not evaluated.
pub(crate) fn write_report(context: &Context, run: &RunArtifacts) -> Result<Option<ArtifactRef>> {
    let Some(base) = &run.base else { return Ok(None) };
    let stage = Report { data: data(context, base, run), run, pictured: pictured(run) };
    Ok(Some(Engine::running(context).make(&stage)?))
}

/// A run's page with its tables and figures.
struct Report<'a> {
    data: report::Report,
    run: &'a RunArtifacts,
    pictured: Option<Pictured<'a>>,
}

/// The matrix whose tiles and levels are drawn.
struct Pictured<'a> {
    encoded: &'a ArtifactRef,
    point: &'a PointOutput,
    tensor: &'a str,
}

impl Stage for Report<'_> {
    fn label(&self) -> String {
        "report".into()
    }

    fn identity(&self, _context: &Context) -> waterfill_pipeline::Result<Identity> {
        let text = serde_json::to_string(&self.data).expect("plain data");
        let digest = blake3::hash(text.as_bytes()).to_hex().to_string();
        let mut inputs = BTreeMap::from([("data".to_string(), digest)]);
        inputs.insert("calibrate".into(), self.run.calibration.digest());
        if let Some(Pictured { encoded, tensor, .. }) = &self.pictured {
            inputs.insert("pictured".into(), format!("{tensor} of {}", encoded.digest()));
        }
        let (config, seeds) = (serde_json::Value::Null, BTreeMap::new());
        Ok(Identity { stage: "report".into(), version: VERSION, inputs, config, seeds })
    }

    fn estimate(&self, _context: &Context) -> Estimate {
        Estimate::default()
    }

    fn run(&self, context: &Context, work: &Work) -> waterfill_pipeline::Result<()> {
        self.write(context, work).map_err(|error| match error {
            ExperimentError::Pipeline(error) => *error,
            other => PipelineError::Stage { stage: "report".into(), source: Box::new(other) },
        })
    }
}

impl Report<'_> {
    fn write(&self, context: &Context, work: &Work) -> Result<()> {
        let mut data = self.data.clone();
        let calibration = self.run.calibration.dir();
        data.sensitivities = sensitivities(calibration, &context.model.weights())?;
        if let Some(Pictured { point, tensor, .. }) = &self.pictured
            && let Some(parts) = parts_of(point, calibration)
        {
            let (map, levels) = of_matrix(&parts, tensor)?;
            (data.map, data.levels) = (Some(map), levels);
        }
        Ok(report::write(&data, work.out())?)
    }
}

/// The linear layer of the middle checkpoint whose allocation predicts the largest loss.
fn pictured(run: &RunArtifacts) -> Option<Pictured<'_>> {
    let points = run.points.iter().zip(&run.output.points);
    let coded: Vec<(&PointArtifacts, &PointOutput)> =
        points.filter(|(made, point)| made.allocated.is_some() && point.quality_layers.is_none()).collect();
    let &(made, point) = coded.get(coded.len() / 2)?;
    let linear = made.summary.tensors.iter().filter(|t| is_linear(&t.name));
    let tensor = linear.max_by(|a, b| a.loss.total_cmp(&b.loss))?;
    Some(Pictured { encoded: &made.encoded.as_ref()?.0, point, tensor: &tensor.name })
}

/// Everything that tables and figures are made from, without the figures of matrices.
fn data(context: &Context, base: &EvaluationResult, run: &RunArtifacts) -> report::Report {
    let points = run.points.iter().zip(&run.output.points).filter_map(|(made, out)| {
        let (evaluation, bytes) = (made.evaluated.as_ref()?, out.bytes?);
        let text = &evaluation.text;
        let choice = evaluation.choices.first();
        Some(report::OperatingPoint {
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
            predicted_kl: out.predicted_kl.unwrap_or(out.predicted_loss),
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
    report::Report {
        model: run.output.model.clone(),
        weights: run.points.first().map_or(0, |m| m.summary.weights),
        original_bytes: context.model.checkpoint().bytes(),
        base_nll: text.nll.mean,
        base_nll_se: text.nll.se,
        base_perplexity: text.perplexity,
        base_accuracy: choice.map(|c| c.result.all.accuracy),
        sequences: text.sequences,
        context: text.context,
        questions: choice.map_or(0, |c| c.result.all.questions),
        configuration: serde_json::to_string_pretty(context.config).expect("plain data"),
        points: points.collect(),
        sensitivities: vec![],
        map: None,
        levels: None,
    }
}
