//! Models whose output head is the embedding, and that have a head in their files all the same.

use candle_core::Device;
use waterfill_checkpoint::Checkpoint;
use waterfill_checkpoint::writer::{Data, Entry, write_checkpoint};
use waterfill_fixture::{Shape, generate};
use waterfill_model::Model;

const HEAD: &str = "lm_head.weight";

/// A tied model with what `change` makes of its embedding as a head.
fn with_head(change: impl Fn(&mut Vec<u8>)) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let fixture = generate(&dir.path().join("fixture"), 1, &Shape::default()).unwrap();
    let source = Checkpoint::open(&fixture.model).unwrap();
    let mut entries = Vec::new();
    let mut add = |name: &str, of: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let info = source.tensor(of).unwrap();
        let mut bytes = source.read_raw(of).unwrap();
        change(&mut bytes);
        let data = Data::keep(dir.path().join(name), &bytes).unwrap();
        let (shape, bytes) = (info.shape.clone(), bytes.len() as u64);
        entries.push(Entry { name: name.into(), shape, plain: Some(info.element), data, bytes });
    };
    source.tensors().for_each(|info| add(&info.name, &info.name, &|_| {}));
    add(HEAD, "model.embed_tokens.weight", &change);
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    let model = dir.path().join("model");
    std::fs::create_dir(&model).unwrap();
    write_checkpoint(&fixture.model, &model, &entries, false).unwrap();
    dir
}

/// A copy of the embedding is neither read nor written again.
#[test]
fn a_copy_of_the_embedding_is_left_out() {
    let dir = with_head(|_| {});
    let model = Model::open(&dir.path().join("model"), &Device::Cpu).unwrap();
    assert!(Checkpoint::open(dir.path().join("model")).unwrap().contains(HEAD));
    assert!(!model.checkpoint().contains(HEAD));
    assert_eq!(
        model.checkpoint().weights(),
        model.config.tensors().iter().map(|(_, s)| s.iter().product::<usize>() as u64).sum::<u64>()
    );
}

/// Another head would be measured by nobody and used by some.
#[test]
fn another_head_is_refused() {
    let dir = with_head(|bytes| bytes[7] ^= 1);
    let message = Model::open(&dir.path().join("model"), &Device::Cpu).err().unwrap().to_string();
    assert!(message.contains(HEAD) && message.contains("tie_word_embeddings"), "{message}");
}
