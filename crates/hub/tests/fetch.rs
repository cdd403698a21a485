//! Downloads from a hub on this machine.

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;

use common::{COMMIT, ID, Server};
use waterfill_hub::{HubId, Kind, Settings, fetch, fetch_data};
use waterfill_store::{Progress, Silent};

fn model() -> BTreeMap<String, Vec<u8>> {
    let shard = |seed: usize| (0..200_000).map(|i| (i * seed % 251) as u8).collect::<Vec<u8>>();
    let index = r#"{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}"#;
    [
        ("config.json", b"{}".to_vec()),
        ("tokenizer.json", b"{}".to_vec()),
        ("tokenizer_config.json", b"{\"add_bos_token\": true}".to_vec()),
        ("README.md", b"not for us".to_vec()),
        ("original.pth", b"nor this".to_vec()),
        ("model.safetensors.index.json", index.into()),
        ("model-00001-of-00002.safetensors", shard(3)),
        ("model-00002-of-00002.safetensors", shard(7)),
    ]
    .into_iter()
    .map(|(name, bytes)| (name.to_string(), bytes))
    .collect()
}

fn settings(server: &Server, cache: &Path) -> Settings {
    Settings { endpoint: server.endpoint.clone(), cache: cache.into(), token: None, offline: false }
}

fn id(text: &str) -> HubId {
    text.parse().unwrap()
}

fn message(id: &HubId, settings: &Settings) -> String {
    fetch(id, settings, &Silent).unwrap_err().to_string()
}

#[derive(Default)]
struct Notes(Mutex<Vec<String>>);

impl Progress for Notes {
    fn start(&self, _: &str, _: u64) {}
    fn advance(&self, _: u64) {}
    fn note(&self, message: &str) {
        self.0.lock().unwrap().push(message.into());
    }
}

#[test]
fn a_model_is_downloaded_once_and_found_without_network() {
    let (server, cache) = (Server::start(model()), tempfile::tempdir().unwrap());
    let settings = settings(&server, cache.path());
    let snapshot = fetch(&id(ID), &settings, &Silent).unwrap();
    assert_eq!(snapshot.commit, COMMIT);
    // The layout of huggingface_hub, so that it finds the files too.
    let folder = cache.path().join("models--someone--some-model");
    assert_eq!(snapshot.dir, folder.join("snapshots").join(COMMIT));
    assert_eq!(std::fs::read_to_string(folder.join("refs/main")).unwrap(), COMMIT);
    for (name, bytes) in model() {
        let path = snapshot.dir.join(&name);
        match name.as_str() {
            "README.md" | "original.pth" => assert!(!path.exists(), "{name} is not needed"),
            _ => assert_eq!(std::fs::read(path).unwrap(), bytes, "{name}"),
        }
    }
    let before = server.downloads().len();
    assert_eq!(fetch(&id(ID), &settings, &Silent).unwrap(), snapshot);
    assert_eq!(server.downloads().len(), before, "nothing is downloaded twice");

    let offline = Settings { offline: true, endpoint: "http://127.0.0.1:1".into(), ..settings.clone() };
    for name in [ID.to_string(), format!("{ID}@{COMMIT}")] {
        assert_eq!(fetch(&id(&name), &offline, &Silent).unwrap(), snapshot);
    }
    // Without network, and without being told so: the cached commit serves, and is named.
    let (cut, notes) = (Settings { offline: false, ..offline.clone() }, Notes::default());
    assert_eq!(fetch(&id(ID), &cut, &notes).unwrap(), snapshot);
    assert!(notes.0.into_inner().unwrap()[0].contains(&format!("cached commit {COMMIT}")));

    std::fs::remove_file(snapshot.dir.join("model-00002-of-00002.safetensors")).unwrap();
    let text = message(&id(ID), &offline);
    assert!(
        text.contains("model-00002-of-00002.safetensors is not there") && text.contains("HF_HUB_OFFLINE"),
        "{text}"
    );
    let text = message(&id("someone/other"), &offline);
    assert!(text.contains("revision main is not there"), "{text}");
    assert!(message(&id(ID), &cut).contains("cannot be reached"));
}

#[test]
fn a_broken_download_goes_on_where_it_stopped() {
    let (server, cache) = (Server::start(model()), tempfile::tempdir().unwrap());
    let settings = settings(&server, cache.path());
    let shard = "model-00002-of-00002.safetensors";
    server.trouble.lock().unwrap().breaks = Some((shard.into(), 30_000, 5));
    let text = message(&id(ID), &settings);
    assert!(text.contains(shard) && text.contains("goes on where it stopped"), "{text}");
    let snapshot = fetch(&id(ID), &settings, &Silent).unwrap();
    assert_eq!(std::fs::read(snapshot.dir.join(shard)).unwrap(), model()[shard]);
    let ranges: Vec<String> = server.downloads().into_iter().filter(|r| r.starts_with(shard)).collect();
    let expected = ["0", "30000", "60000", "90000", "120000", "150000"].map(|at| format!("{shard} bytes={at}-"));
    assert_eq!(ranges, expected);
}

/// A process that was killed between the last byte and the renaming.
#[test]
fn a_complete_partial_download_is_taken_up() {
    let (server, cache) = (Server::start(model()), tempfile::tempdir().unwrap());
    let blobs = cache.path().join("models--someone--some-model/blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    let shard = "model-00001-of-00002.safetensors";
    let bytes = &model()[shard];
    std::fs::write(blobs.join(format!("{shard}-{}", bytes.len())).with_extension("part"), bytes).unwrap();
    let snapshot = fetch(&id(ID), &settings(&server, cache.path()), &Silent).unwrap();
    assert_eq!(&std::fs::read(snapshot.dir.join(shard)).unwrap(), bytes);
}

#[test]
fn refusals_say_what_to_do() {
    let (server, cache) = (Server::start(model()), tempfile::tempdir().unwrap());
    let mut settings = settings(&server, cache.path());
    let expect = |text: String, words: &[&str]| {
        for word in words {
            assert!(text.contains(word), "expected {word:?} in: {text}");
        }
    };
    expect(message(&id("someone/some-modle"), &settings), &["someone/some-modle", "spelling", "HF_TOKEN"]);
    expect(message(&id(&format!("{ID}@gone")), &settings), &["no revision gone", "tree/main"]);
    server.trouble.lock().unwrap().token = Some("secret".into());
    expect(message(&id(ID), &settings), &["gated", "accept its licence", ID, "HF_TOKEN"]);
    settings.token = Some("wrong".into());
    expect(message(&id(ID), &settings), &["gated", "may read it"]);
    settings.token = Some("secret".into());
    fetch(&id(ID), &settings, &Silent).unwrap();

    let fresh = tempfile::tempdir().unwrap();
    settings.cache = fresh.path().into();
    let with = |name: &str, bytes: Option<&[u8]>| {
        let mut files = server.files.lock().unwrap();
        *files = model();
        match bytes {
            Some(bytes) => files.insert(name.into(), bytes.into()),
            None => files.remove(name),
        };
    };
    with("model-00002-of-00002.safetensors", None);
    expect(message(&id(ID), &settings), &["no model-00002-of-00002.safetensors", "index.json names"]);
    with("tokenizer.json", None);
    expect(message(&id(ID), &settings), &["no tokenizer.json"]);
    with("model.safetensors.index.json", None);
    expect(message(&id(ID), &settings), &["no model.safetensors but original.pth", "safetensors only"]);
    let escape = br#"{"weight_map": {"a": "../../x.safetensors"}}"#;
    std::fs::remove_dir_all(fresh.path()).unwrap();
    with("model.safetensors.index.json", Some(escape));
    expect(message(&id(ID), &settings), &["leaves the directory"]);
    // A cache that cannot be written: a file where its folder should be.
    std::fs::write(cache.path().join("file"), "x").unwrap();
    settings.cache = cache.path().join("file");
    let text = message(&id(ID), &settings);
    assert!(text.contains(ID) && text.contains("config.json"), "{text}");
}

fn patterns(groups: &[&[&str]]) -> Vec<Vec<String>> {
    groups.iter().map(|group| group.iter().map(|p| p.to_string()).collect()).collect()
}

#[test]
fn files_of_a_dataset_are_found_by_patterns() {
    let names =
        ["all/test-00000-of-00002.parquet", "all/test-00001-of-00002.parquet", "all/dev/0000.parquet", "README.md"];
    let files = names.map(|name| (name.to_string(), name.repeat(900).into_bytes()));
    let (server, cache) = (Server::start(files.clone().into()), tempfile::tempdir().unwrap());
    let settings = settings(&server, cache.path());
    let id = HubId::new(Kind::Dataset, ID).unwrap();
    let wanted = patterns(&[&["data/test-*", "all/test-*.parquet", "all/*/*"], &["all/dev-*", "all/dev/*.parquet"]]);
    // The second shard breaks off: what is there is not enough, with network or without.
    server.trouble.lock().unwrap().breaks = Some((names[1].into(), 100, 99));
    let stopped = fetch_data(&id, &wanted, &settings, &Silent).unwrap_err().to_string();
    assert!(stopped.contains(names[1]) && stopped.contains("run the same command again"), "{stopped}");
    let offline = Settings { offline: true, endpoint: "http://127.0.0.1:1".into(), ..settings.clone() };
    let message = |id: &str, wanted: &[Vec<String>]| {
        fetch_data(&id.parse().unwrap(), wanted, &offline, &Silent).unwrap_err().to_string()
    };
    assert!(message(ID, &wanted).contains("revision main is not there"));
    let pinned = HubId::new(Kind::Dataset, &format!("{ID}@{COMMIT}")).unwrap();
    let part = fetch_data(&pinned, &wanted, &offline, &Silent).unwrap_err().to_string();
    assert!(part.contains("1 of 2 files"), "{part}");

    server.trouble.lock().unwrap().breaks = None;
    let snapshot = fetch_data(&id, &wanted, &settings, &Silent).unwrap();
    assert!(snapshot.dir.starts_with(cache.path().join("datasets--someone--some-model")), "{:?}", snapshot.dir);
    for (name, bytes) in &files {
        match name.as_str() {
            "README.md" => assert!(!snapshot.dir.join(name).exists()),
            _ => assert_eq!(&std::fs::read(snapshot.dir.join(name)).unwrap(), bytes, "{name}"),
        }
    }
    assert_eq!(fetch_data(&id, &wanted, &offline, &Silent).unwrap(), snapshot);
    let absent = patterns(&[&["all/validation-*", "all/validation/*"]]);
    let reason = fetch_data(&id, &absent, &settings, &Silent).unwrap_err().to_string();
    let page =
        format!("the dataset has no all/validation-* or all/validation/*; see {}/datasets/{ID}", server.endpoint);
    assert!(reason.contains(&page), "{reason}");
    let unknown = HubId::new(Kind::Dataset, "someone/else").unwrap();
    let reason = fetch_data(&unknown, &wanted, &settings, &Silent).unwrap_err().to_string();
    assert!(reason.contains("no dataset of that name"), "{reason}");
}
