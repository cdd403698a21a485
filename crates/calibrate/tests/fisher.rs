//! Calibration against direct computation, and its reproducibility.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use waterfill_calibrate::{
    CalibrateSettings, HessianKind, HessianSettings, HessianWeighting, Labels, Sensitivities, calibrate,
};
use waterfill_fixture::{Fixture, Shape, generate};
use waterfill_model::{EMBEDDING, Model, Projection, Text, Windows, lm_head_name, tokens::Layout};
use waterfill_store::{Silent, Work};

fn settings() -> CalibrateSettings {
    CalibrateSettings {
        labels: Labels::Data,
        seed: 3,
        folds: 2,
        hessian: HessianSettings { kind: HessianKind::Full, block: 0, weighting: HessianWeighting::Plain },
        gradient_covariance: HessianKind::Full,
        batch_tokens: 24,
    }
}

fn windows(fixture: &Fixture, model: &Model, sequences: usize) -> Windows {
    let text = std::fs::read_to_string(&fixture.calibration).unwrap();
    let ids = Text::open(&fixture.model, &model.config).unwrap().encode(&text).unwrap();
    let sizes = (model.config.vocab, model.config.positions);
    Windows::cut((&[], &ids), 12, sequences, Layout::Spread, sizes, &fixture.calibration).unwrap()
}

/// No further text.
fn none() -> Windows {
    Windows { context: 12, rows: vec![] }
}

fn values(t: &Tensor) -> Vec<f64> {
    t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn close(what: &str, got: &[f64], want: &[f64]) {
    assert_eq!(got.len(), want.len(), "{what}");
    let scale = want.iter().fold(0f64, |m, v| m.max(v.abs()));
    assert!(scale > 0.0, "{what}: all zero");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() < 1e-4 * scale + 1e-3 * w.abs(), "{what}[{i}]: {g}, directly {w}");
    }
}

/// Sums over tokens written out as loops: sum_t g_ti^2 x_tj^2 for every weight (i, j).
fn direct(gradient: &[f64], input: &[f64], rows: usize, cols: usize) -> Vec<f64> {
    let mut fisher = vec![0.0; rows * cols];
    for (g, x) in gradient.chunks(rows).zip(input.chunks(cols)) {
        for i in 0..rows {
            for j in 0..cols {
                fisher[i * cols + j] += g[i] * g[i] * x[j] * x[j];
            }
        }
    }
    fisher
}

fn tiles(fisher: &[f64], rows: usize, cols: usize) -> Vec<f64> {
    let across = cols.div_ceil(16);
    let mut sums = vec![0.0; rows.div_ceil(16) * across];
    (0..rows * cols).for_each(|n| sums[n / cols / 16 * across + n % cols / 16] += fisher[n]);
    sums
}

/// Fisher check: every statistic of every weight against per-token loops over gradients that one
/// whole-model backward pass gives.
#[test]
fn fisher_equals_direct_per_token_computation() {
    for tied in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let shape = Shape { hidden: 32, intermediate: 40, layers: 2, tied, ..Shape::default() };
        let fixture = generate(dir.path(), 9, &shape).unwrap();
        let model = Model::open(&fixture.model, &Device::Cpu).unwrap();
        let windows = windows(&fixture, &model, 4);
        let out = tempfile::tempdir().unwrap();
        calibrate(&model, &windows, &none(), &settings(), &Work::begin(out.path()).unwrap(), &Silent).unwrap();
        let sensitivities = Sensitivities::open(&out.path().join("out")).unwrap().damped(Some(0.0));

        // All sequences at once, blocks chained by hand.
        let batch = windows.batches(10_000);
        let ids: Vec<u32> = batch[0].concat();
        let mut inputs = Vec::new();
        let collect = |_, x| -> Result<(), waterfill_model::ModelError> {
            inputs.push(x);
            Ok(())
        };
        model.embed(&batch, collect).unwrap();
        for i in 0..2 {
            inputs.push(model.block(i).unwrap().forward(&inputs[i]).unwrap());
        }
        let head = model.head().unwrap();
        let normalised = head.normalise(&inputs[2]).unwrap().reshape(((), 32)).unwrap();
        let logits = values(&head.logits(&normalised).unwrap());
        let (vocab, tokens) = (model.config.vocab, ids.len());
        let targets: Vec<u32> = (0..4).flat_map(|r| windows.targets(r).to_vec()).collect();
        let mut logit_gradient = Vec::new();
        for (row, &target) in logits.chunks(vocab).zip(&targets) {
            let sum: f64 = row.iter().map(|l| l.exp()).sum();
            let p = |i: usize| row[i].exp() / sum - if i == target as usize { 1.0 } else { 0.0 };
            logit_gradient.extend((0..vocab).map(p));
        }
        let mean = |fisher: Vec<f64>| fisher.iter().map(|v| v / tokens as f64).collect::<Vec<f64>>();
        let projection = mean(direct(&logit_gradient, &values(&normalised), vocab, 32));
        let gradient = Tensor::from_vec(logit_gradient, (tokens, vocab), &Device::Cpu).unwrap();
        let gradient = head.logits_vjp(&gradient.to_dtype(DType::F32).unwrap()).unwrap();
        let mut gradient = head.normalise_vjp(&inputs[2], &gradient.reshape(inputs[2].shape()).unwrap()).unwrap();

        let check = |name: &str, rows: usize, cols: usize, fisher: &[f64]| {
            let s = sensitivities.read(name, rows, cols).unwrap();
            // Both folds have as many tokens, so their mean is the total.
            let mean_tiles = ((&s.tile_fisher[0] + &s.tile_fisher[1]) / 2.0).iter().copied().collect::<Vec<_>>();
            close(&format!("{name} tiles"), &mean_tiles, &tiles(fisher, rows, cols));
            let by_row: Vec<f64> = fisher.chunks(cols).map(|r| r.iter().sum()).collect();
            close(&format!("{name} rows"), s.row_fisher.as_slice().unwrap(), &by_row);
            let by_col: Vec<f64> = (0..cols).map(|j| fisher.iter().skip(j).step_by(cols).sum()).collect();
            close(&format!("{name} columns"), s.col_fisher.as_slice().unwrap(), &by_col);
        };
        for index in (0..2).rev() {
            let vjp = model.block(index).unwrap().vjp(&inputs[index], &gradient).unwrap();
            for (trace, projection) in vjp.linears.iter().zip(Projection::ALL) {
                let name = projection.weight(index).name();
                let (rows, cols) = (trace.gradient.dim(1).unwrap(), trace.input.dim(1).unwrap());
                let (g, x) = (values(&trace.gradient), values(&trace.input));
                check(&name, rows, cols, &mean(direct(&g, &x, rows, cols)));
                let moment = sensitivities.hessian(&name).unwrap().unwrap();
                assert_eq!((moment.blocks(), moment.side), (1, cols));
                let moment: Vec<f64> = moment.block(0).iter().map(|&v| f64::from(v)).collect();
                let mut want = vec![0.0; cols * cols];
                for x in x.chunks(cols) {
                    (0..cols * cols).for_each(|n| want[n] += x[n / cols] * x[n % cols] / tokens as f64);
                }
                close(&format!("{name} Hessian"), &moment, &want);
                // Outputs by the energy of inputs.
                let moment = sensitivities.gradient_covariance(&name).unwrap().unwrap();
                let moment: Vec<f64> = moment.block(0).iter().map(|&v| f64::from(v)).collect();
                let (mut want, mut total) = (vec![0.0; rows * rows], 0.0);
                for (g, x) in g.chunks(rows).zip(x.chunks(cols)) {
                    let energy = x.iter().map(|x| x * x).sum::<f64>();
                    total += energy;
                    (0..rows * rows).for_each(|n| want[n] += energy * g[n / rows] * g[n % rows]);
                }
                want.iter_mut().for_each(|w| *w /= total);
                close(&format!("{name} gradient covariance"), &moment, &want);
            }
            gradient = vjp.input_gradient;
        }
        let mut lookup = vec![0.0; vocab * 32];
        for (&id, g) in ids.iter().zip(values(&gradient).chunks(32)) {
            (0..32).for_each(|j| lookup[id as usize * 32 + j] += g[j] * g[j] / tokens as f64);
        }
        if tied {
            lookup.iter_mut().zip(&projection).for_each(|(l, p)| *l += p);
        } else {
            check(lm_head_name(&model.config), vocab, 32, &projection);
        }
        check(EMBEDDING, vocab, 32, &lookup);
    }
}

/// E over labels drawn from p of (p_i - [y = i])^2 is p_i (1 - p_i): the sampled Fisher of the head
/// must not depend on the labels drawn.
#[test]
fn head_fisher_under_sampled_labels_is_in_closed_form() {
    let dir = tempfile::tempdir().unwrap();
    let shape = Shape { hidden: 32, intermediate: 40, layers: 1, tied: false, ..Shape::default() };
    let fixture = generate(dir.path(), 9, &shape).unwrap();
    let model = Model::open(&fixture.model, &Device::Cpu).unwrap();
    let windows = windows(&fixture, &model, 4);
    let head = |seed| {
        let out = tempfile::tempdir().unwrap();
        let settings = CalibrateSettings { labels: Labels::Sampled, seed, ..settings() };
        calibrate(&model, &windows, &none(), &settings, &Work::begin(out.path()).unwrap(), &Silent).unwrap();
        let all = Sensitivities::open(&out.path().join("out")).unwrap().damped(Some(0.0));
        let vocab = model.config.vocab;
        (all.read("lm_head.weight", vocab, 32).unwrap(), all.read(EMBEDDING, vocab, 32).unwrap())
    };
    let ((a, below_a), (b, below_b)) = (head(1), head(2));
    assert_eq!(a.row_fisher, b.row_fisher);
    assert_ne!(below_a.row_fisher, below_b.row_fisher, "labels do matter below the head");
    assert!(a.row_g2.iter().all(|&v| v > 0.0 && v <= 0.25), "p (1 - p) is at most a quarter");
}

fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap())
        .map(|e| (e.file_name().to_string_lossy().into_owned(), std::fs::read(e.path()).unwrap()))
        .collect();
    all.sort();
    all
}

#[test]
fn identical_output_at_one_and_two_threads() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = generate(dir.path(), 9, &Shape::default()).unwrap();
    let model = Model::open(&fixture.model, &Device::Cpu).unwrap();
    let (windows, further) = windows(&fixture, &model, 20).split(9);
    for (kind, weighting) in
        [(HessianKind::Full, HessianWeighting::Plain), (HessianKind::BlockDiagonal, HessianWeighting::Gradient)]
    {
        let run = |threads| {
            let out = tempfile::tempdir().unwrap();
            let hessian = HessianSettings { kind, block: 24, weighting };
            let settings = CalibrateSettings { labels: Labels::Sampled, hessian, ..settings() };
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                calibrate(&model, &windows, &further, &settings, &Work::begin(out.path()).unwrap(), &Silent)
            })
            .unwrap();
            files(&out.path().join("out"))
        };
        assert!(run(1) == run(2), "{kind:?} {weighting:?}: bytes differ");
    }
}

/// Batches are a matter of speed and memory: other ones change rounding only.
#[test]
fn other_batches_give_the_same_up_to_rounding() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = generate(dir.path(), 9, &Shape::default()).unwrap();
    let model = Model::open(&fixture.model, &Device::Cpu).unwrap();
    // Batches end with the eight parts of the text.
    let (windows, further) = windows(&fixture, &model, 40).split(16);
    let run = |batch_tokens| {
        let out = tempfile::tempdir().unwrap();
        let settings = CalibrateSettings { labels: Labels::Sampled, batch_tokens, folds: 1, ..settings() };
        let work = Work::begin(out.path()).unwrap();
        let summary = calibrate(&model, &windows, &further, &settings, &work, &Silent).unwrap();
        let all = Sensitivities::open(&out.path().join("out")).unwrap().damped(Some(0.0));
        let mut numbers = Vec::new();
        for (name, [rows, cols]) in model.weights() {
            let s = all.read(&name, rows, cols).unwrap();
            let fisher = s.tile_fisher[0].iter().chain(&s.row_fisher).chain(&s.col_fisher);
            numbers.push((name.clone(), fisher.copied().collect::<Vec<f64>>()));
            for moment in [all.hessian(&name).unwrap(), all.gradient_covariance(&name).unwrap()].into_iter().flatten() {
                numbers.push((name.clone(), moment.block(0).iter().map(|&v| f64::from(v)).collect()));
            }
        }
        (summary.nll, numbers)
    };
    let (one, two, all) = (run(12), run(24), run(1000));
    for (other, what) in [(&two, "two sequences"), (&all, "all sequences of a part")] {
        assert!((one.0 - other.0).abs() < 1e-6 * one.0, "{what}: nll {} and {}", one.0, other.0);
        assert_eq!(one.1.len(), other.1.len());
        for ((name, a), (_, b)) in one.1.iter().zip(&other.1) {
            close(&format!("{name}, {what}"), a, b);
        }
    }
    assert!(one.1.iter().zip(&all.1).any(|(a, b)| a.1 != b.1), "not one number differs: were there other batches?");
}

/// With tokens all alike it makes no difference which of them are read forward only; with tokens weighted by their
/// gradients, further ones count as much as the mean, first ones of a sequence as the mean of first ones.
#[test]
fn further_text_counts_in_hessians() {
    let dir = tempfile::tempdir().unwrap();
    let fixture =
        generate(dir.path(), 9, &Shape { hidden: 32, intermediate: 40, layers: 2, ..Shape::default() }).unwrap();
    let model = Model::open(&fixture.model, &Device::Cpu).unwrap();
    let all = windows(&fixture, &model, 24);
    let (some, further) = all.clone().split(8);
    let run = |windows: &Windows, further: &Windows, weighting| {
        let out = tempfile::tempdir().unwrap();
        let hessian = HessianSettings { kind: HessianKind::Full, block: 0, weighting };
        let settings = CalibrateSettings { hessian, folds: 1, ..settings() };
        let summary =
            calibrate(&model, windows, further, &settings, &Work::begin(out.path()).unwrap(), &Silent).unwrap();
        let found = Sensitivities::open(&out.path().join("out")).unwrap().damped(Some(0.0));
        let block = |(name, _): (String, [usize; 2])| {
            let hessian = found.hessian(&name).unwrap();
            (name, hessian.map(|h| h.block(0).iter().map(|&v| f64::from(v)).collect::<Vec<f64>>()))
        };
        (summary, model.weights().into_iter().map(block).collect::<Vec<_>>())
    };
    let (parts, whole) = (run(&some, &further, HessianWeighting::Plain), run(&all, &none(), HessianWeighting::Plain));
    for ((name, own), (_, other)) in parts.1.iter().zip(&whole.1) {
        assert_eq!(own.is_some(), other.is_some());
        own.iter().zip(other).for_each(|(own, other)| close(name, own, other));
    }
    let weighted = |further: &Windows| run(&some, further, HessianWeighting::Gradient).0.hessians;
    let (without, with) = (weighted(&none()), weighted(&further));
    for (name, alone) in &without {
        let more = with[name].effective_tokens_per_column;
        assert!(more > alone.effective_tokens_per_column, "{name}: {more} tokens after {alone:?}");
    }
}

/// Progress that stops the process, as it were, at a unit.
struct Until(std::sync::atomic::AtomicI64);

impl waterfill_store::Progress for Until {
    fn start(&self, _: &str, _: u64) {}
    fn advance(&self, _: u64) {
        let left = self.0.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
        assert!(left > 0, "stopped on purpose");
    }
}

#[test]
fn a_stopped_calibration_goes_on_to_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let shape = Shape { hidden: 32, intermediate: 40, layers: 2, ..Shape::default() };
    let fixture = generate(dir.path(), 9, &shape).unwrap();
    let model = Model::open(&fixture.model, &Device::Cpu).unwrap();
    let (windows, further) = windows(&fixture, &model, 14).split(5);
    let settings = CalibrateSettings { labels: Labels::Sampled, ..settings() };
    let whole = tempfile::tempdir().unwrap();
    let summary =
        calibrate(&model, &windows, &further, &settings, &Work::begin(whole.path()).unwrap(), &Silent).unwrap();
    let stopped = tempfile::tempdir().unwrap();
    let mut stops = 0;
    // Stop again and again, each time a little further.
    for units in 3.. {
        let work = Work::begin(stopped.path()).unwrap();
        let progress = Until(units.into());
        let run = std::panic::AssertUnwindSafe(|| calibrate(&model, &windows, &further, &settings, &work, &progress));
        match std::panic::catch_unwind(run) {
            Ok(done) => {
                assert_eq!(done.unwrap(), summary);
                break;
            }
            Err(_) => stops += 1,
        }
    }
    assert!(stops > 5, "{stops} stops");
    assert_eq!(files(&whole.path().join("out")), files(&stopped.path().join("out")));
}
