//! Records of runs: lists, comparisons, and what may be removed.

mod common;

use common::{Place, files, pipeline};

fn names(found: &serde_json::Value) -> Vec<String> {
    found.as_array().unwrap().iter().map(|r| r["label"].as_str().unwrap_or("alone").to_string()).collect()
}

#[test]
fn runs_are_listed_compared_and_collected() {
    let place = Place::new();
    let sweep = "sweep:\n  runs: [{label: fine}, {label: coarse, allocate.lambdas: [1e-5]}]\n";
    place.write("s.yaml", &(pipeline("lambdas: [1e-7]") + "tags: [first]\n" + sweep));
    place.json(&["sweep", "s.yaml"]);
    place.write("p.yaml", &pipeline("lambdas: [1e-6], granularity: channel"));
    place.json(&["run", "p.yaml"]);

    let all = place.json(&["runs"]);
    assert_eq!(all.as_array().unwrap().len(), 3);
    let filtered = |arguments: &[&str]| {
        let mut found = names(&place.json(&[&["runs"], arguments].concat()));
        found.sort();
        found
    };
    assert_eq!(filtered(&["--tag", "first"]), ["coarse", "fine"]);
    assert_eq!(filtered(&["--sweep", "s"]), ["coarse", "fine"]);
    assert_eq!(filtered(&["--model", "fixture"]).len(), 3);
    assert!(filtered(&["--model", "other"]).is_empty() && filtered(&["--since", "2999"]).is_empty());
    assert_eq!(filtered(&["--since", "2020-01"]).len(), 3);
    let bits = |label: &str| {
        let run = all.as_array().unwrap().iter().find(|r| r["label"] == label).unwrap();
        run["output"]["points"][0]["bits_per_weight"].as_f64().unwrap()
    };
    let limit = format!("bits_per_weight<{}", (bits("fine") + bits("coarse")) / 2.0);
    assert!(!filtered(&["--where", &limit]).contains(&"fine".to_string()));
    assert!(filtered(&["--where", &limit, "--where", "kl<0"]).is_empty());
    assert!(place.fails(&["runs", "--where", "kl=1"]).contains("kl<0.01"));
    assert!(place.fails(&["runs", "--where", "kll<1"]).contains("no figure kll"));
    let text = place.ok(&["runs"]);
    assert!(text.contains("s: coarse [first]") && text.lines().count() == 4, "{text}");

    // Side by side: what was set, paired differences, tensors.
    let both = place.json(&["compare", "fine", "coarse"]);
    assert_eq!(both["settings"]["allocate.lambdas"], serde_json::json!([[1e-7], [1e-5]]));
    let pair = &both["points"][0];
    let (change, kl) = (&pair["kl_change"], &pair["kl"]);
    let difference = kl[1].as_f64().unwrap() - kl[0].as_f64().unwrap();
    assert!((change["mean"].as_f64().unwrap() - difference).abs() < 1e-9 && change["se"].as_f64().unwrap() > 0.0);
    assert!(difference > 0.0 && pair["accuracy_change"]["mean"].is_number() && pair["nll_change"]["se"].is_number());
    assert!(both["tensors"].as_array().unwrap().len() > 5);
    let same = place.json(&["compare", "fine", "fine"]);
    assert_eq!(same["points"][0]["kl_change"], serde_json::json!({"mean": 0.0, "se": 0.0}));
    assert!(place.ok(&["compare", "fine", "coarse"]).contains("allocate.lambdas: "));
    // Another text of as many sequences is not paired.
    place.write("q.yaml", &pipeline("lambdas: [1e-7]").replace("sequences: 16,", "sequences: 16, part: [0, 0.9],"));
    place.json(&["run", "q.yaml", "--store", "other"]);
    place.json(&["run", "p.yaml", "--store", "other"]);
    let others = place.json(&["runs", "--store", "other"]);
    let id = |n: usize| others[n]["id"].as_str().unwrap().to_string();
    let both = place.json(&["compare", &id(0), &id(1), "--store", "other"]);
    assert!(both["settings"]["evaluate.part"].is_array() && both["points"][0]["kl_change"].is_null(), "{both}");
    assert!(both["points"][0]["accuracy_change"].is_object(), "{both}");
    assert!(place.fails(&["compare", "fine", "nothing"]).contains("waterfill runs"));
    assert!(place.fails(&["compare", "fine", "fixture"]).contains("could be"));

    // Pictures of one matrix.
    let drawn = place.ok(&["map", "fine", "layers.1.mlp.up_proj", "--out", "maps"]);
    for image in drawn.lines() {
        assert!(place.path(image).is_file() && place.path(&image.replace(".png", ".svg")).is_file(), "{image}");
    }
    assert_eq!(drawn.lines().count(), 2, "tiles and levels: {drawn}");
    let svg = std::fs::read_to_string(place.path("maps/model.layers.1.mlp.up_proj.weight-tiles.svg")).unwrap();
    assert!(svg.contains("Fisher information") && svg.contains("% of tiles"), "{svg}");
    assert!(place.fails(&["map", "fine", "up_proj"]).contains("could be"));
    assert!(place.fails(&["map", "fine", "layers.9.mlp.up_proj"]).contains("no matrix layers.9.mlp.up_proj"));
    assert!(place.fails(&["map", "fine", "layers.1.mlp.up_proj", "--point", "7"]).contains("expected 0 to 0"));

    // Nothing goes that a run needs, nothing without being asked for, and nothing that is no artifact.
    std::fs::write(place.path("results/fixture/notes.txt"), "mine").unwrap();
    std::fs::create_dir_all(place.path("results/fixture/encode/checkpoint-of-mine")).unwrap();
    assert_eq!(place.json(&["gc", "--dry-run"])["artifacts"], serde_json::json!([]));
    let before = files(&place.path("results"));
    let message = place.fails(&["gc", "--forget", "coarse"]);
    assert!(message.contains("--yes"), "{message}");
    assert!(files(&place.path("results")) == before);
    let gone = place.json(&["gc", "--forget", "coarse", "--yes"]);
    assert_eq!((gone["records"].as_array().unwrap().len(), gone["kept"].as_u64()), (1, Some(2)));
    assert!(gone["bytes"].as_u64().unwrap() > 0 && gone["stages"]["encode"][0] == 1);
    assert!(gone["stages"]["calibrate"].is_null(), "others need it");
    assert_eq!(names(&place.json(&["runs"])).len(), 2);
    assert!(place.path("results/fixture/notes.txt").exists());
    assert!(place.path("results/fixture/encode/checkpoint-of-mine").exists());
    // What stays is whole: the other runs find everything.
    let planned = place.json(&["sweep", "p.yaml", "--dry-run"]);
    assert_eq!(planned["seconds"].as_f64(), Some(0.0));
    // A second run of the same is the same run, and one that does not go as far takes nothing from it.
    place.json(&["run", "p.yaml"]);
    place.json(&["calibrate", "p.yaml"]);
    let left = place.json(&["runs"]);
    assert_eq!(names(&left).len(), 2);
    assert!(left.as_array().unwrap().iter().all(|r| r["until"] == "report"), "{left}");
    assert_eq!(place.json(&["gc", "--dry-run"])["artifacts"], serde_json::json!([]));
}
