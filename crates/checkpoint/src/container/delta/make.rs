//! Making a delta.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::container::delta::base::Base;
use crate::container::delta::coded;
use crate::container::delta::files::{DeltaSummary, open, paths};
use crate::container::delta::list::{Entry, FileKind, List, NAME, VERSION};
use crate::container::delta::tensor::Coders;
use crate::container::frame::OnBytes;
use crate::container::names::{check_name, check_names, is_safetensors};
use crate::container::source::Source;
use crate::container::tree::Tree;
use crate::error::{AtPath, CheckpointError, FileError, Result};
use crate::read_back::read_back;
use crate::whole::{digest_of, each_part, write_directory, write_new};

/// Writes the delta of the directory `fine_tune` from the directory `base` into `out`, which appears when everything has
/// been read back. `on_bytes` counts the bytes of coded files twice, coded and read back.
///
/// # Errors
/// Files that cannot be read or written; safetensors files that are malformed; names that no reader accepts.
pub fn delta(base: &Path, fine_tune: &Path, out: &Path, on_bytes: OnBytes) -> Result<DeltaSummary> {
    delta_with(base, fine_tune, out, &Coders::default(), on_bytes)
}

/// As [`delta`], with further coders. Tensors that they code with loss are restored to their decoded values.
///
/// # Errors
/// As [`delta`], and those of `coders`.
pub fn delta_with(
    base: &Path,
    fine_tune: &Path,
    out: &Path,
    coders: &Coders,
    on_bytes: OnBytes,
) -> Result<DeltaSummary> {
    // Before `out` is there, which may lie in one of them.
    let (base_files, files) = (Tree::walk(base)?, Tree::walk(fine_tune)?);
    check_names(files.names.iter()).map_err(|reason| CheckpointError::file(fine_tune, reason))?;
    let shards: Vec<String> = base_files.names.iter().filter(|name| is_safetensors(name)).cloned().collect();
    shards.iter().try_for_each(|name| check_name(name)).map_err(|reason| CheckpointError::file(base, reason))?;
    if !files.names.iter().any(|name| is_safetensors(name)) {
        return Err(CheckpointError::file(fine_tune, FileError::NoSafetensors));
    }
    let shard_paths = paths(base, &shards);
    let sources = open(&shard_paths)?;
    let known = Base::new(&shards, &sources, VERSION);
    write_directory(out, |dir| {
        let digests = RefCell::default();
        let maker = Maker { base, base_files: &base_files, known: &known, digests, fine_tune, out, dir };
        let mut summary = maker.write(&files, coders, on_bytes)?;
        summary.left_out = files.left_out.clone();
        Ok(summary)
    })
}

/// Everything that is there before the first file is written.
struct Maker<'a> {
    base: &'a Path,
    base_files: &'a Tree,
    known: &'a Base<'a>,
    /// Checkpoints are large: each file of the two directories is read for its digest once.
    digests: RefCell<BTreeMap<PathBuf, String>>,
    fine_tune: &'a Path,
    /// In messages.
    out: &'a Path,
    /// The directory until it is whole.
    dir: &'a Path,
}

impl Maker<'_> {
    fn digest(&self, path: &Path) -> Result<String> {
        if let Some(known) = self.digests.borrow().get(path) {
            return Ok(known.clone());
        }
        let digest = digest_of(path)?;
        self.digests.borrow_mut().insert(path.into(), digest.clone());
        Ok(digest)
    }

    fn write(&self, files: &Tree, coders: &Coders, on_bytes: OnBytes) -> Result<DeltaSummary> {
        let mut list = List { version: VERSION, base: BTreeMap::new(), files: BTreeMap::new() };
        let mut summary = DeltaSummary::default();
        for name in &files.names {
            let entry = match self.same(name)? {
                Some(entry) => entry,
                None if is_safetensors(name) => self.code(name, &mut list, &mut summary, coders, on_bytes)?,
                None => self.store(name, &list)?,
            };
            if entry.kind == FileKind::Same {
                list.base.insert(name.clone(), entry.digest.clone());
            }
            summary.fine_tune += entry.bytes;
            list.files.insert(name.clone(), entry);
        }
        list.write(self.dir)?;
        let path = self.dir.join(NAME);
        read_back(self.out, &path, || match List::read(self.dir)? == list {
            true => Ok(()),
            false => Err(CheckpointError::file(&path, FileError::Written)),
        })?;
        summary.delta = Tree::walk(self.dir)?.bytes(self.dir)?;
        Ok(summary)
    }

    /// The entry of a file that the base has too.
    fn same(&self, name: &String) -> Result<Option<Entry>> {
        let (own, other) = (self.fine_tune.join(name), self.base.join(name));
        let bytes = own.metadata().at(&own)?.len();
        let alike = self.base_files.names.binary_search(name).is_ok() && other.metadata().at(&other)?.len() == bytes;
        if !alike {
            return Ok(None);
        }
        let digest = self.digest(&own)?;
        let entry = |digest| Entry { kind: FileKind::Same, bytes, digest };
        Ok((self.digest(&other)? == digest).then(|| entry(digest)))
    }

    /// Copies a file.
    fn store(&self, name: &str, list: &List) -> Result<Entry> {
        let (from, to) = (self.fine_tune.join(name), list.path(self.dir, FileKind::Stored, name));
        let (mut hasher, mut bytes) = (blake3::Hasher::new(), 0);
        write_new(&to, |out| {
            each_part(&from, &mut |part| {
                hasher.update(part);
                bytes += part.len() as u64;
                out.write_all(part).at(&to)
            })
        })?;
        let digest = hasher.finalize().to_hex().to_string();
        read_back(self.out, &to, || match digest_of(&to)? == digest {
            true => Ok(()),
            false => Err(CheckpointError::file(&to, FileError::Written)),
        })?;
        Ok(Entry { kind: FileKind::Stored, bytes, digest })
    }

    /// Codes a safetensors file.
    fn code(
        &self,
        name: &str,
        list: &mut List,
        summary: &mut DeltaSummary,
        coders: &Coders,
        on_bytes: OnBytes,
    ) -> Result<Entry> {
        let path = self.fine_tune.join(name);
        let source = Source::open(&path)?;
        let to = list.path(self.dir, FileKind::Delta, name);
        let beside = self.known.beside(name);
        let written = coded::write(&beside, &source, &to, coders, on_bytes)?;
        let original = self.digest(&path)?;
        let digest = read_back(self.out, &to, || {
            let digest = written.read_back(&beside, &to, on_bytes)?;
            // With loss the restored file is not the fine-tune's.
            match written.loses || digest == original {
                true => Ok(digest),
                false => Err(CheckpointError::file(&to, FileError::Restored)),
            }
        })?;
        summary.tensors += written.counts;
        summary.elements += source.elements;
        for needed in written.needs.into_iter().map(|n| self.known.name(n)) {
            list.base.insert(needed.into(), self.digest(&self.base.join(needed))?);
        }
        Ok(Entry { kind: FileKind::Delta, bytes: source.size, digest })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::read_back::tests::{damaging, flip};

    #[test]
    fn a_delta_that_is_damaged_while_it_is_written_gets_no_name() {
        let place = tempfile::tempdir().unwrap();
        let [base, tuned, out] = ["base", "tuned", "delta"].map(|name| place.path().join(name));
        for (dir, step) in [(&base, 1), (&tuned, 2)] {
            std::fs::create_dir(dir).unwrap();
            let values: Vec<u8> =
                (0..4000).flat_map(|i| ((i % 77 * (1 + i / 100 % step)) as f32).to_le_bytes()).collect();
            let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![40, 100], &values).unwrap();
            safetensors::serialize_to_file([("w", view)], None, &dir.join("a.safetensors")).unwrap();
            std::fs::write(dir.join("b"), step.to_string()).unwrap();
        }
        for (file, share) in [("a.safetensors.wfd", 0.1), ("a.safetensors.wfd", 0.95), ("b", 0.0), ("delta.json", 0.2)]
        {
            let damage = move |path: &Path| {
                if path.ends_with(file) {
                    flip(path, share)
                }
            };
            let message = damaging(damage, || delta(&base, &tuned, &out, &|_| {})).unwrap_err().to_string();
            assert!(message.contains("not written, since it does not come back"), "{message}");
            assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 2, "{message}");
        }
        delta(&base, &tuned, &out, &|_| {}).unwrap();
        let restored = place.path().join("restored");
        let damage = |path: &Path| {
            if path.ends_with("b") {
                flip(path, 0.0)
            }
        };
        let apply = || crate::delta::apply(&base, &out, &restored, &|_| {});
        assert!(damaging(damage, apply).unwrap_err().to_string().contains("does not match its digest"));
        assert!(!restored.exists());
        apply().unwrap();
    }
}
