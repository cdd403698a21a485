//! Adaptation lowers the divergence that coding one block has left, and does the same at any number of threads.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::Device;
use waterfill_fixture::{Fixture, Shape, generate};
use waterfill_model::roles::coding_order;
use waterfill_model::{EMBEDDING, Model, Projection, Text, Windows, tokens::Layout};
use waterfill_sequential::{Adaptation, Descended, SequentialSettings};

struct Case {
    _dir: tempfile::TempDir,
    fixture: Fixture,
    model: Model,
    windows: Windows,
}

fn case() -> Case {
    let dir = tempfile::tempdir().unwrap();
    generate(dir.path(), 5, &Shape::default()).unwrap();
    let fixture = Fixture::at(dir.path());
    let model = Model::open(&fixture.model, &Device::Cpu).unwrap();
    let text = std::fs::read_to_string(&fixture.calibration).unwrap();
    let ids = Text::open(&fixture.model, &model.config).unwrap().encode(&text).unwrap();
    let sizes = (model.config.vocab, model.config.positions);
    let windows = Windows::cut((&[], &ids), 24, 32, Layout::Spread, sizes, &fixture.calibration).unwrap();
    Case { _dir: dir, fixture, model, windows }
}

/// The weights of block 0, coarsely rounded.
fn rounded(model: &Model) -> BTreeMap<String, Vec<f32>> {
    let round = |(name, shape): (String, [usize; 2])| {
        let mut values = model.checkpoint().read_f32(&name, &shape).unwrap();
        let largest = values.iter().fold(0f32, |m, v| m.max(v.abs()));
        values.iter_mut().for_each(|v| *v = (*v / largest * 3.0).round() * largest / 3.0);
        (name, values)
    };
    model.weights().into_iter().filter(|(name, _)| (1..5).contains(&coding_order(name))).map(round).collect()
}

fn adapted(case: &Case, rate: f64) -> (Descended, Vec<f32>) {
    let names: BTreeSet<String> = case.model.weights().into_iter().map(|w| w.0).collect();
    let copy = Model::open(&case.fixture.model, &Device::Cpu).unwrap();
    let settings = SequentialSettings { steps: 40, rate, batch_tokens: 192 };
    let mut adaptation = Adaptation::new(&case.model, copy, &case.windows, &names, settings).unwrap();
    let descended = adaptation.coded(rounded(&case.model)).unwrap().expect("blocks are left");
    assert!(adaptation.weights(&Projection::Query.weight(0).name()).is_none(), "what is coded stays");
    assert!(adaptation.weights(EMBEDDING).is_none(), "an embedding does not move");
    let weights = adaptation.weights(&Projection::Query.weight(1).name()).unwrap().to_vec();
    let rest = (1..case.model.config.layers).flat_map(|l| Projection::ALL.map(move |p| (p.weight(l).name(), vec![])));
    assert_eq!(adaptation.coded(rest.collect()).unwrap(), None, "nothing is left");
    (descended, weights)
}

#[test]
fn weights_that_are_left_make_up_for_coded_ones() {
    let case = case();
    let (still, unmoved) = adapted(&case, 1e-9);
    let (moved, weights) = adapted(&case, 0.05);
    assert!(still.from > 1e-4, "{still:?}");
    assert!(moved.to < 0.9 * still.to, "{moved:?}, without any step {still:?}");
    assert_ne!(weights, unmoved);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let alone = pool.install(|| adapted(&case, 0.05));
    assert_eq!((moved, weights), alone);
}

#[test]
fn tensors_are_coded_from_the_first_to_the_last() {
    let names = [
        EMBEDDING,
        "model.layers.0.self_attn.v_proj.weight",
        "model.layers.0.self_attn.o_proj.weight",
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.0.mlp.down_proj.weight",
        "model.layers.10.self_attn.q_proj.weight",
        "lm_head.weight",
    ];
    assert!(names.map(coding_order).is_sorted_by(|a, b| a < b));
    assert_eq!(coding_order(names[1]), coding_order("model.layers.0.self_attn.q_proj.weight"));
}
