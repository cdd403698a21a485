//! Writing quality layers.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use waterfill_codec::syntax::header::check_of;

use crate::error::{AtPath, CheckpointError, Result, TensorError};
use crate::open::Checkpoint;
use crate::quality_layers::quality_layer_name;
use crate::read_back::read_back;
use crate::safetensors_file::SafetensorsFile;
use crate::shard_mark::{ShardMark, digest_of_marks};
use crate::types::{MARK_KEY, QualityLayerMark};
use crate::writer::compare::{check_tensor_names, compare_layers};
use crate::writer::entry::Entry;

/// Writes refinement layers next to the base shards of the compressed checkpoint in `dir`. Entries of a layer are written in
/// their order, most important first; safetensors' own writer would sort them. All layers are read back and decoded.
///
/// # Errors
/// Bytes that cannot be read, files that cannot be written, and a base that is not there.
pub fn write_quality_layers(dir: &Path, layers: &[Vec<Entry>]) -> Result<()> {
    let base = Checkpoint::open_base(dir)?;
    layers.iter().try_for_each(|entries| check_tensor_names(dir, entries))?;
    let mut checks: Vec<Vec<u64>> = Vec::new();
    let mut marks: Vec<ShardMark> = base.shards.iter().filter_map(|s| s.mark.clone()).collect();
    for (n, entries) in layers.iter().enumerate() {
        let path = dir.join(quality_layer_name(n + 1, layers.len()));
        let layer = QualityLayerMark { number: n + 1, of: layers.len(), before: digest_of_marks(marks.iter()) };
        let mark = ShardMark { layer: Some(layer), ..ShardMark::blank(String::new(), &BTreeMap::new()) };
        let mut header = serde_json::Map::new();
        let text = serde_json::to_string(&mark).expect("plain data");
        header.insert("__metadata__".into(), serde_json::json!({ MARK_KEY: text }));
        let mut at = 0;
        for entry in entries {
            let offsets = [at, at + entry.bytes];
            let info = serde_json::json!({"dtype": "U8", "shape": [entry.bytes], "data_offsets": offsets});
            header.insert(entry.name.clone(), info);
            at = offsets[1];
        }
        let mut header = serde_json::to_vec(&header).expect("plain data");
        header.resize(header.len().next_multiple_of(8), b' ');
        let file = std::fs::File::create(&path).at(&path)?;
        let mut out = std::io::BufWriter::new(file);
        let mut write = |bytes: &[u8]| out.write_all(bytes).at(&path);
        write(&(header.len() as u64).to_le_bytes())?;
        write(&header)?;
        checks.push(Vec::with_capacity(entries.len()));
        for entry in entries {
            let bytes = entry.read()?;
            if bytes.len() as u64 != entry.bytes {
                let reason = TensorError::Announced { found: bytes.len() as u64, announced: entry.bytes };
                return Err(CheckpointError::tensor(path, &entry.name, reason));
            }
            write(&bytes)?;
            checks[n].push(check_of(&[&bytes]));
        }
        let file = out.into_inner().map_err(|e| CheckpointError::io(&path)(e.into_error()))?;
        ShardMark::seal(&path)?;
        file.sync_all().at(&path)?;
        let written = SafetensorsFile::open(&path)?;
        let text = written.metadata.metadata().as_ref().and_then(|m| m.get(MARK_KEY).cloned()).unwrap_or_default();
        marks.push(ShardMark::parse(&text).map_err(|reason| CheckpointError::file(&path, reason))?);
    }
    read_back(dir, dir, || compare_layers(dir, layers, &checks))
}
